"""Pretrained networks of torchvision and timm as they are: their pooled features, the zero-shot baseline."""

from typing import Any, cast

import torchvision.models
from torch import Tensor, nn

from bdbnet.models.backbones.resnet import RESNETS, ResNetBackbone
from bdbnet.models.backbones.timm import TimmBackbone, TimmEncoder
from bdbnet.models.backbones.torchvision import TorchvisionBackbone
from bdbnet.models.heads import BranchOutput, GeM
from bdbnet.models.network import EmbeddingNetwork, MapLayer
from bdbnet.models.weights import CheckpointError

POOLINGS = ("avg", "gem", "none")


class PooledNetwork(EmbeddingNetwork):
    """A network whose embedding (N, D) is its pooled feature map, after a linear reduction and a batch-norm neck where it has
    them. It has no classifiers: it holds the networks of other programs, and pretrained ones as they are.

    Args:
        backbone: images (N, 3, H, W) to features (N, C, h, w), with `out_channels`.
        num_classes: not used.
        pooling: "avg"; "gem"; "none" for a backbone that gives (N, C) itself.
        embedding_dim: numbers that a linear layer without bias reduces C to; None: there is none.
        neck: whether batch normalisation comes last (Luo et al., "Bag of Tricks", CVPR workshops 2019).

    Raises:
        ValueError: unknown pooling.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int = 0,
        pooling: str = "avg",
        embedding_dim: int | None = None,
        neck: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}; choose from {', '.join(POOLINGS)}")
        self.backbone = backbone
        channels = int(cast(Any, backbone).out_channels)
        length = channels if embedding_dim is None else embedding_dim
        self.pooling = GeM() if pooling == "gem" else nn.Identity()
        self.averages = pooling == "avg"
        self.reduction = nn.Identity() if embedding_dim is None else nn.Linear(channels, length, bias=False)
        self.neck = nn.BatchNorm1d(length) if neck else nn.Identity()
        self.branch_dims = (length,)

    def forward(self, images: Tensor) -> dict[str, BranchOutput]:
        return {"pooled": BranchOutput(self.embed(images), None)}

    def embed(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(images)
        pooled = features.mean((2, 3)) if self.averages else self.pooling(features)
        embedding: Tensor = self.neck(self.reduction(pooled))
        return embedding

    def map_layers(self) -> dict[str, MapLayer]:
        whole = self.backbone.model if isinstance(self.backbone, TimmEncoder) else self.backbone
        return {"backbone": MapLayer(_before_pooling(whole), (0,), ("pooled",))}


class TimmNetwork(EmbeddingNetwork):
    """A model of timm without its classifier: what its own head pools, (N, num_features)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model
        known: Any = model
        self.branch_dims = (int(getattr(known, "head_hidden_size", known.num_features)),)

    def forward(self, images: Tensor) -> dict[str, BranchOutput]:
        return {"pooled": BranchOutput(self.embed(images), None)}

    def embed(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(images)
        return features

    def map_layers(self) -> dict[str, MapLayer]:
        return {"backbone": MapLayer(_before_pooling(self.backbone), (0,), ("pooled",))}


def _before_pooling(model: nn.Module) -> nn.Module:
    """The last module of a whole model of timm before it pools, as timm's table of features says; else the model itself."""
    table: Any = getattr(model, "feature_info", None)
    return model.get_submodule(str(table[-1]["module"])) if isinstance(table, list) and table else model


def torchvision_network(name: str) -> tuple[EmbeddingNetwork, dict[str, Any]]:
    """torchvision's model `name` with its ImageNet weights, and the preprocessing that these are made for.

    The weights are IMAGENET1K_V1 where there are such, as for a `backbone`. Returns image_size, mean, std and interpolation.

    Raises:
        ValueError: a name that torchvision does not know, or a model without a feature map.
        CheckpointError: the weights could not be downloaded.
    """
    if name in RESNETS:
        backbone: nn.Module = ResNetBackbone(name, weights="imagenet", last_stride=2)
    else:
        backbone = TorchvisionBackbone(name, weights="imagenet")
    choices = torchvision.models.get_model_weights(name)
    preset = getattr(choices, "IMAGENET1K_V1", choices.DEFAULT).transforms()
    side = int(preset.crop_size[0])
    return PooledNetwork(backbone), {
        "image_size": (side, side), "mean": tuple(preset.mean), "std": tuple(preset.std),
        "interpolation": preset.interpolation.value,
    }  # fmt: skip


def timm_network(name: str, image_size: tuple[int, int] | None = None) -> tuple[EmbeddingNetwork, dict[str, Any]]:
    """timm's model `name` with its weights, and the preprocessing that its model card names.

    Args:
        name: a name of `timm.list_models()`, with or without the tag of certain weights.
        image_size: height and width of the images it will see; transformers adapt to it where timm can.

    Raises:
        ValueError: timm is not installed or does not know the name.
        CheckpointError: the weights could not be downloaded.
    """
    TimmBackbone.check_name(name)
    import timm

    sizes: list[dict[str, Any]] = [{"img_size": image_size}, {}] if image_size is not None else [{}]
    for options in sizes:
        try:
            model = timm.create_model(name, pretrained=True, num_classes=0, **options)
            break
        except TypeError:  # an architecture without this option, which takes any size
            if not options:
                raise
        except Exception as error:  # the Hub's client has errors of many kinds
            raise CheckpointError(
                f"timm's weights of {name} could not be downloaded or loaded ({error}). They are downloaded once: try again "
                "with a network, or copy the cache of a machine that has them (the folder that HF_HOME names)"
            ) from error
    card = cast(Any, timm).data.resolve_model_data_config(model)
    return TimmNetwork(model), {
        "image_size": tuple(card["input_size"][1:]) if image_size is None else image_size,
        "mean": tuple(card["mean"]), "std": tuple(card["std"]), "interpolation": card["interpolation"],
    }  # fmt: skip
