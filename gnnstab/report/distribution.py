"""The distribution of one head's scores, read from whatever the measurement left behind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnstab.records import Signal
from gnnstab.records.vocabulary import SCORE_MAX, SCORE_MAX_ABS, SCORE_MIN, SCORE_STD

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Distribution:
    """The pre-softmax scores of one head, as finely as they were recorded."""

    head: int | None
    low: float
    high: float
    edges: Array
    """Bin edges of a histogram, shape (bins + 1,); empty when none was recorded."""

    counts: Array
    """Entries per bin, shape (bins,)."""

    quantiles: tuple[tuple[float, float], ...] = ()
    """(percentile 0–100, score), ascending; empty when none were recorded."""

    std: float = math.nan

    @property
    def middle(self) -> float:
        """Mean of the histogram, else the median, else the middle of the range."""
        if len(self.edges) and self.counts.sum() > 0:
            return float(np.average((self.edges[1:] + self.edges[:-1]) / 2, weights=self.counts))
        return dict(self.quantiles).get(50.0, (self.low + self.high) / 2)


def distribution(signals: list[Signal], head: int | None) -> Distribution | None:
    """Put the ``score.*`` numbers of one head together; None when they hold no finite range.

    The finest record wins: ``detail["histogram"]``, then ``detail["percentiles"]``, then minimum and maximum.
    """
    values = {s.name: s.value for s in signals}
    details: dict[str, Any] = {}
    for signal in signals:
        details.update(signal.detail)
    edges, counts = _histogram(details.get("histogram"))
    quantiles = _quantiles(details.get("percentiles"))
    bound = values.get(SCORE_MAX_ABS, math.nan)
    low, high = values.get(SCORE_MIN, -bound), values.get(SCORE_MAX, bound)
    if len(edges):
        low, high = float(edges[0]), float(edges[-1])
    elif quantiles:
        low, high = quantiles[0][1], quantiles[-1][1]
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    return Distribution(head, low, high, edges, counts, quantiles, values.get(SCORE_STD, math.nan))


def _histogram(raw: object) -> tuple[Array, Array]:
    """Read ``{"low": …, "high": …, "counts": (n)}``, bins of one width, or ``{"edges": (n + 1), "counts": (n)}``.

    Anything else, or anything not finite, is no histogram.
    """
    empty = np.empty(0)
    if not isinstance(raw, Mapping):
        return empty, empty
    try:
        counts = np.asarray(raw.get("counts", ()), dtype=np.float64)
        edges = np.asarray(_edges(raw, len(counts)), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return empty, empty
    sound = edges.ndim == counts.ndim == 1 and len(counts) and len(edges) == len(counts) + 1
    if not sound or not (np.isfinite(edges).all() and np.isfinite(counts).all() and edges[-1] > edges[0]):
        return empty, empty
    return edges, counts


def _edges(raw: Mapping[Any, Any], bins: int) -> Any:
    if "low" in raw and "high" in raw:
        with np.errstate(all="ignore"):  # a range wider than the largest number becomes Inf and is refused
            return np.linspace(float(raw["low"]), float(raw["high"]), bins + 1)
    return raw.get("edges", ())


def _quantiles(raw: object) -> tuple[tuple[float, float], ...]:
    """Read ``{"1": …, "50": …}`` (percentile → score)."""
    if not isinstance(raw, Mapping):
        return ()
    try:
        pairs = sorted((float(str(key).lstrip("p")), float(value)) for key, value in raw.items())
    except (TypeError, ValueError):
        return ()
    return tuple(pairs) if all(math.isfinite(value) for _, value in pairs) else ()
