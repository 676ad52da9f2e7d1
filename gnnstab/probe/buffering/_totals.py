"""Light-tier numbers of one step on the host: extremes, sums of squares and counts per slot, merged over calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MERGE_AT = 32
"""Parts kept apart before they are merged, so that a step of any number of forwards stays bounded."""

FAINT = 2.0**-86
"""A sum of squares in float32 above which all that vanishes of 2**13 squares below 2**-126 is less than 2**-26 of it."""


@dataclass(slots=True)  # Not frozen, which makes one ten times as dear; nobody changes it.
class Totals:
    """One entry per slot; a slot is the number that `SeriesIds` gave to a series."""

    slots: NDArray[np.int64]
    """(n,) without repetition after `merge`; the same object whenever the same layout comes again."""

    minimum: NDArray[np.floating[Any]]
    maximum: NDArray[np.floating[Any]]
    """(n,) in the format that they were found in."""

    square: NDArray[np.float64]
    """(n,) sums of squares."""

    count: NDArray[np.float64]
    """(n,) number of entries."""

    distinct: bool = True
    """False while a slot may stand in it more than once."""

    exact: bool = True
    """True when the squares were summed where they neither overflow nor vanish."""

    plain: bool = False
    """True when that is known, and that everything is finite."""

    def rows(self) -> tuple[NDArray[np.float64], bool]:
        """(n, 5) minimum, maximum, RMS, count, non-finite (-1: at least one), and whether everything is finite."""
        # One sum answers for all entries: a NaN or an Inf anywhere is still in it.
        if self.plain or (self.exact and math.isfinite(np.add.reduce(self.square))):
            rms = self.square / self.count
            return self._table(np.sqrt(rms, out=rms), 0.0), True
        finite = self.finite()
        return self._table(self._rms(finite), np.where(finite, 0.0, -1.0)), bool(finite.all())

    def _table(self, rms: NDArray[np.float64], non_finite: NDArray[np.float64] | float) -> NDArray[np.float64]:
        table = np.empty((5, len(rms)))
        table[0], table[1], table[2], table[3], table[4] = self.minimum, self.maximum, rms, self.count, non_finite
        rows: NDArray[np.float64] = table.T
        return rows

    def finite(self) -> NDArray[np.bool_]:
        """(n,) whether every entry of the slot is finite: extremes carry NaN and Inf through."""
        finite: NDArray[np.bool_] = np.isfinite(self.minimum) & np.isfinite(self.maximum)
        return finite

    def _rms(self, finite: NDArray[np.bool_]) -> NDArray[np.float64]:
        with np.errstate(all="ignore"):
            root = np.sqrt(self.square / self.count)
        # The squares of a tensor that was reduced in its own precision can leave the range of that precision although
        # its entries do not; the largest entry is then the bound that is still known.
        largest = np.maximum(np.abs(self.minimum), np.abs(self.maximum))
        lost = finite & (~np.isfinite(root) | ((root == 0) & (largest > 0)))
        return np.where(lost, largest, root)


_NOTHING = np.empty(0)
EMPTY = Totals(np.empty(0, np.int64), _NOTHING, _NOTHING, _NOTHING, _NOTHING)
"""Nothing seen."""

_QUIET = Context()
"""Where NumPy warns of nothing; from NumPy 2 on what it warns of belongs to a context."""

if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
    _QUIET.run(np.seterr, all="ignore")

    def quietly(body: Callable[[], object]) -> None:
        """Call ``body``, which may meet NaN and Inf, without a warning; to make an `np.errstate` takes as long as to look for an extreme."""
        _QUIET.copy().run(body)

else:

    def quietly(body: Callable[[], object]) -> None:
        """Call ``body``, which may meet NaN and Inf, without a warning."""
        with np.errstate(all="ignore"):
            body()


def merge(parts: list[Totals]) -> Totals:
    """One entry per slot, in the order in which the slots first appeared."""
    parts = [part for part in parts if len(part.slots)]
    if not parts:
        return EMPTY
    if len(parts) == 1 and parts[0].distinct:
        return parts[0]
    slots = np.concatenate([part.slots for part in parts])
    exact = all(part.exact for part in parts)
    if len(set(slots.tolist())) == len(slots):
        return Totals(
            slots,
            np.concatenate([part.minimum for part in parts]),
            np.concatenate([part.maximum for part in parts]),
            np.concatenate([part.square for part in parts]),
            np.concatenate([part.count for part in parts]),
            exact=exact,
        )
    distinct, first, place = np.unique(slots, return_index=True, return_inverse=True)
    order = np.argsort(first)
    minimum, maximum = np.full(len(distinct), np.inf), np.full(len(distinct), -np.inf)
    square, count = np.zeros(len(distinct)), np.zeros(len(distinct))
    with np.errstate(all="ignore"):
        np.minimum.at(minimum, place, np.concatenate([part.minimum for part in parts]))
        np.maximum.at(maximum, place, np.concatenate([part.maximum for part in parts]))
        np.add.at(square, place, np.concatenate([part.square for part in parts]))
        np.add.at(count, place, np.concatenate([part.count for part in parts]))
    return Totals(distinct[order], minimum[order], maximum[order], square[order], count[order], exact=exact)


def squares(
    data: NDArray[Any], starts: NDArray[np.int64], scratch: NDArray[np.float64]
) -> tuple[NDArray[np.float64], bool]:
    """(n,) sums of squares of the segments of ``data`` that begin at ``starts``, and whether all of it is known to be finite.

    In float32 where none of them comes near the ends of its range, else in float64, where they neither overflow nor vanish.
    ``scratch`` has room for as many entries.
    """
    if data.dtype == np.float32:
        short = scratch.view(np.float32)[: len(data)]
        np.multiply(data, data, out=short)
        square = np.add.reduceat(short, starts)
        # Where there is a NaN, it is both the smallest and the largest; a reduction would take three times as long.
        if square[square.argmin()] > FAINT and square[square.argmax()] < math.inf:
            return square.astype(np.float64), True
    wide = scratch[: len(data)]
    wide[:] = data
    np.multiply(wide, wide, out=wide)
    return np.add.reduceat(wide, starts), False


class StatsAccumulator:
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
        parts, self._parts = self._parts, []
        return merge(parts)

    def clear(self) -> None:
        """Forget everything."""
        self._parts = []
