"""Activation maps: where in an image a network looks, per branch, and where two images agree.

A map belongs to the last feature map A (C, h, w) that a branch sees (`EmbeddingNetwork.map_layers`):

- `energy_maps`: the sum over channels of A squared, as in the paper's Figures 1 and 4;
- `class_maps`: what speaks for an identity of the training, from the gradient of its logit (Grad-CAM, Selvaraju et al., ICCV 2017;
  HiResCAM, Draelos and Carin, 2020);
- `similarity_maps`: what two embeddings have in common, position by position.

Views (`flip`, `scales`) are left out: a map is of the image as it is.
"""

import functools
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bdbnet.models import EmbeddingNetwork, FeatureMap, MapLayer

if TYPE_CHECKING:
    from bdbnet.evaluation.embedder import Embedder

#: Methods of `class_maps` that are here; others are those of the package pytorch-grad-cam.
METHODS = ("gradcam", "hirescam")
_OTHERS = {
    "gradcam++": "GradCAMPlusPlus", "xgradcam": "XGradCAM", "layercam": "LayerCAM", "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM", "scorecam": "ScoreCAM", "ablationcam": "AblationCAM",
}  # fmt: skip

Maps = dict[str, np.ndarray]


class MapError(ValueError):
    """A map that a network can't give; the message says why and what to do."""


class _Layer(NamedTuple):
    """A place of a map, and what turns the module's output into one (N, C, h, w)."""

    place: MapLayer
    as_map: Callable[[Tensor], Tensor]


def energy_maps(embedder: "Embedder", images: Tensor, *, tokens: bool = False) -> Maps:
    """Sum over channels of the squared activations: branch -> (N, h, w) float32.

    Args:
        images: prepared, uint8 RGB (N, 3, H, W), see `Embedder.prepare`.
        tokens: of a transformer without a feature map, use the tokens that lie in the image, before its last block.

    Raises:
        MapError: the network has no feature map.
    """
    inputs = _inputs(embedder, images)
    layers = _layers(embedder.network, tokens, inputs)
    with torch.no_grad(), _recorded(layers, as_leaves=False) as found:
        embedder.network.embed(inputs)
    return {name: _array(layers[name].as_map(output).square().sum(1)) for name, output in found.items()}


def class_maps(
    embedder: "Embedder",
    images: Tensor,
    identities: Sequence[int] | None = None,
    *,
    method: str = "gradcam",
    tokens: bool = False,
) -> tuple[Maps, np.ndarray]:
    """What speaks for an identity of the training set: branch -> (N, h, w) float32 of at least 0; and the identities (N,).

    `gradcam` weighs each channel by the mean gradient of the logit and adds up; `hirescam` multiplies gradient and activation
    position by position, and so shows nothing that the logit does not depend on. Both agree behind average pooling. A branch's map
    is that of its own logits.

    Args:
        images: prepared, uint8 RGB (N, 3, H, W).
        identities: for each image one of 0 to C - 1, the identities of the training set in ascending order; None: the likeliest
            by the sum of the branches' logits.
        method: see above, or one of the package pytorch-grad-cam (`pip install "bdbnet[cam]"`).
        tokens: see `energy_maps`.

    Raises:
        MapError: a network without classifiers, an identity that it does not know, an unknown method, no feature map.
    """
    inputs, network = _inputs(embedder, images), embedder.network
    layers = _layers(network, tokens, inputs)
    if method not in METHODS and method not in _OTHERS:
        raise MapError(f"method={method}: choose one of {', '.join([*METHODS, *_OTHERS])}")
    with torch.enable_grad(), _recorded(layers, as_leaves=True) as found:
        outputs = network(inputs)
        logits = {name: output.logits for name, output in outputs.items() if output.logits is not None}
        if not logits:
            raise MapError(
                f"{embedder.origin.source or 'this network'} has no classifiers, which maps of an identity need: give a checkpoint "
                "of bdbnet.train, loaded with its classifiers, or ask for activation or similarity"
            )
        count = min(scores.shape[1] for scores in logits.values())
        chosen = _identities(identities, torch.stack([scores[:, :count] for scores in logits.values()]).sum(0), count)
        maps = {}
        for name, layer in layers.items() if method in METHODS else ():
            own = [logits[output] for output in layer.place.outputs if output in logits]
            if not own:
                continue
            rows = torch.arange(len(chosen), device=inputs.device)
            score = torch.stack([scores[rows, torch.as_tensor(chosen, device=rows.device)] for scores in own]).sum()
            maps[name] = _array(_weighed(found[name], score, layer, by_position=method == "hirescam"))
    return (_of_other_package(network, layers, inputs, chosen, method) if method in _OTHERS else maps), chosen


def similarity_maps(embedder: "Embedder", a: Tensor, b: Tensor, *, tokens: bool = False) -> tuple[Maps, Maps]:
    """Where the images of each pair agree: branch -> (N, h, w) float32 of at least 0, for `a` and for `b`.

    The squared distance of a branch's two embeddings is the sum of their squared norms less twice their inner product. A norm
    belongs to one image alone, so what a pair shares is the inner product; its gradient with respect to the map, times the map, is
    what a position contributes to it. (The gradient of the whole distance vanishes where two embeddings are equal.) Embeddings that
    the embedder's normalisation and the cosine distance scale to unit length are scaled here in the same way, with the lengths held
    constant, so that the contributions of several branches may be added. Negative contributions, which hold the pair apart, are 0.

    Args:
        a, b: prepared, uint8 RGB (N, 3, H, W); image i of `a` is compared with image i of `b`.
        tokens: see `energy_maps`.

    Raises:
        MapError: other numbers of images, no feature map.
    """
    if len(a) != len(b):
        raise MapError(f"similarity compares pairs: {len(a)} images on one side and {len(b)} on the other")
    count, network = len(a), embedder.network
    inputs = torch.cat([_inputs(embedder, a), _inputs(embedder, b)])
    layers = _layers(network, tokens, inputs)
    sides: tuple[Maps, Maps] = {}, {}
    with torch.enable_grad(), _recorded(layers, as_leaves=True) as found:
        parts = torch.split(network.embed(inputs), list(network.branch_dims), dim=1)
        lengths = _lengths(parts, embedder.settings.normalize, embedder.distance_name)
        for name, layer in layers.items():
            own = torch.cat([parts[part] / lengths[part] for part in layer.place.parts], dim=1)
            # The other image's embedding is a constant: each side's map says what it contributes itself.
            fixed = own.detach()
            score = (own * torch.cat([fixed[count:], fixed[:count]])).sum()
            both = _array(_weighed(found[name], score, layer, by_position=True))
            sides[0][name], sides[1][name] = both[:count], both[count:]
    return sides


def _lengths(parts: Sequence[Tensor], normalize: str, distance: str) -> list[Tensor]:
    """What each part of the embedding is divided by before it is compared, (N, 1); constants for gradients."""
    fixed = [part.detach() for part in parts]
    own = [part.norm(dim=1, keepdim=True).clamp_min(1e-12) for part in fixed]
    joint = torch.cat(own, dim=1).norm(dim=1, keepdim=True)
    lengths = {"none": [torch.ones_like(joint)] * len(own), "joint": [joint] * len(own), "per_branch": own}[normalize]
    if distance != "cosine":
        return lengths
    whole = torch.cat([part / length for part, length in zip(fixed, lengths, strict=True)], dim=1)
    return [length * whole.norm(dim=1, keepdim=True).clamp_min(1e-12) for length in lengths]


def half_energy_area(maps: np.ndarray) -> np.ndarray:
    """The least share of a map's area that carries half of its energy: (N, h, w), none negative, to (N,) float64.

    0.5 for a map that is the same everywhere, near 0 for a single peak; NaN for a map of zeros. Within the last position the energy
    counts as evenly spread.

    >>> half_energy_area(np.array([[[1.0, 1.0], [1.0, 1.0]], [[4.0, 0.0], [0.0, 0.0]], [[2.0, 1.0], [1.0, 0.0]]])).tolist()
    [0.5, 0.125, 0.25]
    """
    flat = np.sort(maps.reshape(len(maps), math.prod(maps.shape[1:])).astype(np.float64), axis=1)[:, ::-1]
    running = np.cumsum(flat, axis=1)
    half = running[:, -1:] / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        last = (running < half).sum(axis=1)  # positions that are needed in full
        rows = np.arange(len(flat))
        before = np.where(last > 0, running[rows, np.maximum(last - 1, 0)], 0.0)
        share = (last + (half[:, 0] - before) / flat[rows, np.minimum(last, flat.shape[1] - 1)]) / flat.shape[1]
    return np.where(half[:, 0] > 0, share, np.nan)


def united(maps: Mapping[str, np.ndarray]) -> np.ndarray:
    """The maps of all branches as one, each with the same weight: the mean of their shares of the energy, (N, h, w) float64.

    Raises:
        MapError: branches with maps of other sizes.
    """
    sizes = {one.shape for one in maps.values()}
    if len(sizes) != 1:
        raise MapError(f"branches have maps of other sizes: {', '.join(f'{n} {m.shape[1:]}' for n, m in maps.items())}")
    shares = []
    for one in maps.values():
        total = one.astype(np.float64).sum(axis=(1, 2), keepdims=True)
        shares.append(np.divide(one, total, out=np.zeros(one.shape), where=total > 0))
    mean: np.ndarray = np.mean(shares, axis=0)
    return mean


# Inside


def _inputs(embedder: "Embedder", images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise MapError(f"images of shape {tuple(images.shape)} {images.dtype}: give prepared ones, uint8 (N, 3, H, W)")
    return embedder.preprocessing.normalize(images.to(embedder.device))


def _array(maps: Tensor) -> np.ndarray:
    array: np.ndarray = maps.detach().float().cpu().numpy()
    return array


def _identities(wanted: Sequence[int] | None, scores: Tensor, count: int) -> np.ndarray:
    if wanted is None:
        return np.array(scores.detach().argmax(1).tolist())
    chosen = np.asarray(wanted, np.int64)
    if chosen.shape != (len(scores),):
        raise MapError(f"{chosen.size} identities for {len(scores)} images: give one for each")
    if wrong := [identity for identity in chosen.tolist() if not 0 <= identity < count]:
        raise MapError(f"identity={wrong[0]}: the network was trained on {count} identities, 0 to {count - 1}")
    return chosen


def _weighed(activations: Tensor, score: Tensor, layer: _Layer, *, by_position: bool) -> Tensor:
    """The sum over channels of the map, weighed by the gradient of a score: at each position, or its mean; where above 0."""
    (gradient,) = torch.autograd.grad(score, activations, retain_graph=True)
    gradients, maps = layer.as_map(gradient), layer.as_map(activations)
    weights = gradients if by_position else gradients.mean((2, 3), keepdim=True)
    return (weights * maps).sum(1).relu()


@contextmanager
def _recorded(layers: Mapping[str, _Layer], *, as_leaves: bool) -> Iterator[dict[str, Tensor]]:
    """While it holds, passes through the network put the layers' outputs in the dictionary.

    With `as_leaves` each of them begins a graph of its own: what comes before needs no memory for gradients, and the gradient of
    a branch's map is that of its own head, also where another branch is computed from it.
    """
    found: dict[str, Tensor] = {}

    def keep(_: nn.Module, __: Any, output: Tensor, *, name: str) -> Tensor | None:
        if as_leaves:
            # A module that is the last of two branches has one leaf.
            output = output if output.is_leaf and output.requires_grad else output.detach().requires_grad_()
        found[name] = output
        return output if as_leaves else None

    hooks = [
        layer.place.module.register_forward_hook(functools.partial(keep, name=name)) for name, layer in layers.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _layers(network: EmbeddingNetwork, tokens: bool, inputs: Tensor) -> dict[str, _Layer]:
    """The places of the network's maps.  Raises MapError where it has none."""
    if network.training:
        raise MapError("the network is in training mode: maps are of network.eval()")
    found = {}
    size = (int(inputs.shape[2]), int(inputs.shape[3]))
    shapes = _output_shapes(network, inputs) if not tokens else {}
    for name, place in network.map_layers().items():
        if tokens:
            module, prefix = _token_layer(network)
            found[name] = _Layer(place._replace(module=module), functools.partial(_tokens_as_map, module, prefix, size))
            continue
        shape = shapes[name]
        if len(shape) != 4 or shape[2] * shape[3] == 1:
            offer = _offer(network)
            raise MapError(f"{type(network.backbone).__name__} has no feature map (its output is {shape}): {offer}")
        last = getattr(network.backbone, "num_features", None)
        channels_last = shape[1] != last and shape[3] == last
        found[name] = _Layer(place, _channels_first if channels_last else _as_it_is)
    return found


def _output_shapes(network: EmbeddingNetwork, inputs: Tensor) -> dict[str, tuple[int, ...]]:
    """Shapes of what the branches see; of a backbone with a class token the backbone's is the token's."""
    places = {name: _Layer(place, _as_it_is) for name, place in network.map_layers().items()}
    with torch.no_grad(), _recorded(places, as_leaves=False) as found:
        network.embed(inputs[:1])
    seen: dict[str, Any] = {
        name: output.token if isinstance(output, FeatureMap) else output for name, output in found.items()
    }
    return {name: tuple(output.shape) for name, output in seen.items()}


def _as_it_is(output: Tensor) -> Tensor:
    return output


def _channels_first(output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2)


def _transformer(network: EmbeddingNetwork) -> Any:
    """timm's model with its blocks, or None."""
    model: Any = getattr(network.backbone, "model", network.backbone)
    blocks = getattr(model, "blocks", None)
    return model if isinstance(blocks, nn.Sequential | nn.ModuleList) and hasattr(blocks[-1], "norm1") else None


def _offer(network: EmbeddingNetwork) -> str:
    if _transformer(network) is not None:
        return "tokens=true takes the tokens of its last block instead"
    return "choose a network that pools a map"


def _token_layer(network: EmbeddingNetwork) -> tuple[nn.Module, int]:
    """What comes into the last block's attention: behind it, the class token is all that counts where the head looks at it."""
    model = _transformer(network)
    if model is None:
        raise MapError(
            f"tokens=true: {type(network.backbone).__name__} is no transformer of timm with blocks; leave it out"
        )
    return model.blocks[-1].norm1, int(getattr(model, "num_prefix_tokens", 1))


def _tokens_as_map(module: nn.Module, prefix: int, size: tuple[int, int], output: Tensor) -> Tensor:
    tokens = output[:, prefix:]
    count = tokens.shape[1]
    # Patches are squares: the grid has the shape of the image.
    rows = round(math.sqrt(count * size[0] / size[1]))
    if rows == 0 or count % rows:
        raise MapError(f"{count} tokens do not lie in a grid over images of {size[0]} x {size[1]} pixels")
    return tokens.transpose(1, 2).reshape(len(tokens), -1, rows, count // rows)


class _Logits(nn.Module):
    """A branch's logits alone, as pytorch-grad-cam wants a network."""

    def __init__(self, network: EmbeddingNetwork, outputs: Sequence[str]) -> None:
        super().__init__()
        self.network, self.outputs = network, outputs

    def forward(self, images: Tensor) -> Tensor:
        found = self.network(images)
        logits = [found[name].logits for name in self.outputs if found[name].logits is not None]
        return torch.stack(logits).sum(0)


def _of_other_package(
    network: EmbeddingNetwork, layers: Mapping[str, _Layer], inputs: Tensor, chosen: np.ndarray, method: str
) -> Maps:
    try:
        package: Any = importlib.import_module("pytorch_grad_cam")
        targets: Any = importlib.import_module("pytorch_grad_cam.utils.model_targets")
    except ImportError as error:
        raise MapError(f'method={method} needs the package grad-cam: pip install "bdbnet[cam]"') from error
    maps = {}
    wanted = [targets.ClassifierOutputTarget(int(identity)) for identity in chosen]
    with torch.no_grad():
        having = {name for name, output in network(inputs[:1]).items() if output.logits is not None}
    for name, layer in layers.items():
        if not having & {*layer.place.outputs}:
            continue
        with getattr(package, _OTHERS[method])(
            model=_Logits(network, layer.place.outputs),
            target_layers=[layer.place.module],
            reshape_transform=layer.as_map,
        ) as cam:
            # It upsamples to the image's size, and scales each map to 0 to 1.
            maps[name] = np.asarray(cam(input_tensor=inputs.clone().requires_grad_(), targets=wanted), np.float32)
    return maps
