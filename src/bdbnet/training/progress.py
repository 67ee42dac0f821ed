"""Progress of a training: a table with a row for each epoch and, in a terminal, a bar below it."""

import shutil
import sys
import time
from collections.abc import Mapping, Sized
from typing import Any, NoReturn, cast

import pytorch_lightning as pl
import torch
from tqdm import tqdm

from bdbnet.evaluation.progress import EvaluationProgress
from bdbnet.results import headline_metrics, is_metric, metric_heads, metric_of
from bdbnet.training.callbacks import History
from bdbnet.training.module import TrainingModule

#: Columns of every table and their least widths; those of the metrics follow.
_COLUMNS = {"epoch": 5, "loss": 8, "lr": 7, "images/s": 8, "memory": 8}


class TrainingProgress(EvaluationProgress):
    """A row for each epoch under a header: mean loss, learning rate, images per second, memory, metrics where evaluated.

    In a terminal one bar over all epochs is below the rows, so that the time left is that of the run, and another one for each
    evaluation; it fits 80 columns, and on a wider terminal shows the parts of the loss too. Where the output is not a terminal
    (a log file, a CI run), there is no bar and the rows end with the time left. `history.csv` has all that a row has, and more.

    Args:
        history: the callback whose rows are shown; it stands before this one.
        seconds_between: least seconds between two refreshes of the bar; each reads the losses back from the device.
    """

    def __init__(self, history: History, seconds_between: float = 0.5) -> None:
        super().__init__()
        self.history = history
        self.seconds_between = seconds_between
        self._bar: tqdm[NoReturn] | None = None
        self._refreshed = self._epoch_began = self._run_began = 0.0
        self._images = self._first_epoch = 0
        self._widths: dict[str, int] = {}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._first_epoch, self._run_began = trainer.current_epoch, time.perf_counter()
        self.on_train_epoch_start(trainer)  # which a run that resumes within an epoch does not call
        metrics = headline_metrics(cast(TrainingModule, module).tests[0].metric_names)
        heads = dict(zip(_COLUMNS, _COLUMNS)) | dict(zip(metrics, metric_heads(metrics)))
        if not self.live:
            heads["left"] = "left"
        least = _COLUMNS | {"epoch": 2 * len(str(trainer.max_epochs)) + 1, "left": 8}
        self._widths = {name: max(least.get(name, 0), 5, len(head)) for name, head in heads.items()}
        self.print(self._line(heads))
        if self._first_epoch == 0 and self.history.before is not None:
            self.print(self._line({"epoch": f"0/{trainer.max_epochs}", **self._evaluated(self.history.before)}))
        if self.live:
            batches, epochs = int(trainer.num_training_batches), cast(int, trainer.max_epochs)
            self._bar = tqdm(
                total=batches * epochs, initial=batches * self._first_epoch, unit="step", dynamic_ncols=True, leave=False,
                bar_format="{desc}{percentage:3.0f}%|{bar:12}| {elapsed}<{remaining}{postfix}",
            )  # fmt: skip

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._epoch_began, self._images = time.perf_counter(), 0
        if self._bar is not None:
            self._bar.set_description(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", refresh=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(cast(Sized, batch["label"])) * trainer.world_size
        if self._bar is None:
            return
        self._bar.n = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1
        now = time.perf_counter()
        if now - self._refreshed < self.seconds_between:
            return
        self._refreshed = now
        speed = self._images / (now - self._epoch_began)
        parts = "".join(f"  {name} {float(value):.3f}" for name, value in outputs["parts"].items())
        text = f"loss {float(outputs['loss']):.3f}  {speed:,.0f} images/s"
        wide = len(text + parts) + 55 <= shutil.get_terminal_size().columns
        self._bar.set_postfix_str(text + parts if wide else text, refresh=False)
        self._bar.refresh()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        row = self.history.rows[-1]
        epoch = int(row["epoch"])
        seconds = time.perf_counter() - self._run_began
        left = seconds / (epoch - self._first_epoch) * (cast(int, trainer.max_epochs) - epoch)
        cells = {
            "epoch": f"{epoch}/{trainer.max_epochs}",
            "loss": f"{row['loss']:.3f}",
            "lr": f"{row['learning_rate']:.1e}",
            "images/s": f"{row['images_per_second']:,.0f}",
            "memory": _memory(module.device),
            "left": tqdm.format_interval(max(0.0, left)),
        }
        self.print(self._line(cells | self._evaluated(row)))

    def on_train_end(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(self, *_: Any) -> None:
        self.on_train_end()
        super().on_exception(*_)

    def _evaluated(self, values: Mapping[str, float]) -> dict[str, str]:
        """The metrics that have a column, as far as they were evaluated."""
        return {
            name: metric_of(name).number(values[name]) for name in self._widths if is_metric(name) and name in values
        }

    def _line(self, cells: Mapping[str, str]) -> str:
        """Cells below their heads, to the right; blank where there is none."""
        return "  ".join(cells.get(name, "").rjust(width) for name, width in self._widths.items()).rstrip()


def _memory(device: torch.device) -> str:
    """Most memory so far: of a GPU what PyTorch reserved on it, else of this process. A dash where the system doesn't say."""
    if device.type == "cuda":
        size = torch.cuda.max_memory_reserved(device)
    else:
        try:
            import resource
        except ImportError:  # Windows
            return "-"
        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"{size / 2**30:.1f} GiB"
