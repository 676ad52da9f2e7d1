"""Numbers that cross from a device to the host without anybody waiting for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def is_on_host(tensor: Tensor) -> bool:
    """True when the host can read the tensor without waiting for a device."""
    return tensor.is_cpu


class DeviceCopy:
    """Single numbers on their way to the host.

    From a CUDA device they are copied into pinned memory, in the order of the stream that computes them; `result` then
    waits for nothing when it is called a step later. Other devices have no such copy here and are waited for at once.

    Args:
        numbers: Tensors with one entry each, from any devices; what happens to them afterwards does not matter.
    """

    __slots__ = ("_parts", "_size")

    def __init__(self, numbers: Sequence[Tensor]) -> None:
        self._size = len(numbers)
        self._parts: list[tuple[list[int], Tensor, torch.cuda.Event | None]] = []
        by_device: dict[torch.device, list[int]] = {}
        for i, number in enumerate(numbers):
            by_device.setdefault(number.device, []).append(i)
        for device, positions in by_device.items():
            stacked = torch.stack([numbers[i].detach().reshape(()) for i in positions])
            self._parts.append((positions, *_begin_copy(stacked, device)))

    def result(self) -> NDArray[np.float64]:
        """(n,) the numbers in their order."""
        found = np.empty(self._size)
        for positions, host, event in self._parts:
            if event is not None:
                event.synchronize()
            found[positions] = host.double().numpy()
        return found


def _begin_copy(stacked: Tensor, device: torch.device) -> tuple[Tensor, torch.cuda.Event | None]:
    if device.type != "cuda":
        return stacked.cpu(), None
    host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
    host.copy_(stacked, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return host, event
