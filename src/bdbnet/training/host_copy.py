"""`HostCopy`: a tensor's values on the host, without waiting for the device before they are needed."""

from typing import Any, cast

import torch
from torch import Tensor


class HostCopy:
    """A copy of a tensor of any shape that is made while the device works on; `value` waits until it is complete.

    Attributes:
        pending: the copy, on the CPU, as far as it is made.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.pending = tensor.to("cpu", non_blocking=True)
        self._made: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._made = cast(Any, torch.cuda).Event()
            cast(Any, self._made).record()

    def wait(self) -> None:
        """Return when the copy is complete."""
        if self._made is not None:
            self._made.synchronize()

    @property
    def value(self) -> Tensor:
        """The copy, on the CPU."""
        self.wait()
        return self.pending
