"""Backbones from timm: any of its models that has a feature map."""

import contextlib
import difflib
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bdbnet.models.backbones.base import FeatureMap, ImageSizeError
from bdbnet.models.weights import CheckpointError, load_backbone

MAPS = ("head", "last_stage")
TOKENS = ("class",)
_PREFIX_TOKENS = 3  # class and distillation tokens that are looked for where a model does not tell their number


class TimmBackbone(nn.Module):
    """A model of timm without its head: images (N, 3, H, W) to a feature map (N, out_channels, h, w).

    With `map="head"` it is the map that the pretrained head pools, timm's `forward_features`: of transformers after the last norm
    (tokens as they lie in the image, without class tokens), of efficientnet_*, ghostnet_* and hrnet_* after the layer that widens
    the channels. With `map="last_stage"` it is the output of the last stage, timm's `features_only`: before that norm or layer.
    Mostly h = H / 32, of plain transformers H / patch. Transformers adapt to the size of the images where timm supports it
    (`dynamic_img_size`: vit_*, deit*, swin*, eva02_*); others may accept only the size that they were trained with. What only the
    head uses is left out. Needs `pip install "bdbnet[timm]"`.

    Args:
        name: a name of `timm.list_models()`, such as resnet18, or with the tag of its weights, resnet18.a1_in1k.
        weights: "imagenet" (timm's weights for the name and tag, downloaded once; some expect another normalisation than
            ImageNet's mean and deviation, see the model card), "none", or a file: timm's own of the name (pytorch_model.bin,
            model.safetensors; its classifier is left out), or a checkpoint of a `BDBNetwork` on this backbone, of which the
            backbone takes its own part.
        map: "head" or "last_stage", see above.
        output_stride: the stride of the map, such as 16, where timm can set it (most convolutional networks); None: the model's.
        token: "class": also return the class token, in a `FeatureMap`; None: the map alone.

    Raises:
        ValueError: timm is not installed, does not know the name, offers no such map of it or can't set its stride; a
            model without a class token.
        CheckpointError: the download failed, or the file can't be read safely or holds another architecture.
        ImageSizeError: in `forward`, images of a size that the model does not accept.
    """

    def __init__(
        self,
        name: str,
        weights: str | Path | None = "imagenet",
        map: str = "head",
        output_stride: int | None = None,
        token: str | None = None,
    ) -> None:
        super().__init__()
        self.check_name(name)
        if map not in MAPS:
            raise ValueError(f"map={map} of a backbone of timm: choose one of {', '.join(MAPS)}")
        if token not in (None, *TOKENS):
            raise ValueError(f"token={token} of a backbone of timm: choose {', '.join(TOKENS)}, or null")
        if token is not None and map != "head":
            raise ValueError(f"token={token} with map={map}: timm gives the token beside map=head alone")
        import timm

        card: Any = timm.get_pretrained_cfg(name)
        self.name, self.map, self.output_stride, self.token = name, map, output_stride, token
        self._card, self._made_for = card, tuple(card.input_size[1:])
        try:
            self.model, self._adapts = self._create(pretrained=weights == "imagenet")
        except Exception as error:  # the Hub's client has errors of many kinds
            if output_stride is not None and isinstance(error, (TypeError, AssertionError, NotImplementedError)):
                raise ValueError(
                    f"timm {timm.__version__} can't set output_stride={output_stride} of {name} with map={map} ({error}): leave "
                    f"out backbone.output_stride{', or try backbone.map=last_stage' * (map == 'head')}"
                ) from error
            if weights == "imagenet":
                raise CheckpointError(
                    f"timm's weights of {name} could not be downloaded or loaded ({error}); use backbone.weights=none to "
                    "start from random weights, or backbone.weights=<file> with timm's own file or a checkpoint of a network on "
                    "this backbone"
                ) from error
            raise ValueError(f"timm {timm.__version__} has no feature map of {name} ({error})") from error
        self._prefix_tokens = 0
        if map == "last_stage":
            self.out_channels: int = self.model.feature_info.channels()[-1]
            self._channels_first = getattr(self.model, "output_fmt", "NCHW") == "NCHW"
        else:
            self._keep_what_the_map_needs()
        if token is not None and getattr(self.model, "cls_token", None) is None:
            raise ValueError(
                f"timm's {name} has no class token: leave out backbone.token, or choose another model, such as vit_tiny_patch16_224"
            )
        if output_stride is not None:
            self._check_stride(output_stride)
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

    def forward(self, images: Tensor) -> Tensor | FeatureMap:
        try:
            if self.map == "head":
                found: Tensor = self.model.forward_features(images)
                as_map = self._as_map(found, *images.shape[2:])
                return as_map if self.token is None else FeatureMap(as_map, found[:, 0])
            features: Tensor = self.model(images)[-1]
        except (AssertionError, RuntimeError) as error:
            # timm asserts most sizes; a model of a fixed size may also fail with mismatched shapes.
            of_shapes = not self._adapts and images.shape[2:] != self._made_for
            if isinstance(error, torch.OutOfMemoryError) or not (isinstance(error, AssertionError) or of_shapes):
                raise
            asked, own = (" x ".join(str(side) for side in size) for size in (images.shape[2:], self._made_for))
            raise ImageSizeError(
                f"timm's {self.name} can't process images of {asked} ({str(error) or 'their size does not fit'}); "
                f"it was trained with {own}: set dataset.image_size, or choose another model"
            ) from error
        return features if self._channels_first else features.permute(0, 3, 1, 2)

    def own_keys(self, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
        """The tensors of timm's own file of the model under the keys of this backbone.

        timm itself reads them, with all that it does to its files of earlier versions, strictly.

        Args:
            state: tensors by timm's keys, with any classifier or none.
            source: what the message calls the file.

        Raises:
            CheckpointError: keys or shapes of another model.
        """
        names = self._card.classifier
        first = names if isinstance(names, str) else next(iter(names or ()), "")
        weight = state.get(f"{first}.weight")
        classes = weight.shape[0] if weight is not None and weight.ndim else 0
        try:
            # The whole model first: timm's loading of a map alone leaves out what does not fit, without a word.
            for whole in (True, False) if self.map == "last_stage" else (True,):
                model, _ = self._create(
                    whole=whole, pretrained=True, num_classes=classes,
                    pretrained_cfg_overlay={"state_dict": dict(state), "num_classes": classes},
                )  # fmt: skip
        except Exception as error:  # whatever timm's own translation makes of a foreign file
            what = " ".join(str(error).split())
            raise CheckpointError(
                f"{source}: does not hold timm's weights of {self.name} ({what[:400]}{'...' if len(what) > 400 else ''}). Its "
                f"first keys: {', '.join([*state][:4])}. Choose the name that the file was made for"
            ) from error
        loaded, own = model.state_dict(), self.state_dict()
        return {key: loaded[key.removeprefix("model.")] for key in own}

    def _create(self, *, whole: bool = False, **options: Any) -> tuple[Any, bool]:
        """The model from timm's factory, `whole` or as far as the map needs it, and whether it accepts images of any size."""
        import timm

        if self.map == "last_stage" and not whole:
            options |= {"features_only": True, "out_indices": (-1,)}
        if self.output_stride is not None:
            options["output_stride"] = self.output_stride
        create = functools.partial(timm.create_model, self.name, **options)
        return _create(create, is_fixed=self._card.fixed_input_size)

    @torch.inference_mode(False)
    @torch.enable_grad()  # gradients tell what is used, also where the caller wants none
    def _keep_what_the_map_needs(self) -> None:
        """Find the map's layout and leave out what only the head uses, by a pass through a copy that holds no numbers."""
        with torch.device("meta"):
            copy, _ = self._create(pretrained=False)
            images = torch.empty(2, 3, *self._made_for)
        called: set[str] = set()
        for name, module in copy.named_modules():
            module.register_forward_hook(lambda *_, name=name: called.add(name))
        try:
            features = copy.eval().forward_features(images)
        except Exception as error:
            raise self._no_map(f"{type(error).__name__}: {error}") from error
        self.out_channels, self._channels_first, self._prefix_tokens = self._layout(features, copy)
        parameters = dict(copy.named_parameters())
        used = self._as_map(features, *self._made_for)
        gradients = torch.autograd.grad(used.sum(), [*parameters.values()], allow_unused=True)
        without = {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None}
        for name, module in [*self.model.named_modules()]:
            own = [f"{name}.{key}" for key, _ in module.named_parameters()]
            inside = {name, *(f"{name}.{key}" for key, _ in module.named_modules() if key)}
            if own and without.issuperset(own) and not called & inside and _has(self.model, name):
                parent, _, last = name.rpartition(".")
                setattr(self.model.get_submodule(parent), last, nn.Identity())
        for name, parameter in self.model.named_parameters():
            if name in without:  # it never gets a gradient, for which training on several GPUs would wait
                parameter.requires_grad_(False)

    def _layout(self, features: Any, model: Any) -> tuple[int, bool, int]:
        """Channels of the map, whether they come first, and the number of tokens before those of the image."""
        if not isinstance(features, Tensor) or features.dim() not in (3, 4):
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise self._no_map(f"its forward_features gives {shape}")
        if features.dim() == 4:
            channels = getattr(model, "num_features", features.shape[1])
            first = features.shape[1] == channels or features.shape[3] != channels
            return features.shape[1 if first else 3], first, 0
        tokens, height, width = features.shape[1], *self._made_for
        known = getattr(model, "num_prefix_tokens", None)
        for prefix in range(_PREFIX_TOKENS) if known is None else [known]:
            rows, columns = _grid(tokens - prefix, height, width)
            if rows * width == columns * height and rows > 1:
                return features.shape[2], True, prefix
        raise self._no_map(f"its forward_features gives {tokens} tokens of {height} x {width} pixels")

    def _as_map(self, features: Tensor, height: int, width: int) -> Tensor:
        """What `forward_features` gave as a map (N, C, h, w)."""
        if features.dim() == 4:
            return features if self._channels_first else features.permute(0, 3, 1, 2)
        tokens = features[:, self._prefix_tokens :]
        embedding: Any = getattr(self.model, "patch_embed", None)
        rows, columns = _grid(tokens.shape[1], height, width)
        if hasattr(embedding, "dynamic_feat_size"):
            known = embedding.dynamic_feat_size((height, width))
            rows, columns = known if math.prod(known) == tokens.shape[1] else (rows, columns)
        return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, rows, columns)

    def _check_stride(self, stride: int) -> None:
        """Raise ValueError where timm takes the stride and ignores it."""
        with torch.device("meta"):
            copy, _ = self._create(pretrained=False)
            images = torch.empty(2, 3, *self._made_for)
            features = copy.eval().forward_features(images) if self.map == "head" else copy(images)[-1]
            rows = features.shape[2 if self._channels_first else 1]
        if rows != math.ceil(self._made_for[0] / stride):
            raise ValueError(
                f"timm can't set output_stride={stride} of {self.name}, whose map has {rows} rows for {self._made_for[0]}: leave "
                "out backbone.output_stride, or choose another model"
            )

    def _no_map(self, why: str) -> ValueError:
        return ValueError(
            f"timm's head of {self.name} sees no feature map ({why}): use backbone.map=last_stage, or choose another model"
        )


class TimmEncoder(nn.Module):
    """A model of timm without its classifier: images (N, 3, H, W) to what its own head pools, (N, out_channels).

    Transformers give their class token where their pretrained head looks at it. Needs `pip install "bdbnet[timm]"`.

    Args:
        name: a name of `timm.list_models()`.
        weights: "none", or a file: timm's own of the name (its classifier is left out), or one of a network on this backbone.
        image_size: height and width of the images that it was trained with, where these are not timm's of the name;
            transformers take other sizes where timm supports it.
        global_pool: how the head pools, where it is not timm's default of the name: "avg", "token", ...

    Raises:
        ValueError: timm is not installed, does not know the name, or can't build it so.
        CheckpointError: the file can't be read safely or holds another architecture.
    """

    def __init__(
        self,
        name: str,
        weights: str | Path | None = "none",
        image_size: Sequence[int] | None = None,
        global_pool: str | None = None,
    ) -> None:
        super().__init__()
        TimmBackbone.check_name(name)
        import timm

        self.name = name
        options: dict[str, Any] = {"num_classes": 0} | ({} if global_pool is None else {"global_pool": global_pool})
        if image_size is not None:
            options["img_size"] = tuple(image_size)
        create = functools.partial(timm.create_model, name, **options)
        try:
            self.model, _ = _create(create, is_fixed=cast(Any, timm).get_pretrained_cfg(name).fixed_input_size)
        except (TypeError, AssertionError, ValueError, RuntimeError) as error:
            raise ValueError(f"timm {timm.__version__} can't build {name} with {options} ({error})") from error
        known: Any = self.model
        self.out_channels = int(getattr(known, "head_hidden_size", None) or known.num_features)
        if weights not in (None, "none"):
            load_backbone(self, str(weights))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model(images)
        return features

    def own_keys(self, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
        """The tensors of timm's own file under the keys of this backbone, without the classifier; `source` is not used."""
        import timm

        names: Any = cast(Any, timm.get_pretrained_cfg(self.name)).classifier or ()
        heads = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
        return {f"model.{key}": tensor for key, tensor in state.items() if not key.startswith(heads)}


def _create(create: Callable[..., Any], *, is_fixed: bool) -> tuple[Any, bool]:
    if is_fixed:
        with contextlib.suppress(TypeError):  # an architecture without this option
            return create(dynamic_img_size=True), True
    return create(), not is_fixed


def _has(model: nn.Module, name: str) -> bool:
    """Whether a module is still there, and is not the model itself."""
    try:
        model.get_submodule(name)
    except AttributeError:  # left out with one that holds it
        return False
    return bool(name)


def _grid(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of so many tokens: those nearest to the shape of the image.

    >>> _grid(32, 128, 64), _grid(49, 224, 224)
    ((8, 4), (7, 7))
    """
    rows = [number for number in range(1, tokens + 1) if tokens % number == 0] or [0]
    return min(
        ((row, tokens // row if row else 0) for row in rows), key=lambda size: abs(size[0] * width - size[1] * height)
    )
