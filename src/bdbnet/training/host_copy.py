"""`HostCopy`: a tensor's values on the host, without waiting for the device before they are needed."""

from typing import Any, cast

import torch
from torch import Tensor


class HostCopy:
    """A copy of a tensor that is made while the device works on; `value` waits until it is complete."""

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.to("cpu", non_blocking=True)
        self._made: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._made = cast(Any, torch.cuda).Event()
            cast(Any, self._made).record()

    @property
    def value(self) -> Tensor:
        """The copy, on the CPU."""
        if self._made is not None:
            self._made.synchronize()
        return self._copy
