"""Light-tier numbers of one step on the host: extremes, sums of squares and counts per slot, merged over calls."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_MERGE_AT = 32
"""Folds kept apart before they are merged, so that a step of any number of forwards stays bounded."""


class Totals(NamedTuple):
    """One entry per slot; a slot is the number that `Keys` gave to a series."""

    slots: NDArray[np.int64]
    """(n,) without repetition after `merge`."""

    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    square: NDArray[np.float64]
    """(n,) sums of squares."""

    count: NDArray[np.int64]
    """(n,) number of entries."""

    distinct: bool = True
    """False while a slot may stand in it more than once."""

    def rms(self) -> NDArray[np.float64]:
        """(n,) RMS per slot, NaN for an empty one."""
        with np.errstate(all="ignore"):
            root = np.sqrt(self.square / self.count)
            largest = np.maximum(np.abs(self.minimum), np.abs(self.maximum))
        # The squares of a tensor that was reduced in its own precision can leave the range of that precision although
        # its entries do not; the largest entry is then the bound that is still known.
        lost = np.isfinite(largest) & (~np.isfinite(root) | ((root == 0) & (largest > 0)))
        return np.where(lost, largest, root) if lost.any() else root

    def finite(self) -> NDArray[np.bool_]:
        """(n,) whether every entry of the slot is finite: `amin` and `amax` carry NaN and Inf through."""
        return np.isfinite(self.minimum) & np.isfinite(self.maximum)


EMPTY = Totals(*(np.empty(0, dtype) for dtype in (np.int64, float, float, float, np.int64)))
"""Nothing seen."""


def merge(parts: list[Totals]) -> Totals:
    """One entry per slot, in the order in which the slots first appeared."""
    if not parts:
        return EMPTY
    if len(parts) == 1 and parts[0].distinct:
        return parts[0]
    slots = np.concatenate([part.slots for part in parts])
    distinct, first, place = np.unique(slots, return_index=True, return_inverse=True)
    order = np.argsort(first)
    minimum, maximum = np.full(len(distinct), np.inf), np.full(len(distinct), -np.inf)
    square, count = np.zeros(len(distinct)), np.zeros(len(distinct), np.int64)
    with np.errstate(all="ignore"):
        np.minimum.at(minimum, place, np.concatenate([part.minimum for part in parts]))
        np.maximum.at(maximum, place, np.concatenate([part.maximum for part in parts]))
        np.add.at(square, place, np.concatenate([part.square for part in parts]))
        np.add.at(count, place, np.concatenate([part.count for part in parts]))
    return Totals(distinct[order], minimum[order], maximum[order], square[order], count[order])


class Tally:
    """Collects the parts of one step."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[Totals] = []

    def add(self, part: Totals) -> None:
        """Add what a stage has reduced; empty parts are dropped."""
        if len(part.slots) == 0:
            return
        self._parts.append(part)
        if len(self._parts) >= _MERGE_AT:
            self._parts = [merge(self._parts)]

    def take(self) -> Totals:
        """Everything since the last call, merged."""
        total = merge(self._parts)
        self._parts = []
        return total
