"""LightningModule: network + losses + optimiser while training, embeddings + metrics in evaluation."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric

from bdbnet.config import ConfigError
from bdbnet.models import EmbeddingNetwork
from bdbnet.retrieval import Evaluated
from bdbnet.training.criterion import BranchLosses

#: Parameters alone, or groups of them with settings of their own.
ParameterGroups = list[nn.Parameter] | list[dict[str, Any]]

#: Scalings of the concatenated embedding before distances; the paper's is raw.
NORMALIZATIONS = ("none", "joint", "per_branch")


class EvaluationError(RuntimeError):
    """Embeddings that no metric can be computed from; the message says why."""


class ReIDModule(pl.LightningModule):
    """Trains a network and evaluates its embeddings.

    Training and evaluation share this one class, so that every number of every command comes through the same code.

    Args:
        network: see ``EmbeddingNetwork``.
        criterion: the losses; None where the module only evaluates.
        optimizer: ``parameters or groups of them -> Optimizer``.
        backbone_rate: learning rate of the backbone as a factor of the optimizer's; None: the same.
        schedule: ``epoch -> factor on the learning rate``.
        metric: torchmetrics class over the test set (``ReIDMetrics`` or ``RetrievalRecall``).
        config: the resolved configuration as plain data; goes into every checkpoint.
        num_classes: identities that the classifiers know; goes into every checkpoint.
        fingerprint: of the dataset that is trained on; goes into every checkpoint.
        normalize: one of ``NORMALIZATIONS``.
        precision: arithmetic of the embedding in evaluation: ``32-true``, or ``bf16-mixed`` for speed.
        flip: evaluate the mean of the embeddings of each image and its mirror image.
        scales: evaluate the mean of the embeddings of each image resized by these factors; empty: the image as it is.
        compile: run the training step's forward pass through ``torch.compile``.

    Raises:
        ConfigError: an unknown ``normalize`` or ``precision``, or a scale that is no factor above 0.
    """

    def __init__(
        self,
        network: EmbeddingNetwork,
        *,
        metric: Metric,
        config: Mapping[str, Any],
        num_classes: int,
        fingerprint: str | None = None,
        criterion: BranchLosses | None = None,
        optimizer: Callable[[ParameterGroups], torch.optim.Optimizer] | None = None,
        backbone_rate: float | None = None,
        schedule: Callable[[int], float] | None = None,
        normalize: str = "none",
        precision: str = "32-true",
        flip: bool = False,
        scales: Sequence[float] = (),
        compile: bool = False,
    ) -> None:
        super().__init__()
        if normalize not in NORMALIZATIONS:
            raise ConfigError(f"evaluation.normalize={normalize!r}: choose one of {', '.join(NORMALIZATIONS)}")
        if precision not in ("32-true", "bf16-mixed"):
            raise ConfigError(f"evaluation.precision={precision!r}: choose 32-true or bf16-mixed")
        if not all(isinstance(scale, int | float) and 0 < scale < math.inf for scale in scales):
            raise ConfigError(
                f"evaluation.scales={list(scales)}: give a list of factors above 0, such as [1,1.5], or null"
            )
        self.network = network
        self.criterion = criterion
        self.metric = metric
        self.config = config
        self.num_classes = num_classes
        self.fingerprint = fingerprint
        self.normalize = normalize
        self.eval_precision = precision
        self.flip = flip
        self.scales = tuple(scales) or (1.0,)
        self.metrics: dict[str, float] = {}
        self.plain_metrics: dict[str, float] | None = (
            None  # without re-ranking and query expansion, where there was either
        )
        self.metrics_epoch: int | None = None
        self.evaluation_seconds = 0.0
        self.top_k, self.facts = 0, False  # what an evaluation keeps besides metrics, see ``ReIDMetrics.evaluate``
        self.evaluated: Evaluated | None = None  # what was evaluated last
        self._make_optimizer = optimizer
        self._backbone_rate = backbone_rate
        self._schedule = schedule
        # A method, not a submodule: compiled or not, checkpoints have the same keys.
        self._train_forward = torch.compile(network.forward) if compile else network.forward

    def on_fit_start(self) -> None:
        for layer in self.network.modules():
            if hasattr(layer, "mask_scope"):
                layer.rank = self.global_rank  # type: ignore[assignment]  # for masks that each rank draws for itself

    def on_train_epoch_start(self) -> None:
        begin = getattr(self.network, "begin_epoch", None)
        if begin is not None:  # networks whose training has phases
            begin(self.current_epoch, self.trainer.max_epochs)

    def training_step(self, batch: Mapping[str, Tensor], batch_index: int) -> dict[str, Any]:
        assert self.criterion is not None
        loss, parts = self.criterion(self._train_forward(batch["image"]), batch["label"])
        values = {"loss": loss.detach()} | {f"loss/{name}": part.detach() for name, part in parts.items()}
        several = self.trainer.world_size > 1
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch["label"]), sync_dist=several)
        return {"loss": loss, "parts": {name: part.detach() for name, part in parts.items()}}

    def parameter_groups(self) -> ParameterGroups:
        """What the optimizer gets: the network's parameters, in groups where their settings differ.

        Parameters of a loss (a learnt boundary) are not decayed. ``rate`` is a factor, which ``configure_optimizers`` applies.
        """
        own = [] if self.criterion is None else list(self.criterion.parameters())
        if self._backbone_rate is None and not own:
            return list(self.network.parameters())
        backbone = self.network.backbone_parameters()
        inside = {id(parameter) for parameter in backbone}
        rest = [parameter for parameter in self.network.parameters() if id(parameter) not in inside]
        groups: list[dict[str, Any]] = [  # the rate of the first one is what histories show
            {"params": rest, "rate": 1.0},
            {"params": backbone, "rate": self._backbone_rate or 1.0},
        ]
        return groups + ([{"params": own, "rate": 1.0, "weight_decay": 0.0}] if own else [])

    def configure_optimizers(self) -> Any:
        assert self._make_optimizer is not None
        optimizer = self._make_optimizer(self.parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("rate", 1.0)
        if self._schedule is None:
            return optimizer
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def on_validation_epoch_start(self) -> None:
        self.metric.reset()
        self._evaluation_began = time.perf_counter()
        # Images that are query and gallery at once have no role to tell apart.
        self._one_set = bool((self.trainer.datamodule.test_table["split"] == "test").all())  # type: ignore[attr-defined]

    def validation_step(self, batch: Mapping[str, Tensor], batch_index: int) -> None:
        embeddings = self.embed(batch["image"])
        is_query = None if self._one_set else batch["is_query"]
        self.metric.update(embeddings, batch["label"], batch["camera"], is_query, batch["index"])

    def on_validation_epoch_end(self) -> None:
        try:
            # Ranks are still together now: afterwards nothing can be gathered. Files are written by the first one.
            first = self.trainer.is_global_zero
            found: Evaluated = self.metric.evaluate(  # type: ignore[operator]
                top_k=self.top_k if first else 0, facts=self.facts and first
            )
        except ValueError as error:
            raise EvaluationError(f"the embeddings can't be evaluated: {error}") from error
        self.evaluated = found
        zeros = (found.embeddings == 0).all(1)
        if zeros.any():
            rank_zero_warn(
                f"{int(zeros.sum())} of {len(zeros)} test images have an embedding of zeros, which says nothing about them; "
                f"the first is row {int(zeros.int().argmax())} (gallery before queries)"
            )
        plain = found.plain_metrics
        self.metrics = {name: float(value) for name, value in found.metrics.items()}
        self.plain_metrics = None if plain is None else {name: float(value) for name, value in plain.items()}
        self.metrics_epoch = self.current_epoch
        self.evaluation_seconds = time.perf_counter() - self._evaluation_began
        # The same on every rank, which Lightning cannot know.
        self.log_dict(self.metrics, sync_dist=self.trainer.world_size > 1)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Embeddings that are evaluated: (N, 3, H, W) -> (N, D) float32, in ``precision``, scaled as ``normalize`` says.

        With ``flip`` or ``scales`` raw embeddings of all views are averaged first.
        """
        views = [resized for scale in self.scales for resized in self._views(images, scale)]
        mixed = self.eval_precision == "bf16-mixed"
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=mixed):
            embeddings = [self.network.embed(view).float() for view in views]
        mean = embeddings[0] if len(views) == 1 else torch.stack(embeddings).mean(0)
        return scale_embeddings(mean, self.network.branch_dims, self.normalize)

    def _views(self, images: Tensor, scale: float) -> list[Tensor]:
        if scale != 1:
            size = [max(1, round(scale * side)) for side in images.shape[2:]]
            images = nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
        return [images, images.flip(3)] if self.flip else [images]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["bdbnet"] = {
            "config": self.config, "num_classes": self.num_classes, "fingerprint": self.fingerprint
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Evaluated metrics belong to the epoch that was evaluated, not to the one that a run resumes at.
        self.metrics, self.plain_metrics, self.metrics_epoch = {}, None, None


def scale_embeddings(embeddings: Tensor, dims: Iterable[int], normalize: str) -> Tensor:
    """Scale (N, D) embeddings made of parts of ``dims`` columns: not at all, to unit length, or each part to unit length."""
    if normalize == "none":
        return embeddings
    parts = [embeddings] if normalize == "joint" else embeddings.split(list(dims), dim=1)
    return torch.cat([nn.functional.normalize(part) for part in parts], dim=1)
