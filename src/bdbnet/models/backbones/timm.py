"""Backbones from timm: any of its models that returns a feature map."""

import contextlib
import difflib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bdbnet.models.backbones.base import ImageSizeError
from bdbnet.models.weights import CheckpointError, load_backbone


class TimmBackbone(nn.Module):
    """A model of timm without its head: images (N, 3, H, W) to the last feature map (N, out_channels, h, w).

    Takes every name for which timm offers `features_only`: convolutional networks and transformers in stages (mostly
    h = H / 32), plain transformers (h = H / patch; their tokens as a map, before the last norm). Transformers adapt to
    the size of the images where timm supports it (`dynamic_img_size`: vit_*, deit*, swin*, eva02_*); others may accept
    only the size that they were trained with. Needs `pip install "bdbnet[timm]"`.

    Args:
        name: a name of `timm.list_models()`, such as resnet18, or with the tag of its weights, resnet18.a1_in1k.
        weights: "imagenet" (timm's weights for the name and tag, downloaded once; some expect another normalisation than
            ImageNet's mean and deviation, see the model card), "none", or a file: a checkpoint of a
            `BDBNetwork` on this backbone, of which the backbone takes its own part.

    Raises:
        ValueError: timm is not installed, does not know the name or offers no feature map of it.
        CheckpointError: the download failed, or the file can't be read safely or holds another architecture.
        ImageSizeError: in `forward`, images of a size that the model does not accept.
    """

    def __init__(self, name: str, weights: str | Path | None = "imagenet") -> None:
        super().__init__()
        self.check_name(name)
        import timm

        card: Any = timm.get_pretrained_cfg(name)
        self.name, self._made_for = name, tuple(card.input_size[1:])
        create = functools.partial(timm.create_model, name, features_only=True, out_indices=(-1,))
        try:
            self.model, self._adapts = _create(create, card.fixed_input_size, pretrained=weights == "imagenet")
        except Exception as error:  # the Hub's client has errors of many kinds
            if weights == "imagenet":
                raise CheckpointError(
                    f"timm's weights of {name} could not be downloaded or loaded ({error}); use backbone.weights=none to "
                    "start from random weights, or backbone.weights=<file> with a checkpoint of a network on this backbone"
                ) from error
            raise ValueError(f"timm {timm.__version__} has no feature map of {name} ({error})") from error
        self.out_channels: int = self.model.feature_info.channels()[-1]
        self._channels_first = getattr(self.model, "output_fmt", "NCHW") == "NCHW"
        if weights not in (None, "none", "imagenet"):
            load_backbone(self, str(weights))

    @staticmethod
    def check_name(name: str) -> None:
        """Raise ValueError where timm is not installed, or does not know the name."""
        try:
            import timm
        except ImportError as error:
            raise ValueError('models of timm need timm: install it with pip install "bdbnet[timm]"') from error
        known = {*timm.list_models(), *timm.list_models(include_tags=True)}
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=5, cutoff=0.5) or ("resnet18", "vit_tiny_patch16_224")
            raise ValueError(f"timm {timm.__version__} has no model {name!r}; choose, e.g., {', '.join(similar)}")

    def forward(self, images: Tensor) -> Tensor:
        try:
            features: Tensor = self.model(images)[-1]
        except (AssertionError, RuntimeError) as error:
            # timm asserts most sizes; a model of a fixed size may also fail with mismatched shapes.
            of_shapes = not self._adapts and images.shape[2:] != self._made_for
            if isinstance(error, torch.OutOfMemoryError) or not (isinstance(error, AssertionError) or of_shapes):
                raise
            asked, own = (" x ".join(map(str, size)) for size in (images.shape[2:], self._made_for))
            raise ImageSizeError(
                f"timm's {self.name} can't process images of {asked} ({str(error) or 'their size does not fit'}); "
                f"it was trained with {own}: set dataset.image_size, or choose another model"
            ) from error
        return features if self._channels_first else features.permute(0, 3, 1, 2)


def _create(create: Callable[..., Any], is_fixed: bool, *, pretrained: bool) -> tuple[Any, bool]:
    """The model from timm's factory, and whether it accepts images of any size."""
    if is_fixed:
        with contextlib.suppress(TypeError):  # an architecture without this option
            return create(pretrained=pretrained, dynamic_img_size=True), True
    return create(pretrained=pretrained), not is_fixed
