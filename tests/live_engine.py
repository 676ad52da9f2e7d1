"""A run that the live rules follow, without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from gnnstab.records import Finding, SeriesKey
from gnnstab.rules.live import LiveEngine

SCORE, OUTPUT = SeriesKey("conv", "train", 0, "score"), SeriesKey("conv", "train", 0, "output")


def follow(
    engine: LiveEngine,
    steps: Iterable[int],
    score: Callable[[int], float] = lambda i: 1.0,
    **series: Callable[[int], float],
) -> list[Finding]:
    found = []
    keys = (SCORE, OUTPUT) if "output" in series else (SCORE,)
    for i in steps:
        stats = np.array([score(i), *([series["output"](i)] if "output" in series else [])])
        numbers = {name: series[name](i) for name in ("loss", "grad_norm") if name in series}
        found += engine.update(i, keys, stats, **numbers)
    return found
