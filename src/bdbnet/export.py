"""``python -m bdbnet.export``: a trained network as a file for ONNX Runtime, OpenVINO or torch.export, checked first."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bdbnet.config import ConfigError, command
from bdbnet.results import metric_of


@command("export", again="Run the same command again; nothing was left half-written.")
def main(config: DictConfig) -> None:
    if config.checkpoint is None:
        raise ConfigError("checkpoint= is missing: give a network, for example outputs/train/<run>/last.ckpt")
    if config.output is None:
        raise ConfigError("output= is missing: give a file, such as output=model.onnx")
    from bdbnet.evaluation.exporting import ExportSettings, export_embedder, format_of
    from bdbnet.evaluation.load import Wanted, open_embedder, settings_of
    from bdbnet.evaluation.trainer import quiet_libraries

    quiet_libraries()
    size = config.source_size
    settings = ExportSettings(
        config.format or format_of(config.output),
        config.input,
        None if size is None else (int(size[0]), int(size[1])),
        config.precision,
        config.opset,
    )
    wanted = Wanted(
        model=config.get("model"),
        backbone=config.get("backbone"),
        image_size=config.image_size,
        pad_to_square=config.pad_to_square,
        settings=settings_of(config.evaluation),
    )
    embedder = open_embedder(config.checkpoint, wanted, device="cpu")
    report = export_embedder(embedder, config.output, settings, overwrite=config.overwrite, progress=True)
    print(said(report, Path(config.output)))


def said(report: Mapping[str, Any], output: Path) -> str:
    """A report in words: input, agreement, size and speed."""
    images, agreement, size = report["images"], report["agreement"], report["bytes"]
    lines = [
        f"{output}: {report['format']}, {report['settings']['precision']}, {size['file'] / 1e6:.1f} MB (the network's tensors "
        f"{size['pytorch'] / 1e6:.1f} MB)",
        f"input: {images['type']} [{', '.join(map(str, images['shape']))}], {images['content']}",
        f"output: float32 [{', '.join(map(str, report['embeddings']['shape']))}], compared by {report['distance']} distance",
        f"agreement on {agreement['images']} rendered figures: cosine similarity at least {agreement['least_cosine']:.8f}, "
        f"{'the same rankings' if agreement['same_ranking'] else 'other rankings'}",
    ]
    ours, theirs = agreement["metrics"]["pytorch"], agreement["metrics"]["exported"]
    lines.append(
        ", ".join(
            f"{metric_of(name).title} {metric_of(name).number(ours[name])} -> {metric_of(name).text(theirs[name])}"
            for name in ours
        )
    )
    for batch, times in report["milliseconds"].items():
        lines.append(
            f"{batch.replace('_', ' of ')}: {times['exported']:.1f} ms an image, PyTorch {times['pytorch']:.1f} ms "
            f"({report['threads']} thread(s))"
        )
    lines.append(f"report: {output}.json")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
