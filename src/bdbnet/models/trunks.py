"""Trunks by the names that torchvision and timm know: any of their models that makes a feature map."""

import contextlib
import difflib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision.models
from torch import Tensor, nn

from bdbnet.models.checkpoints import CheckpointError, load_imagenet, load_trunk

_WITH_FEATURES = "squeezenet1_1, mobilenet_v3_small, densenet121, efficientnet_b0, vgg16_bn, convnext_tiny, swin_t"


class ImageSizeError(ValueError):
    """Images of a size that a trunk can't process."""


class TorchvisionTrunk(nn.Module):
    """A classification model of torchvision without its head: images (N, 3, H, W) to features (N, out_channels, h, w).

    The model has to have `.features`, as alexnet, convnext_*, densenet*, efficientnet_*, mobilenet_*, squeezenet*, swin_*
    and vgg* do; ResNets have `ResNetTrunk`. The map is the one that the model's own head gets: what `.features`
    returns, for densenet* after a ReLU, for swin_* after the last LayerNorm (convnext_* has it behind the pooling, so
    that it goes with the head). h is about H / 32, for squeezenet* H / 16. Key names are torchvision's.

    Args:
        name: a model of torchvision.models, such as squeezenet1_1.
        weights: "imagenet" (torchvision's IMAGENET1K_V1, downloaded once), "none", or a file: a torchvision state_dict
            (its classifier is left out) or a checkpoint of a `BDBNetwork` on this trunk, of which the trunk takes its
            own part.

    Raises:
        ValueError: a name that torchvision does not know, or a model without such a feature map.
        CheckpointError: the download failed, or the file can't be read safely or holds another architecture.
        ImageSizeError: in `forward`, images that are too small for the model.
    """

    def __init__(self, name: str, weights: str | Path | None = "imagenet") -> None:
        super().__init__()
        if name not in torchvision.models.list_models(module=torchvision.models):
            raise ValueError(
                f"torchvision has no model {name!r} that classifies images; choose, e.g., {_WITH_FEATURES}"
            )
        model = torchvision.models.get_model(name, weights=None)
        if not hasattr(model, "features"):
            raise ValueError(
                f"torchvision's {name} has no .features to take a map from; choose, e.g., {_WITH_FEATURES}, "
                "or a ResNet by backbone=resnet50"
            )
        is_swin = isinstance(model, torchvision.models.SwinTransformer)
        self.name = name
        self.features = model.features
        self.norm = model.norm if is_swin else nn.Identity()
        if isinstance(model, torchvision.models.DenseNet):
            self.last: nn.Module = nn.ReLU(inplace=True)
        else:
            self.last = model.permute if is_swin else nn.Identity()  # Swin computes in (N, h, w, C)
        self.out_channels = _count_channels(self, name)
        if weights == "imagenet":
            load_imagenet(self, name)
        elif weights not in (None, "none"):
            load_trunk(self, str(weights))

    def forward(self, images: Tensor) -> Tensor:
        try:
            return self.last(self.norm(self.features(images)))
        except RuntimeError as error:
            if "too small" not in str(error) and "can't be greater than actual input size" not in str(error):
                raise
            raise ImageSizeError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels are too small for {self.name}: raise dataset.image_size"
            ) from error


class TimmTrunk(nn.Module):
    """A model of timm without its head: images (N, 3, H, W) to the last feature map (N, out_channels, h, w).

    Takes every name for which timm offers `features_only`: convolutional networks and transformers in stages (mostly
    h = H / 32), plain transformers (h = H / patch; their tokens as a map, before the last norm). Transformers adapt to
    the size of the images where timm can (`dynamic_img_size`: vit_*, deit*, swin*, eva02_*); others may take only the
    size that they were made for. Needs `pip install "bdbnet[timm]"`.

    Args:
        name: a name of `timm.list_models()`, such as resnet18, or with the tag of its weights, resnet18.a1_in1k.
        weights: "imagenet" (what timm has for the name and tag, downloaded once; made for images normalised as its model
            card says, which for some is not ImageNet's mean and deviation), "none", or a file: a checkpoint of a
            `BDBNetwork` on this trunk, of which the trunk takes its own part.

    Raises:
        ValueError: timm is not installed, does not know the name or offers no feature map of it.
        CheckpointError: the download failed, or the file can't be read safely or holds another architecture.
        ImageSizeError: in `forward`, images of a size that the model does not take.
    """

    def __init__(self, name: str, weights: str | Path | None = "imagenet") -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ValueError('models of timm need timm: install it with pip install "bdbnet[timm]"') from error
        known = {*timm.list_models(), *timm.list_models(include_tags=True)}
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=5, cutoff=0.5) or ("resnet18", "vit_tiny_patch16_224")
            raise ValueError(f"timm {timm.__version__} has no model {name!r}; choose, e.g., {', '.join(similar)}")
        card: Any = timm.get_pretrained_cfg(name)
        self.name, self._made_for = name, tuple(card.input_size[1:])
        create = functools.partial(timm.create_model, name, features_only=True, out_indices=(-1,))
        try:
            self.model, self._adapts = _create(create, card.fixed_input_size, pretrained=weights == "imagenet")
        except Exception as error:  # the Hub's client has errors of many kinds
            if weights == "imagenet":
                raise CheckpointError(
                    f"timm's weights of {name} could not be downloaded or loaded ({error}); use backbone.weights=none to "
                    "start from random weights, or backbone.weights=<file> with a checkpoint of a network on this trunk"
                ) from error
            raise ValueError(f"timm {timm.__version__} makes no feature map of {name} ({error})") from error
        self.out_channels: int = self.model.feature_info.channels()[-1]
        self._channels_first = getattr(self.model, "output_fmt", "NCHW") == "NCHW"
        if weights not in (None, "none", "imagenet"):
            load_trunk(self, str(weights))

    def forward(self, images: Tensor) -> Tensor:
        try:
            features = self.model(images)[-1]
        except (AssertionError, RuntimeError) as error:
            # timm asserts most sizes; a model of a fixed size may also fail where shapes meet.
            of_shapes = not self._adapts and images.shape[2:] != self._made_for
            if isinstance(error, torch.OutOfMemoryError) or not (isinstance(error, AssertionError) or of_shapes):
                raise
            asked, own = (" x ".join(map(str, size)) for size in (images.shape[2:], self._made_for))
            raise ImageSizeError(
                f"timm's {self.name} can't process images of {asked} ({str(error) or 'their size does not fit'}); "
                f"it was made for {own}: set dataset.image_size, or choose another model"
            ) from error
        return features if self._channels_first else features.permute(0, 3, 1, 2)


def _count_channels(trunk: nn.Module, name: str) -> int:
    """Channels of the map; neither running statistics nor the random state change."""
    trunk.eval()
    with torch.no_grad():
        features = trunk(torch.zeros(1, 3, 64, 64))
    trunk.train()
    if features.dim() != 4:
        raise ValueError(
            f"{name} makes {tuple(features.shape)} of an image, which is no map; choose, e.g., {_WITH_FEATURES}"
        )
    return features.shape[1]


def _create(create: Callable[..., Any], is_fixed: bool, *, pretrained: bool) -> tuple[Any, bool]:
    """The model that timm's factory makes, and whether it is meant for images of any size."""
    if is_fixed:
        with contextlib.suppress(TypeError):  # an architecture without this option
            return create(pretrained=pretrained, dynamic_img_size=True), True
    return create(pretrained=pretrained), not is_fixed
