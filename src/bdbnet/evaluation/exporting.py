"""Export of an embedder to ONNX, OpenVINO or `torch.export`, checked against the embedder before anything is written."""

import contextlib
import importlib
import io
import json
import logging
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bdbnet.config import ConfigError
from bdbnet.datasets import Manifest, load_manifest
from bdbnet.datasets.images import read_image
from bdbnet.files import replaced
from bdbnet.loading.transforms import resize, scale_and_shift
from bdbnet.results import versions, write_atomically
from bdbnet.retrieval import reid_metrics

if TYPE_CHECKING:
    from bdbnet.evaluation.embedder import Embedder

#: Format -> suffix of its file.
FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch_export": ".pt2"}
INPUTS = ("floats", "pixels")
#: Precision -> formats that have it.
PRECISIONS = {"fp32": ("onnx", "openvino", "torch_export"), "fp16": ("onnx", "openvino"), "int8": ("onnx",)}
#: Opsets of ONNX that the exporter writes; 18 is the first whose Resize has antialiasing.
OPSETS = (18, 23)
#: The least cosine similarity between an embedding and that of an exported file in fp32.
LEAST_COSINE = 1 - 1e-5
# Distances nearer to each other than this, relative to the larger, may change places. Resizing in the file rounds one value in some
# hundreds to the next level.
_TIE, _TIE_RESIZED = 1e-4, 1e-2
# Rendered figures on which a file is checked: 104 queries and gallery images of 16 identities, 8 of them distractors, and 12 more.
_FIGURES: dict[str, Any] = {
    "train_identities": 2, "test_identities": 16, "images_per_camera": 2, "cameras": 3, "distractors": 8, "image_size": [128, 64],
    "workers": 1,
}  # fmt: skip
_BATCHES = (1, 16)
_TIMED = 7

Run = Callable[[np.ndarray], np.ndarray]


class ExportError(ValueError):
    """A network that can't be exported as asked, or whose exported file computes something else; nothing is written then."""


@dataclass(frozen=True)
class ExportSettings:
    """What is written.

    Attributes:
        format: `onnx`, `openvino` or `torch_export`.
        input: `floats`, normalised batches (N, 3, H, W) float32, or `pixels`, images (N, H, W, 3) uint8 RGB, which the file
            normalises itself.
        source_size: with `pixels`, height and width of the images that the file resizes (and pads) itself; None: they have
            the network's own size.
        precision: `fp32`, `fp16` (weights and arithmetic of half the size), or `int8` (weights quantised, activations at run
            time).
        opset: version of ONNX's operators.

    Raises:
        ConfigError: a value that can't be used, or a combination that there is not; names the key.
    """

    format: str = "onnx"
    input: str = "floats"
    source_size: tuple[int, int] | None = None
    precision: str = "fp32"
    opset: int = 20

    def __post_init__(self) -> None:
        for key, known in (("format", FORMATS), ("input", INPUTS), ("precision", PRECISIONS)):
            if getattr(self, key) not in known:
                raise ConfigError(f"{key}={getattr(self, key)}: choose one of {', '.join(known)}")
        if self.format not in PRECISIONS[self.precision]:
            there = ", ".join(name for name, formats in PRECISIONS.items() if self.format in formats)
            raise ConfigError(f"precision={self.precision}: format={self.format} has {there}")
        if self.source_size is not None and self.input != "pixels":
            raise ConfigError("source_size= is of images that the file resizes itself: set input=pixels too")
        if not OPSETS[0] <= self.opset <= OPSETS[1]:
            raise ConfigError(f"opset={self.opset}: choose one from {OPSETS[0]} to {OPSETS[1]}")


def format_of(output: str | Path) -> str:
    """The format that the suffix of a file says.  Raises ConfigError for another suffix.

    >>> format_of("model.onnx"), format_of("model.xml")
    ('onnx', 'openvino')
    """
    suffix = Path(output).suffix
    for format, known in FORMATS.items():
        if suffix == known:
            return format
    raise ConfigError(f"output={output}: end it in {', '.join(f'{s} ({f})' for f, s in FORMATS.items())}")


class ExportedNetwork(nn.Module):
    """What an exported file computes: images to embeddings, with an embedder's normalisation, views and scaling.

    Args:
        embedder: of float32 arithmetic, whatever its `precision` says.
        pixels: the input is uint8 (N, H, W, 3) instead of normalised float32 (N, 3, H, W).
        source_size: height and width of pixels that are to be resized, where it is another than the network's.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, embedder: "Embedder", *, pixels: bool, source_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.network = embedder.network
        self.preprocessing, self.settings = embedder.preprocessing, embedder.settings
        self.pixels, self.source_size = pixels, source_size
        scale, shift = scale_and_shift(torch.device("cpu"), self.preprocessing.mean, self.preprocessing.std)
        self.register_buffer("scale", scale.clone().view(3, 1, 1))
        self.register_buffer("shift", shift.clone().view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        from bdbnet.evaluation.embedder import scale_embeddings, views_of

        inputs = self._normalised(images) if self.pixels else images
        views = [view for scale in self.settings.scales for view in views_of(inputs, scale, self.settings.flip)]
        embeddings = [self.network.embed(view) for view in views]
        mean = embeddings[0] if len(views) == 1 else torch.stack(embeddings).mean(0)
        return scale_embeddings(mean, self.network.branch_dims, self.settings.normalize)

    def _normalised(self, images: Tensor) -> Tensor:
        values = images.permute(0, 3, 1, 2).to(torch.float32)
        if self.source_size is not None:
            values = self._resized(values, *self.source_size)
        if self.preprocessing.channel_order == "bgr":
            values = values.flip(1)
        normalised: Tensor = values * self.scale + self.shift
        return normalised

    def _resized(self, values: Tensor, height: int, width: int) -> Tensor:
        """Pad and resize as `Preprocessing.prepare` does, which rounds to whole levels after each of two passes."""
        if self.preprocessing.pad_to_square and height != width:
            side = max(height, width)
            top, left = (side - height) // 2, (side - width) // 2
            values = nn.functional.pad(values, (left, side - width - left, top, side - height - top))
            height = width = side
        rows, columns = self.preprocessing.image_size
        mode = self.preprocessing.interpolation
        options: dict[str, Any] = {} if mode == "nearest" else {"antialias": True, "align_corners": False}
        for size, differs in (((height, columns), columns != width), ((rows, columns), rows != height)):
            if differs:
                resized = nn.functional.interpolate(values, size, mode=mode, **options)
                values = torch.floor(resized + 0.5).clamp(0, 255)  # halves are rounded up
        return values


def export_embedder(
    embedder: "Embedder",
    output: str | Path,
    settings: ExportSettings,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Write an embedder into a file for other programs; returns the report that lies beside it (`output` + `.json`).

    The file is first compared with the embedder on 116 rendered figures. In fp32 every embedding has to have a cosine similarity
    of at least `LEAST_COSINE` with the embedder's own, and every ranking has to be the same up to equal distances; in fp16 and
    int8 what is lost of Rank-1 and mAP is reported.

    Raises:
        ConfigError: an output of another suffix than the format's.
        ExportError: the network can't be exported, the file computes something else, or a package is not installed.
        FileExistsError: the output is there, and `overwrite` is not set.
        OSError: the folder can't be written to.
    """
    place = Path(output).expanduser()
    suffix = FORMATS[settings.format]
    if place.suffix != suffix:
        raise ConfigError(f"output={output}: a file of format={settings.format} ends in {suffix}")
    report_file = place.with_name(place.name + ".json")
    suffixes = [suffix, ".bin"] if settings.format == "openvino" else [suffix]
    there = [path for path in (*map(place.with_suffix, suffixes), report_file) if path.exists()]
    if there and not overwrite:
        raise FileExistsError(f"{there[0]} is there already. Give another output=, or overwrite=true to replace it.")
    device = embedder.device
    embedder.network.to("cpu")
    try:
        with tempfile.TemporaryDirectory(prefix="bdbnet-export-") as folder:
            if progress:
                print(f"writing {settings.format}, {settings.precision} ...")
            made = _write(embedder, Path(folder) / f"model{suffix}", settings)
            if progress:
                print("comparing it with PyTorch on rendered figures ...")
            report = _report(embedder, made, settings)
            place.parent.mkdir(parents=True, exist_ok=True)
            for part in suffixes:
                _copy(made.with_suffix(part), place.with_suffix(part))
            text = json.dumps(report, indent=2) + "\n"
            write_atomically(report_file, text.encode())
    finally:
        embedder.network.to(device)
    written: dict[str, Any] = json.loads(text)
    return written


def in_float32(embedder: "Embedder") -> "Embedder":
    """The embedder in the arithmetic of an exported file."""
    from bdbnet.evaluation.embedder import Embedder

    settings = replace(embedder.settings, precision="32-true")
    return Embedder(embedder.network, embedder.preprocessing, settings, distance=embedder.distance_name)


def load_exported(path: str | Path, format: str) -> Run:
    """An exported file as a function of a batch of its input, on the CPU."""
    path = Path(path)
    if format == "onnx":
        runtime = _package("onnxruntime", "export")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda images: np.asarray(session.run(None, {name: images})[0])
    if format == "openvino":
        core = _package("openvino", "openvino").Core()
        # Exact float32: by default OpenVINO computes in bfloat16 where a processor has it.
        exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = core.compile_model(str(path), "CPU", exact)
        return lambda images: np.asarray(compiled(images)[0])
    program = torch.export.load(path).module()
    return lambda images: np.asarray(program(torch.from_numpy(images)).detach())


def _write(embedder: "Embedder", path: Path, settings: ExportSettings) -> Path:
    """The file in a folder of its own."""
    network = ExportedNetwork(embedder, pixels=settings.input == "pixels", source_size=settings.source_size).eval()
    example = torch.from_numpy(_inputs(embedder, [np.zeros((9, 7, 3), np.uint8)] * 2, settings))
    try:
        with _quietly():
            if settings.format == "torch_export":
                torch.export.save(_program(network, example), path)
                return path
            onnx_file = path.with_suffix(".onnx")
            _write_onnx(network, example, onnx_file, settings)
            if settings.format == "openvino":
                openvino = _package("openvino", "openvino")
                model = openvino.convert_model(str(onnx_file))
                openvino.save_model(model, str(path), compress_to_fp16=settings.precision == "fp16")
            elif settings.precision != "fp32":
                _reduce(onnx_file, settings.precision)
    except (ExportError, ConfigError):
        raise
    except Exception as error:  # exporters raise exceptions of many kinds for what they can't express
        first = str(error).strip().split("\n", 1)[0]
        raise ExportError(
            f"{type(embedder.network).__name__} on {type(embedder.network.backbone).__name__} can't be exported as "
            f"{settings.format}, {settings.precision} ({type(error).__name__}: {first}). Try another format=, opset= or precision="
        ) from error
    if settings.format == "onnx":
        _describe(path, _description(embedder, settings))
    return path


def _program(network: ExportedNetwork, example: Tensor) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(
            network, (example,), dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}}, strict=False
        )


def _write_onnx(network: ExportedNetwork, example: Tensor, path: Path, settings: ExportSettings) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _package(package, "export")
    torch.onnx.export(
        _program(network, example),
        (example,),
        path,
        input_names=["images"],
        output_names=["embeddings"],
        opset_version=settings.opset,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _reduce(path: Path, precision: str) -> None:
    """Half precision, or weights of 8 bits, in place."""
    import onnx

    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(onnx.load(path), keep_io_types=True, disable_shape_infer=True)
        onnx.save(model, path)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    reduced = path.with_suffix(".int8.onnx")
    # Unsigned: ONNX Runtime's integer convolution has no signed weights on CPUs.
    quantize_dynamic(path, reduced, weight_type=QuantType.QUInt8, extra_options={"DefaultTensorType": 1})
    reduced.replace(path)


def _describe(path: Path, description: Mapping[str, Any]) -> None:
    """What a program needs to know, in the file's own metadata."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(
        model,
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()},
    )
    model.producer_name = "bdbnet"
    onnx.save(model, path)


def _description(embedder: "Embedder", settings: ExportSettings) -> dict[str, Any]:
    preprocessing = embedder.preprocessing
    height, width = settings.source_size or preprocessing.image_size
    if settings.input == "pixels":
        images = {"name": "images", "shape": ["N", height, width, 3], "type": "uint8", "content": "RGB from 0 to 255"}
    else:
        images = {
            "name": "images", "shape": ["N", 3, height, width], "type": "float32",
            "content": f"{preprocessing.channel_order.upper()}, (value / 255 - mean) / std, resized to {height} x {width} "
            f"({preprocessing.interpolation}, antialiased)" + (", padded to a square first" if preprocessing.pad_to_square else ""),
        }  # fmt: skip
    return {
        "images": images,
        "embeddings": {"name": "embeddings", "shape": ["N", embedder.dimensions], "type": "float32"},
        "preprocessing": asdict(preprocessing),
        "settings": {**asdict(embedder.settings), "precision": settings.precision},
        "distance": embedder.distance_name,
        "threshold": embedder.threshold,
        "fingerprint": embedder.fingerprint,
        "source": Path(embedder.origin.source).name,
    }


def _report(embedder: "Embedder", path: Path, settings: ExportSettings) -> dict[str, Any]:
    """Compare the file with the embedder.  Raises ExportError where it computes something else."""
    run = load_exported(path, settings.format)
    with tempfile.TemporaryDirectory(prefix="bdbnet-figures-") as folder:
        manifest = load_manifest("synthetic_reid", folder, **_FIGURES)
        pixels = [read_image(file) for file in manifest.paths]
    if settings.source_size is not None:
        pixels = [resize(image, settings.source_size) for image in pixels]
    ours = in_float32(embedder).embed(pixels, batch_size=16, progress=False)
    batch = _inputs(embedder, pixels, settings)
    try:
        found = np.concatenate([run(batch[first : first + 16]) for first in range(0, len(batch), 16)])
    except Exception as error:  # a runtime that can't run the file
        raise ExportError(
            f"the exported file does not run ({type(error).__name__}: {error}); nothing is written"
        ) from error
    tie = _TIE if settings.source_size is None else _TIE_RESIZED
    agreement = compare(ours, found, manifest, embedder.distance_name, tie=tie)
    if not agreement["finite"]:
        raise ExportError("the exported file gives NaN or infinity; nothing is written. Try precision=fp32")
    if settings.precision == "fp32" and not (agreement["least_cosine"] >= LEAST_COSINE and agreement["same_ranking"]):
        raise ExportError(
            f"the exported file computes something else than PyTorch: least cosine similarity {agreement['least_cosine']:.8f} on "
            f"{len(pixels)} images, where at least {LEAST_COSINE} is asked for"
            + ("" if agreement["same_ranking"] else ", and other rankings")
            + "; nothing is written"
        )
    size = path.stat().st_size + (path.with_suffix(".bin").stat().st_size if settings.format == "openvino" else 0)
    state = embedder.network.state_dict().values()
    return {
        **_description(embedder, settings),
        "format": settings.format,
        "opset": settings.opset if settings.format != "torch_export" else None,
        "agreement": agreement,
        "bytes": {"file": size, "pytorch": sum(tensor.numel() * tensor.element_size() for tensor in state)},
        "milliseconds": _timed(embedder, run, batch),
        "threads": torch.get_num_threads(),
        "versions": versions("onnx", "onnxruntime", "openvino"),
    }


def compare(
    ours: np.ndarray, found: np.ndarray, manifest: Manifest, distance: str, *, tie: float = _TIE
) -> dict[str, Any]:
    """How near embeddings (N, D) `found` of the images of a manifest are to `ours`, and what that does to rankings.

    Returns least and mean cosine similarity, whether all queries rank the gallery alike, where distances that differ by less
    than `tie` of themselves may change places, and Rank-1 and mAP of both (of all images, also those of the query's camera).
    """
    if ours.shape != found.shape or not np.isfinite(found).all():
        return {"images": len(ours), "finite": False, "least_cosine": None, "same_ranking": False}
    a, b = ours.astype(np.float64), found.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    # Two embeddings of zeros are the same.
    cosine = np.where(norms > 0, (a * b).sum(1) / np.where(norms > 0, norms, 1), (a == b).all(1).astype(float))
    table = manifest.table
    query, gallery = ((table["split"] == part).to_numpy() for part in ("query", "gallery"))
    labels = table["label"].to_numpy()
    metrics = {}
    for name, embeddings in (("pytorch", ours), ("exported", found)):
        values = reid_metrics(
            embeddings[query], embeddings[gallery], labels[query], labels[gallery], None, None, distance=distance
        )
        metrics[name] = {"rank1": float(values["rank1"]), "mAP": float(values["mAP"])}
    return {
        "images": len(ours),
        "finite": True,
        "least_cosine": float(cosine.min()),
        "mean_cosine": float(cosine.mean()),
        "same_ranking": _ranked_alike(a[query], a[gallery], b[query], b[gallery], distance, tie),
        "metrics": metrics,
    }


def _ranked_alike(
    query: np.ndarray,
    gallery: np.ndarray,
    other_query: np.ndarray,
    other_gallery: np.ndarray,
    distance: str,
    tie: float,
) -> bool:
    from scipy.spatial.distance import cdist

    ours, theirs = cdist(query, gallery, distance), cdist(other_query, other_gallery, distance)
    in_their_order = np.take_along_axis(ours, np.argsort(theirs, axis=1, kind="stable"), axis=1)
    nearest = np.maximum.accumulate(in_their_order, axis=1)
    return bool((nearest - in_their_order <= tie * nearest).all())


def _inputs(embedder: "Embedder", pixels: list[np.ndarray], settings: ExportSettings) -> np.ndarray:
    """What the file is given for images of any size."""
    if settings.source_size is not None:
        return np.stack([resize(image, settings.source_size) for image in pixels])
    prepared = np.stack([embedder.preprocessing.prepare(image) for image in pixels])
    if settings.input == "pixels":
        return prepared
    images = torch.from_numpy(prepared).permute(0, 3, 1, 2)
    return np.ascontiguousarray(embedder.preprocessing.normalize(images).numpy())


def _timed(embedder: "Embedder", run: Run, batch: np.ndarray) -> dict[str, dict[str, float]]:
    """Milliseconds for each image of a batch, PyTorch and the file by turns; the median of some rounds."""
    network = ExportedNetwork(embedder, pixels=batch.dtype == np.uint8).eval()
    size = embedder.preprocessing.image_size
    own = batch if batch.dtype != np.uint8 else np.stack([resize(image, size) for image in batch[: max(_BATCHES)]])

    def in_pytorch(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(network(torch.from_numpy(images)))

    found: dict[str, dict[str, float]] = {}
    for count in _BATCHES:
        seconds: dict[str, list[float]] = {"pytorch": [], "exported": []}
        for _ in range(_TIMED):
            for name, function, images in (("pytorch", in_pytorch, own), ("exported", run, batch)):
                begin = time.perf_counter()
                function(images[:count])
                seconds[name].append(time.perf_counter() - begin)
        found[f"batch_{count}"] = {
            name: round(1000 * statistics.median(times[1:]) / count, 3) for name, times in seconds.items()
        }
    return found


def _copy(made: Path, place: Path) -> None:
    """Put a whole file in its place, or leave what was there."""
    with replaced(place) as file, made.open("rb") as content:
        shutil.copyfileobj(content, file)


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f"the package {name} is not installed: pip install 'bdbnet[{extra}]'") from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what exporters print and log: an error says what is wrong."""
    loggers = [logging.getLogger(name) for name in ("", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
