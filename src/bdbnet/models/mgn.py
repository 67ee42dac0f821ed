"""MGN (Multiple Granularity Network), the strongest competing method of Table 1.

Wang, Yuan, Chen, Li, Zhou, "Learning Discriminative Features with Multiple Granularities for Person Re-Identification",
ACM Multimedia 2018.
"""

import copy
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from bdbnet.models.backbones.resnet import ResNetBackbone, set_stride
from bdbnet.models.heads import BranchOutput, PartHead, build_classifier, build_reduction, global_max_pool, stripes
from bdbnet.models.network import EmbeddingNetwork, MapLayer, build_backbone

#: Branches and the number of stripes that each is cut into.
GRANULARITIES = {"whole": 1, "halves": 2, "thirds": 3}


class MGNNetwork(EmbeddingNetwork):
    """Three branches that see a person in images (N, 3, H, W) as a whole, in two and in three stripes: 8 vectors under 11 losses.

    The branches share the backbone up to the first block of stage 3 and have their own copies of the rest, the first with
    stride 2 in stage 4, the others with stride 1. Each max-pools its whole map, the latter two their stripes as well. The
    three vectors of whole maps have the softmax loss before their reduction and the triplet loss after it; the five of
    stripes have the softmax loss after it. The embedding is all 8 reduced vectors.

    Args:
        num_classes: identities of the training set; 0 leaves the classifiers out.
        backbone: a `ResNetBackbone`, or the name of one ("resnet50") for random weights. The first branch uses it; the others
            start with copies of its weights. Its `last_stride` has no effect.
        embedding_dim: length that each vector is reduced to.

    Raises:
        ValueError: the backbone is not a ResNet, or has non-local blocks.
    """

    def __init__(self, num_classes: int, backbone: str | nn.Module = "resnet50", *, embedding_dim: int = 256) -> None:
        super().__init__()
        backbone = build_backbone(backbone)
        if not isinstance(backbone, ResNetBackbone):
            raise ValueError(
                f"MGN copies the last stages of a ResNet, but the backbone is {type(backbone).__name__}: choose a ResNet, such as "
                "backbone=resnet50"
            )
        self.backbone: ResNetBackbone = backbone
        if any(backbone.non_local):
            raise ValueError(
                f"MGN has no non-local blocks, but the backbone has {[*backbone.non_local]}: leave backbone.non_local out"
            )
        self.copies = nn.ModuleDict()
        self.branches = nn.ModuleDict()
        for name, parts in GRANULARITIES.items():
            self.branches[name] = GlobalHead(backbone.out_channels, num_classes, embedding_dim)
            if parts == 1:
                set_stride(backbone.layer4, 2)
                continue
            stages = copy.deepcopy(_own_stages(backbone))
            set_stride(stages[len(backbone.layer3) - 1 :], 1)
            self.copies[name] = stages
            for part in range(1, parts + 1):
                head = PartHead(backbone.out_channels, num_classes, embedding_dim, bias=False)
                self.branches[f"{name}{part}"] = head
        self.branch_dims = (embedding_dim,) * len(self.branches)

    def forward(self, images: Tensor) -> dict[str, BranchOutput]:
        return {name: self.branches[name](vector) for name, vector in self._pool(images).items()}

    def embed(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to embeddings (N, 8 x embedding_dim): the reduced vectors in the order of `branches`."""
        pooled = self._pool(images)
        return torch.cat([cast(PartHead, self.branches[name]).embed(vector) for name, vector in pooled.items()], dim=1)

    def map_layers(self) -> dict[str, MapLayer]:
        """The map of each granularity; of its vectors, that of the whole map and those of its stripes."""
        layers = {}
        names, copies = [*self.branches], dict(self.copies.items())
        for name in GRANULARITIES:
            own = tuple(vector for vector in names if vector.startswith(name))
            stages = cast(nn.Sequential, copies.get(name, self.backbone.layer4))
            layers[name] = MapLayer(stages[-1], tuple(names.index(vector) for vector in own), own)
        return layers

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The parameters of the backbone and of the copies of its last stages."""
        return [*self.backbone.parameters(), *self.copies.parameters()]

    def copy_backbone(self, names: Iterable[str]) -> None:
        """Set the copies of these branches to the weights of the backbone's own last stages."""
        weights = _own_stages(self.backbone).state_dict()
        for name in names:
            self.copies[name].load_state_dict(weights)

    def _pool(self, images: Tensor) -> dict[str, Tensor]:
        backbone = self.backbone
        x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(images))))
        shared = backbone.layer3[0](backbone.layer2(backbone.layer1(x)))
        pooled = {}
        for name, parts in GRANULARITIES.items():
            features = (self.copies[name] if name in self.copies else _own_stages(backbone))(shared)
            pooled[name] = global_max_pool(features)
            if parts > 1:
                for part, stripe in enumerate(stripes(features, parts), start=1):
                    pooled[f"{name}{part}"] = global_max_pool(stripe)
        return pooled


class GlobalHead(nn.Module):
    """Classifier on a pooled vector (N, in_channels), and the reduction of the vector for the metric loss.

    The publication's classifiers have no bias.
    """

    def __init__(self, in_channels: int, num_classes: int, embedding_dim: int) -> None:
        super().__init__()
        self.reduction = build_reduction(in_channels, embedding_dim, "fan_in")
        self.classifier = build_classifier(in_channels, num_classes, bias=False)

    def embed(self, pooled: Tensor) -> Tensor:
        """Pooled vectors (N, in_channels) to reduced ones (N, embedding_dim)."""
        embedding: Tensor = self.reduction(pooled)
        return embedding

    def forward(self, pooled: Tensor) -> BranchOutput:
        return BranchOutput(self.embed(pooled), self.classifier(pooled) if self.classifier is not None else None)


def _own_stages(backbone: ResNetBackbone) -> nn.Sequential:
    """The stages that every branch has its own copy of: stage 3 from its second block on, and stage 4."""
    return nn.Sequential(*backbone.layer3[1:], *backbone.layer4)
