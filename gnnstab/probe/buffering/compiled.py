"""What a watch records while its layer runs inside a graph of `torch.compile`.

Python does not run there at every step, so there is nothing to count and no list to append to. What does run is tensor
code that was traced once: it keeps running extremes in a preallocated tensor, which is read and reset at the step's
end. Calls of one layer within a step are merged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gnnstab.probe.buffering._totals import EMPTY, Totals
from gnnstab.probe.buffering.series_ids import MODES, SeriesIds

_START = (float("inf"), float("-inf"), 0.0, 0.0)


class CompiledCells:
    """Running minimum, maximum, sum of squares and count of every site of every layer, in every mode."""

    def __init__(self, keys: SeriesIds) -> None:
        self._keys = keys
        self._sites: list[tuple[str, str]] = []
        self._start = torch.tensor(_START, dtype=torch.float64)
        self._array = np.empty((0, 4))
        self._counts = self._array[:, 3]
        self.used = False
        """True once compiled code has written anything."""

        self.seen: set[tuple[str, str]] = set()
        """(layer, site) that were ever written."""

        self.cells = torch.empty(0, 4, dtype=torch.float64)
        """(layers · sites · modes, 4), written by compiled code."""

    def reserve(self, layer: str, sites: Sequence[str]) -> int:
        """Rows for a layer; returns the first. To be called for all layers before `allocate`."""
        first = len(self._sites) * len(MODES)
        self._sites += [(layer, site) for site in sites]
        return first

    def allocate(self) -> None:
        """Make the tensor; from here on it stays where it is."""
        self.cells = self._start.repeat(len(MODES) * len(self._sites), 1)
        self._array = self.cells.numpy()
        self._counts = self._array[:, 3]

    def add(self, first: int, tensor: Tensor, training: bool) -> None:
        """Take a tensor in for the site whose rows begin at ``first``; traced by the compiler, so it may only compute."""
        # The cells are on the CPU; what runs on another device is named as unseen rather than made to wait for it.
        if tensor.numel() == 0 or tensor.device.type != "cpu":
            return
        row = first + 2 * training + torch.is_grad_enabled()
        with torch.no_grad():
            values = tensor.detach()
            low, high = torch.aminmax(values)
            wide = values.double()
            cell = self.cells[row]
            cell[0] = torch.minimum(cell[0], low.double())
            cell[1] = torch.maximum(cell[1], high.double())
            cell[2] = cell[2] + (wide * wide).sum()
            cell[3] = cell[3] + values.numel()

    @property
    def written(self) -> bool:
        """True when compiled code has run since the last `take`."""
        return bool(np.count_nonzero(self._counts))

    def layers(self) -> list[str]:
        """Layers that have run since the last `take`."""
        used = np.flatnonzero(self._array[:, 3]) // len(MODES)
        return list(dict.fromkeys(self._sites[i][0] for i in used.tolist()))

    def take(self) -> Totals:
        """What was written since the last call."""
        used = np.flatnonzero(self._array[:, 3])
        if not len(used):
            return EMPTY
        found = self._array[used]
        self._array[:] = _START
        slots = np.array([self._slot(row) for row in used.tolist()])
        return Totals(slots, found[:, 0], found[:, 1], found[:, 2], found[:, 3].astype(np.int64))

    def _slot(self, row: int) -> int:
        place, mode = divmod(row, len(MODES))
        layer, site = self._sites[place]
        self.seen.add((layer, site))
        return self._keys.slot(layer, MODES[mode], 0, site)
