"""LightningModule that trains: network, losses and optimizer; evaluation is that of `EvaluationModule`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from bdbnet.evaluation.embedder import Embedder
from bdbnet.evaluation.module import EvaluationModule
from bdbnet.evaluation.test_set import TestSet
from bdbnet.training.averaging import WeightAverage
from bdbnet.training.criterion import BranchLosses
from bdbnet.training.objective import ParameterGroups
from bdbnet.training.schedules import LearningRate
from bdbnet.training.step import TrainingStep

#: Where the network's keys are in a checkpoint's state.
_NETWORK = "network."


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        criterion: the losses.
        optimizer: `parameters or groups of them -> Optimizer`.
        schedule: how the learning rate changes during a run; None: not at all.
        backbone_rate: learning rate of the backbone as a factor of the optimizer's; None: the same.
        compile: the training step goes through `torch.compile`, see `TrainingStep`; a text is its mode.
        decay: of the average of the weights, see `WeightAverage`, which is evaluated in their place; None: there is none.
    """

    criterion: BranchLosses
    optimizer: Callable[[ParameterGroups], torch.optim.Optimizer]
    schedule: LearningRate | None = None
    backbone_rate: float | None = None
    compile: bool | str = False
    decay: float | None = None


@dataclass(frozen=True)
class Record:
    """What every checkpoint says about its training.

    Attributes:
        config: the resolved configuration as plain data.
        num_classes: identities that the classifiers know.
        fingerprint: of the dataset that is trained on.
    """

    config: Mapping[str, Any]
    num_classes: int
    fingerprint: str | None = None


class TrainingModule(EvaluationModule):
    """Trains a network by a recipe and evaluates its embeddings.

    Args:
        embedder: of the network that is trained.
        tests: what it is evaluated on, see `EvaluationModule`.
        recipe: losses, optimizer, schedule.
        record: goes into every checkpoint.

    Attributes:
        has_begun: whatever a checkpoint says is restored, and the first step is next.
        average: of the weights, which is evaluated and kept in their place; None: there is none.
    """

    def __init__(self, embedder: Embedder, tests: Sequence[TestSet], recipe: Recipe, record: Record) -> None:
        super().__init__(embedder, tests)
        self.recipe = recipe
        self.record = record
        self.criterion = recipe.criterion
        self.has_begun = False
        self.step = TrainingStep(self.network, self.criterion, recipe.compile)
        self.average = None if recipe.decay is None else WeightAverage(self.network, recipe.decay)

    def on_fit_start(self) -> None:
        for layer in self.network.modules():
            if hasattr(layer, "mask_scope"):
                cast(Any, layer).rank = self.global_rank  # for masks that each rank draws for itself

    def on_train_start(self) -> None:
        if self.average is not None:
            self.average.follow()
        if self.trainer.fit_loop.restarted_mid_epoch:
            self.on_train_epoch_start()  # which Lightning leaves out, then
        self.has_begun = True

    def on_train_epoch_start(self) -> None:
        begin = getattr(self.network, "begin_epoch", None)
        if begin is not None:  # networks whose training has phases
            begin(self.current_epoch, self.trainer.max_epochs)

    def training_step(self, batch: Mapping[str, Tensor], batch_index: int) -> dict[str, Any]:
        loss, parts = self.step(batch)
        values = {"loss": loss.detach()} | {f"loss/{name}": part.detach() for name, part in parts.items()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch["label"]), sync_dist=True)
        return {"loss": loss, "parts": {name: part.detach() for name, part in parts.items()}}

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        if self.average is not None:
            self.average.update()

    def on_validation_epoch_start(self) -> None:
        if self.average is not None:
            self.average.swap()
        super().on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        if self.average is not None:
            self.average.swap()
        super().on_validation_epoch_end()

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """In it the network has the weights that are evaluated: their average, where there is one."""
        return nullcontext() if self.average is None else self.average.applied()

    def parameter_groups(self) -> ParameterGroups:
        """What the optimizer gets: the network's parameters, in groups where their settings differ.

        Parameters of a loss (a learnt boundary) are not decayed. ``rate`` is a factor, which ``configure_optimizers`` applies.
        """
        own = list(self.criterion.parameters())
        if self.recipe.backbone_rate is None and not own:
            return list(self.network.parameters())
        backbone = self.network.backbone_parameters()
        inside = {id(parameter) for parameter in backbone}
        rest = [parameter for parameter in self.network.parameters() if id(parameter) not in inside]
        groups: list[dict[str, Any]] = [  # the rate of the first one is what histories show
            {"params": rest, "rate": 1.0},
            {"params": backbone, "rate": self.recipe.backbone_rate or 1.0},
        ]
        return groups + ([{"params": own, "rate": 1.0, "weight_decay": 0.0}] if own else [])

    def configure_optimizers(self) -> Any:
        optimizer = self.recipe.optimizer(self.parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("rate", 1.0)
        optimizer.register_load_state_dict_post_hook(_lay_out_as_parameters)
        if self.recipe.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.recipe.schedule(optimizer, self._optimizer_steps)}

    def _optimizer_steps(self) -> int:
        """Steps of the whole run; before it has a trainer, where settings are tried out, any number."""
        return 1000 if self._trainer is None else int(self.trainer.estimated_stepping_batches)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["bdbnet"] = {
            "config": self.record.config, "num_classes": self.record.num_classes,
            "fingerprint": self.record.fingerprint, "ranks": self.trainer.world_size,
        }  # fmt: skip
        if self.average is None:
            return
        trained = checkpoint["state_dict"]
        with self.average.applied():
            checkpoint["state_dict"] = trained | self.network.state_dict(prefix=_NETWORK)
        if "optimizer_states" in checkpoint:  # a training can resume from it
            own = {key: trained[_NETWORK + key] for key in self.average.names()}
            checkpoint["averaging"] = {"updates": self.average.updates, "weights": own}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.average is not None:
            kept, state = checkpoint["averaging"], checkpoint["state_dict"]
            self.average.restore({key: state[_NETWORK + key] for key in kept["weights"]}, kept["updates"])
            checkpoint["state_dict"] = state | {_NETWORK + key: tensor for key, tensor in kept["weights"].items()}
        # Evaluated metrics belong to the epoch that was evaluated, not to the one that a run resumes at.
        self.metrics, self.plain_metrics, self.metrics_epoch = {}, None, None
        # How the optimizer does its arithmetic is this run's choice; it has to be known before its state is read.
        own = self.recipe.optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
        for state in checkpoint.get("optimizer_states", []):
            for group in state["param_groups"]:
                if "fused" in group:
                    group["fused"] = own.get("fused")


def _lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give what an optimizer keeps of a parameter, such as Adam's moments, the parameter's memory format.

    A checkpoint may come from a run with another one, and a fused step takes the numbers of both in the order of memory.
    """
    for parameter, state in optimizer.state.items():
        for name, kept in state.items():
            if isinstance(kept, Tensor) and kept.shape == parameter.shape and kept.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=kept.dtype).copy_(kept)
