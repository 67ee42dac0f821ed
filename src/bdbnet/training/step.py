"""What a training step computes before the backward pass: normalising, erasing, network, losses; compiled where asked for."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any, Literal, cast

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bdbnet.config import is_ours
from bdbnet.loading import normalize
from bdbnet.loading.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize_in_a_graph, scale_and_shift
from bdbnet.models import EmbeddingNetwork
from bdbnet.training.criterion import BranchLosses
from bdbnet.training.distributed import all_agree, world_size

Losses = tuple[Tensor, dict[str, Tensor]]
#: What is compiled: everything as one graph; network and losses as one each, between which the ranks exchange embeddings; the
#: network alone, beside a loss that can't be a graph; nothing.
Plan = Literal["whole", "two parts", "network", "nothing"]


class TrainingStep:
    """Images and labels of a batch to the loss and its parts.

    The first batch tries a compiled step out, forward and backward, and puts everything back. What does not compile is left
    uncompiled, and so is what has gradients that are not finite there, where uncompiled they are; this is said once. On one
    process all is one graph. On several, the embeddings that they exchange part it in two. A loss that can't be a graph,
    because it draws numbers on the host or lists triplets, runs beside the compiled network.

    Args:
        network: that is trained.
        criterion: its losses.
        compile: `False`, `True`, or a mode of `torch.compile`: `reduce-overhead` records CUDA graphs.
        backend: of `torch.compile`.

    Attributes:
        plan: what is compiled; None before the first batch.
    """

    def __init__(
        self,
        network: EmbeddingNetwork,
        criterion: BranchLosses,
        compile: bool | str = False,
        *,
        backend: str = "inductor",
    ) -> None:
        self._network, self._criterion = network, criterion
        self._mode = compile if isinstance(compile, str) else None
        self.plan: Plan | None = None if compile else "nothing"
        if compile:  # what earlier trainings of this process compiled would count against the limit of recompilations
            torch.compiler.reset()
        # Functions, not modules: compiled or not, checkpoints have the same keys.
        settings: dict[str, Any] = {"backend": backend, "dynamic": False}
        if backend == "inductor":
            settings["mode"] = self._mode
        self._whole = torch.compile(self._compute_all, fullgraph=True, **settings) if compile else self._compute_all
        self._losses = torch.compile(criterion.total, fullgraph=True, **settings) if compile else criterion.total
        self._outputs = torch.compile(self._compute_outputs, **settings) if compile else self._compute_outputs
        self._counters: list[tuple[Any, Tensor]] | None = None

    def __call__(self, batch: Mapping[str, Tensor]) -> Losses:
        """The total loss and its parts.

        Args:
            batch: `image`, uint8 (N, 3, H, W) with `erased` (N, R, 4), or float32, normalised already; `label` (N,).
        """
        images, labels = batch["image"], batch["label"]
        erased = batch.get("erased")
        if self.plan is None:
            self.plan = self._choose_plan(images, erased, labels)
        if self._mode == "reduce-overhead" and self.plan != "nothing":
            self._keep_counters()
            cast(Any, torch.compiler).cudagraph_mark_step_begin()
        try:
            loss, parts = self._run(self.plan, images, erased, labels)
        except Exception as error:
            # A later batch may ask for another graph. One rank can't leave the plan alone: it would miss the others' exchanges.
            if self.plan == "nothing" or world_size() > 1 or not type(error).__module__.startswith("torch._dynamo"):
                raise
            _say(f"torch.compile fails at a later step: {_first_line(error)}\nThe training continues without it")
            self.plan = "nothing"
            loss, parts = self._run(self.plan, images, erased, labels)
        if self._mode == "reduce-overhead":  # the next step writes into the memory of this one's results
            parts = {name: part.detach().clone() for name, part in parts.items()}
        return loss, parts

    def _run(self, plan: Plan, images: Tensor, erased: Tensor | None, labels: Tensor) -> Losses:
        if plan == "nothing":
            ready = normalize(images, erased) if images.dtype == torch.uint8 else images
            return cast(Losses, self._criterion(self._network.forward(ready.to(self._network.dtype)), labels))
        scale, shift = scale_and_shift(images.device, IMAGENET_MEAN, IMAGENET_STD)
        if plan == "whole":
            return self._whole(images, erased, scale, shift, labels)
        outputs = self._outputs(images, erased, scale, shift)
        if plan == "network":
            return cast(Losses, self._criterion(outputs, labels))
        return self._losses(outputs, labels, *self._criterion.of_all_ranks(outputs, labels))

    def _compute_outputs(self, images: Tensor, erased: Tensor | None, scale: Tensor, shift: Tensor) -> dict[str, Any]:
        if images.dtype == torch.uint8:
            images = normalize_in_a_graph(images, erased, scale, shift)
        return self._network.forward(images.to(self._network.dtype))

    def _compute_all(
        self, images: Tensor, erased: Tensor | None, scale: Tensor, shift: Tensor, labels: Tensor
    ) -> Losses:
        outputs = self._compute_outputs(images, erased, scale, shift)
        return self._criterion.total(outputs, labels, *self._criterion.of_all_ranks(outputs, labels))

    def _choose_plan(self, images: Tensor, erased: Tensor | None, labels: Tensor) -> Plan:
        reason = self._failure("whole" if world_size() == 1 else "two parts", images, erased, labels)
        if reason is None:
            return "whole" if world_size() == 1 else "two parts"
        if not all_agree(not _is_no_graph(reason), images.device):
            failure = self._failure("network", images, erased, labels)
            if failure is None:
                _say(
                    f"torch.compile: the step can't be one graph ({_first_line(reason)}); the loss {self._criterion.name} runs "
                    "beside the compiled network"
                )
                return "network"
            reason = failure
        _say(
            f"torch.compile fails: {_first_line(reason)}\nThe training continues without it; trainer.compile=false leaves it out "
            "from the start, TORCHDYNAMO_VERBOSE=1 shows more"
        )
        return "nothing"

    def _failure(self, plan: Plan, images: Tensor, erased: Tensor | None, labels: Tensor) -> Exception | None:
        """Why a plan can't be followed on one of the ranks; None where it can."""
        failure: Exception | None = None
        finite = True
        try:
            finite = self._has_finite_gradients(plan, images, erased, labels)
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError) or is_ours(error):
                raise
            failure = error
        if not all_agree(failure is None, images.device):
            return failure or RuntimeError("it fails in another process")
        if all_agree(finite, images.device):
            return None
        # On all ranks: layers that take statistics of all wait for one another.
        with torch.compiler.set_stance("force_eager"):
            finite = self._has_finite_gradients(plan, images, erased, labels)
        if not all_agree(finite, images.device):
            return None
        return ArithmeticError("compiled, the gradients are nan or infinite, uncompiled they are not")

    def _has_finite_gradients(self, plan: Plan, images: Tensor, erased: Tensor | None, labels: Tensor) -> bool:
        """Of a trial that is put back; the backward pass is compiled, too."""
        with self._as_before(images.device):
            loss = self._trial(plan, images, erased, labels)
            wanted = [p for root in (self._network, self._criterion) for p in root.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        return all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)

    def _trial(self, plan: Plan, images: Tensor, erased: Tensor | None, labels: Tensor) -> Tensor:
        """A loss to differentiate."""
        if plan == "whole":
            return self._run(plan, images, erased, labels)[0]
        # Without the exchange of embeddings, in which a rank would wait for one whose compilation has failed.
        scale, shift = scale_and_shift(images.device, IMAGENET_MEAN, IMAGENET_STD)
        outputs = self._outputs(images, erased, scale, shift)
        if plan == "network":  # the loss, which is not compiled, may remember what it has seen
            return torch.stack([part.float().sum() for part in tree_leaves(outputs) if part is not None]).sum()
        embeddings, every_label = self._criterion.of_own_rank(outputs, labels)
        several = {name: embedding.repeat(world_size(), 1) for name, embedding in embeddings.items()}
        return self._losses(outputs, labels, several, every_label.repeat(world_size()))[0]

    @contextmanager
    def _as_before(self, device: torch.device) -> Iterator[None]:
        """Put buffers, random numbers and what a loss remembers back in the end."""
        places = [
            (module, name) for root in (self._network, self._criterion) for module in root.modules()
            for name, buffer in module._buffers.items() if buffer is not None
        ]  # fmt: skip
        held = [(module, name, cast(Tensor, module._buffers[name])) for module, name in places]
        values = [buffer.clone() for _, _, buffer in held]
        remembered = [(module, _copies(vars(module))) for module in self._criterion.modules()]
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            try:
                yield
            finally:
                with torch.no_grad():
                    for (module, name, buffer), value in zip(held, values):
                        module._buffers[name] = buffer.copy_(value)
                for module, attributes in remembered:
                    vars(module).update(attributes)

    def _keep_counters(self) -> None:
        """Bring the drop layers' counters back to memory of their own: the graph's next run writes over its results."""
        if self._counters is None:
            layers = [layer for layer in self._network.modules() if hasattr(layer, "mask_scope")]
            self._counters = [(layer, cast(Any, layer).step) for layer in layers]
        for layer, own in self._counters:
            if layer.step is not own:
                own.copy_(layer.step)
                layer.step = own


def _copies(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a module that a loss may use as its memory, such as a queue and the place in it."""
    return {
        name: value.clone() if isinstance(value, Tensor) else copy(value)
        for name, value in attributes.items()
        if isinstance(value, (Tensor, int, float, list, dict, set)) and not name.startswith("_")
    }


def cache_folder() -> str:
    """Where the inductor keeps what it has compiled, for this run and later ones; `TORCHINDUCTOR_CACHE_DIR` sets it."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return os.environ.get("TORCHINDUCTOR_CACHE_DIR") or str(cast(Any, cache_dir)())


def _is_no_graph(error: Exception) -> bool:
    """Whether something could not be traced, rather than compiled."""
    return type(error).__module__.startswith("torch._dynamo") and not hasattr(error, "inner_exception")


def _first_line(error: Exception) -> str:
    error = getattr(error, "inner_exception", error)  # what a backend raised
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)
