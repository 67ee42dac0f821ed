"""The Batch DropBlock Network (paper, Figure 3)."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from bdbnet.models.backbones.base import as_feature_map
from bdbnet.models.heads import BranchOutput, FeatureDroppingBranch, GlobalBranch
from bdbnet.models.network import EmbeddingNetwork, MapLayer, build_backbone
from bdbnet.renamed import todays_module

Branch = GlobalBranch | FeatureDroppingBranch
EMBEDDING_DIMS = {"global": 512, "dropping": 1024}
#: Branch -> its module: exporters write a module's name as Python code, where global is a keyword.
MODULES = {"global": "global_", "dropping": "dropping"}


class BDBNetwork(EmbeddingNetwork):
    """A backbone whose feature map T goes to a global branch and a feature dropping branch.

    Of a backbone with a class token (`FeatureMap`) the global branch takes the token, without pooling.

    Args:
        num_classes: identities of the training set; 0 leaves the classifiers out.
        backbone: a backbone with `out_channels`, or a name ("resnet50", "osnet_x0_25") for one with random weights.
        branches: any of "global" and "dropping", in the order of the embedding; ("global",) is the paper's baseline.
        dropping: the drop layer; None is `BatchDropBlock(0.3, 1.0)`.
        pooling: of the dropping branch, "max" (paper) or "avg" (Figure 7b); "gem" (`GeM`) is of both branches.
        embedding_dims: length of a branch's embedding where it is not 512 (global) or 1024 (dropping); with `head="bnneck"`,
            where it is not the number of the backbone's channels.
        global_pooling: of the global branch, "avg", "max" or "gem"; None: "gem" where `pooling` is, else "avg" (paper).
        head: of all branches, "linear" (paper: reduction and classifier) or "bnneck" (`BNNeck`).

    Raises:
        ValueError: unknown backbone, branch, pooling or head; no branch or one named twice; a dropping branch on a backbone
            whose channels are not a multiple of 4; a pooling of the global branch on a backbone with a class token.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str | nn.Module = "resnet50",
        branches: Sequence[str] = ("global", "dropping"),
        dropping: nn.Module | None = None,
        pooling: str = "max",
        embedding_dims: Mapping[str, int] | None = None,
        global_pooling: str | None = None,
        head: str = "linear",
    ) -> None:
        super().__init__()
        usual = EMBEDDING_DIMS if head == "linear" else {}
        dims: dict[str, int | None] = {**dict.fromkeys(EMBEDDING_DIMS), **usual, **(embedding_dims or {})}
        if not branches or len({*branches}) < len(branches) or not {*branches, *dims} <= {*EMBEDDING_DIMS}:
            raise ValueError(
                f"branches {[*branches]} with embedding_dims {dims}: "
                f"choose one or more of {', '.join(EMBEDDING_DIMS)}, each once"
            )
        self.backbone = build_backbone(backbone)
        channels = cast(int, self.backbone.out_channels)
        if "dropping" in branches and channels % 4:
            raise ValueError(
                f"the backbone has {channels} output channels; the bottleneck of the dropping branch needs a multiple of 4: "
                "choose another backbone, or the global branch alone (model=baseline)"
            )
        if "dropping" in branches and getattr(self.backbone, "pools", False):
            raise ValueError(
                f"the backbone {type(self.backbone).__name__} gives a vector for each image; the dropping branch needs a feature "
                "map: choose another backbone (backbone=timm gives a transformer's map), or the global branch alone "
                "(model=baseline)"
            )
        if global_pooling is not None and getattr(self.backbone, "token", None) is not None:
            raise ValueError(
                f"global_pooling={global_pooling}: the global branch takes the class token of the backbone and pools nothing; "
                "leave model.global_pooling out, or set backbone.token=null"
            )
        of_global = global_pooling or ("gem" if pooling == "gem" else "avg")
        self.branches = nn.ModuleDict()
        for name in branches:
            if name == "global":
                branch: Branch = GlobalBranch(channels, num_classes, dims[name], of_global, head)
            else:
                branch = FeatureDroppingBranch(channels, num_classes, dims[name], dropping, pooling, head)
            self.branches[MODULES[name]] = branch
        self.branch_names = tuple(branches)
        cast(Any, self).register_load_state_dict_pre_hook(_with_todays_keys)
        self.branch_dims = tuple(cast(Branch, branch).embedding_dim for branch in self.branches.values())

    def forward(self, images: Tensor) -> dict[str, BranchOutput]:
        """Images (N, 3, H, W) to each branch's embedding and logits, for the losses."""
        seen = self._seen_by_branches(images)
        return {name: branch(seen[name]) for name, branch in zip(self.branch_names, self.branches.values())}

    def embed(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to embeddings (N, embedding_dim): those of the branches, concatenated, not normalised."""
        seen = self._seen_by_branches(images)
        branches = zip(self.branch_names, self.branches.values())
        return torch.cat([cast(Branch, branch).embed(seen[name]) for name, branch in branches], dim=1)

    def _seen_by_branches(self, images: Tensor) -> dict[str, Tensor]:
        """What each branch sees of images (N, 3, H, W): the map (N, C, h, w), the global one any class token (N, C)."""
        found = as_feature_map(self.backbone(images))
        return {"global": found.map if found.token is None else found.token, "dropping": found.map}

    def map_layers(self) -> dict[str, MapLayer]:
        """The global branch's map is the backbone's; the dropping branch's that of its bottleneck, before the drop layer."""
        modules = {
            name: branch.bottleneck if isinstance(branch, FeatureDroppingBranch) else self.backbone
            for name, branch in zip(self.branch_names, self.branches.values())
        }
        return {name: MapLayer(module, (part,), (name,)) for part, (name, module) in enumerate(modules.items())}


def _with_todays_keys(_: nn.Module, state: dict[str, Any], prefix: str, *__: object) -> None:
    """Let `load_state_dict` take weights of earlier versions."""
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + todays_module(key.removeprefix(prefix))] = state.pop(key)
