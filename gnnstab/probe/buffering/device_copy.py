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
    """Numbers on their way to the host.

    From a CUDA device they are copied into pinned memory, in the order of the stream that computes them; `result` then
    waits for nothing when it is called a step later. Other devices have no such copy here and are waited for at once.

    Args:
        numbers: Dense tensors from any devices, in most cases of one entry each; what happens to them afterwards does not
            matter.
    """

    __slots__ = ("_parts", "_sizes")

    def __init__(self, numbers: Sequence[Tensor]) -> None:
        self._parts: list[tuple[list[int], Tensor, torch.cuda.Event | None]] = []
        self._sizes = [number.numel() for number in numbers]
        by_device: dict[torch.device, list[int]] = {}
        for i, number in enumerate(numbers):
            by_device.setdefault(number.device, []).append(i)
        for device, positions in by_device.items():
            own = [numbers[i].detach().reshape(-1) for i in positions]
            self._parts.append((positions, *_begin_copy(own[0] if len(own) == 1 else torch.cat(own), device)))

    def result(self) -> NDArray[np.float64]:
        """(n,) all entries, in the order of the tensors."""
        found: list[NDArray[np.float64]] = [np.empty(0)] * len(self._sizes)
        for positions, host, event in self._parts:
            if event is not None:
                event.synchronize()
            numbers = host.double().numpy()
            if len(self._parts) == 1:
                return numbers
            ends = np.cumsum([self._sizes[i] for i in positions])
            for i, part in zip(positions, np.split(numbers, ends[:-1]), strict=True):
                found[i] = part
        return np.concatenate(found) if found else np.empty(0)


def _begin_copy(flat: Tensor, device: torch.device) -> tuple[Tensor, torch.cuda.Event | None]:
    if device.type != "cuda":
        return flat.to("cpu", copy=True), None
    host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
    host.copy_(flat, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return host, event
