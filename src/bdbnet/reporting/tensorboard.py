"""TensorBoard as a dashboard of a run: the sections of W&B, pictures, and hyperparameters beside the final metrics."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from bdbnet.config import ConfigError, flatten
from bdbnet.evaluation.run_log import Outcome, Picture, RunFacts, beside_rows, numbers, summary
from bdbnet.reporting.run_pictures import Shown, as_images, pictures_of, worst_queries


class TensorBoardDashboard(TensorBoardLogger):
    """Lightning's TensorBoard logger that knows what a run of bdbnet is; see `bdbnet.reporting.tensorboard_logger`.

    The axis of every number is the epoch, from 1.  Raises ConfigError where the package tensorboard is missing.
    """

    def __init__(
        self, save_dir: str, name: str, version: int | str, *, sub_dir: str | None, prefix: str, shown: Shown
    ) -> None:
        try:
            import tensorboard  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f'logger=tensorboard needs tensorboard ({error}): pip install "bdbnet[tensorboard]"'
            ) from error
        # Without its own metric, which is -1 until somebody sets it.
        super().__init__(save_dir, name, version, sub_dir=sub_dir, prefix=prefix, default_hp_metric=False)
        self._shown = shown
        self._facts: RunFacts | None = None
        self._epoch = 0

    @rank_zero_only
    def begin(self, facts: RunFacts) -> None:
        """Write down the settings; those that hyperparameters are compared by follow with the result."""
        self._facts = facts
        lines = [f"| {key} | {_cell(value)} |" for key, value in self._settings().items()]
        table = "\n".join(["| setting | value |", "|---|---|", *lines])
        self.experiment.add_text("settings", table)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log what other callbacks measure; the rest comes with the rows."""
        if own := beside_rows(metrics):
            super().log_metrics(own, step)

    @rank_zero_only
    def log_row(self, row: Mapping[str, float]) -> None:
        """Log an epoch."""
        self._epoch = int(row["epoch"])
        super().log_metrics({name: value for name, value in row.items() if name != "epoch"}, self._epoch)

    @rank_zero_only
    def log_pictures(self, name: str, pictures: Sequence[Picture], *, of_images: bool) -> None:
        """Show pictures; see `Dashboard.log_pictures`."""
        if of_images and not self._shows_images():
            return
        shown = as_images(name, pictures)
        for number, (image, _) in enumerate(shown):
            tag = name if len(shown) == 1 else f"{name}/{number + 1}"
            self.experiment.add_image(tag, np.asarray(image), self._epoch, dataformats="HWC")
        self.experiment.add_text(
            f"{name}/captions", "\n".join(f"{i + 1}. {c}" for i, (_, c) in enumerate(shown)), self._epoch
        )

    @rank_zero_only
    def log_outcome(self, outcome: Outcome) -> None:
        """Log the result beside the hyperparameters, pictures, and the table of the worst queries."""
        values = {name: value for name, value in numbers(summary(outcome.result)).items() if "/" in name}
        self.log_hyperparams(self._settings(), values)
        images = self._shows_images()

        def log_pictures() -> None:
            for found in pictures_of(outcome, self._shown, images=images):
                self.log_pictures(found.name, found.pictures, of_images=found.of_images)

        _guarded(log_pictures)
        _guarded(lambda: self._log_worst(outcome, images))

    @rank_zero_only
    def close(self, status: int) -> None:
        """Write what is left. TensorBoard knows no exit status; a run without final metrics was not finished."""
        self.experiment.flush()
        self.experiment.close()

    def _settings(self) -> dict[str, Any]:
        facts = self._facts
        if facts is None:
            return {}
        return {**dict(flatten(facts.settings())), **facts.flat(), "command": facts.command}

    def _shows_images(self) -> bool:
        return self._shown.images_of(self._facts is not None and self._facts.synthetic)

    def _log_worst(self, outcome: Outcome, images: bool) -> None:
        found = worst_queries(outcome, self._shown, images=images)
        if found is None:
            return
        columns = found.columns[2:]
        rows = ["| " + " | ".join(map(_cell, row[2:])) + " |" for row in found.rows]
        table = "\n".join(["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|", *rows])
        self.experiment.add_text("test/worst_queries", table, self._epoch)
        pairs = [[image for image in row[:2] if image is not None] for row in found.rows]
        pictures = [Picture(_beside(pair)) for pair in pairs if pair]
        if pictures:
            self.log_pictures("test/worst_queries", pictures, of_images=True)


def _beside(images: Sequence[Any]) -> np.ndarray:
    """A query and what stood at its rank 1, beside one another: uint8 (H, W, 3)."""
    height = min(image.height for image in images)
    scaled = [
        np.asarray(image.resize((max(1, round(image.width * height / image.height)), height))) for image in images
    ]
    return np.concatenate(scaled, axis=1)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _guarded(log: Callable[[], Any]) -> None:
    """Draw something; a picture that can't be drawn must not cost a training."""
    try:
        log()
    except Exception as error:
        warnings.warn(f"TensorBoard: {type(error).__name__}: {error}; this is left out", stacklevel=2)
