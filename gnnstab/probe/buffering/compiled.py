"""What a watch records while its layer runs inside a graph of `torch.compile`.

Python does not run there at every step, so there is nothing to count and no list to append to. What does run is tensor
code that was traced once: it keeps running extremes in a preallocated tensor, which is read and reset at the step's
end. Calls of one layer within a step are merged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnstab.probe.buffering._totals import EMPTY, Totals
from gnnstab.probe.buffering.series_ids import MODES, SeriesIds

_START = (float("inf"), float("-inf"), 0.0, 0.0)


class CompiledCells:
    """Running minimum, maximum, sum of squares and count of every site of every layer, in every mode."""

    def __init__(self, keys: SeriesIds) -> None:
        self._keys = keys
        self._sites: list[tuple[str, str]] = []
        self._start = torch.tensor(_START, dtype=torch.float64, device="cpu")
        self._array = np.empty((0, 2, 2, 4))
        self._untouched, self._memory = bytearray(), memoryview(b"")
        self.used = False
        """True once compiled code has written anything."""

        self.seen: set[tuple[str, str]] = set()
        """(layer, site) that were ever written."""

        self.cells = torch.empty(0, 2, 2, 4, dtype=torch.float64, device="cpu")
        """(layers · sites, training, gradients, 4), written by compiled code."""

    def reserve(self, layer: str, sites: Sequence[str]) -> dict[str, int]:
        """Places for the sites of a layer. To be called for all layers before `allocate`."""
        first = len(self._sites)
        self._sites += [(layer, site) for site in sites]
        return {site: place for place, site in enumerate(sites, first)}

    def allocate(self) -> None:
        """Make the tensor; from here on it stays where it is."""
        self.cells = self._start.repeat(len(self._sites), 2, 2, 1)
        self._array = self.cells.numpy()
        self._untouched, self._memory = bytearray(self._array.tobytes()), self._array.data

    def add(self, place: int, tensor: Tensor, training: bool) -> None:
        """Take a tensor in for the site at ``place``; traced by the compiler, so it may only compute."""
        # The cells are on the CPU; what runs on another device is named as unseen rather than made to wait for it.
        if tensor.numel() == 0 or tensor.device.type != "cpu":
            return
        grad = torch.is_grad_enabled()
        with torch.no_grad():
            values = tensor.detach()
            low, high = torch.aminmax(values)
            wide = values.double()
            cell = self.cells[place, int(training), int(grad)]
            cell[0] = torch.minimum(cell[0], low.double())
            cell[1] = torch.maximum(cell[1], high.double())
            cell[2] = cell[2] + (wide * wide).sum()
            cell[3] = cell[3] + values.numel()

    @property
    def written(self) -> bool:
        """True when compiled code has run since the last `take`."""
        # Asked in every step, of the memory as it is: counting what is written costs ten times as much.
        return self._untouched != self._memory

    def layers(self) -> list[str]:
        """Layers that have run since the last `take`."""
        return list(dict.fromkeys(self._sites[i][0] for i in self._used()[0].tolist()))

    def take(self) -> Totals:
        """What was written since the last call."""
        used = self._used()
        if not len(used[0]):
            return EMPTY
        low, high, square, count = self._array[used].T
        self._array[:] = _START
        slots = np.array([self._slot(*place) for place in zip(*(axis.tolist() for axis in used), strict=True)])
        return Totals(slots, low, high, square, count)

    def _used(self) -> tuple[NDArray[np.int64], ...]:
        return np.nonzero(self._array[..., 3])

    def _slot(self, place: int, training: int, grad: int) -> int:
        layer, site = self._sites[place]
        self.seen.add((layer, site))
        return self._keys.slot(layer, MODES[training][grad], 0, site)
