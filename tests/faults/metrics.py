"""Counting: precision, recall, F1 with Wilson intervals, top-1, Jaccard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share, 95 %."""
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, z * z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Score:
    """Counts of one cause."""

    hits: int
    false_alarms: int
    misses: int

    @property
    def precision(self) -> float:
        return self.hits / (self.hits + self.false_alarms) if self.hits + self.false_alarms else math.nan

    @property
    def recall(self) -> float:
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else math.nan

    @property
    def f1(self) -> float:
        total = 2 * self.hits + self.false_alarms + self.misses
        return 2 * self.hits / total if total else math.nan


def score(cause: str, rows: Sequence[tuple[set[str], set[str]]]) -> Score:
    """Counts of one cause over (true causes, accused causes)."""
    return Score(
        hits=sum(cause in truth and cause in said for truth, said in rows),
        false_alarms=sum(cause not in truth and cause in said for truth, said in rows),
        misses=sum(cause in truth and cause not in said for truth, said in rows),
    )


def jaccard(rows: Sequence[tuple[set[str], set[str]]]) -> float:
    """Mean |truth ∩ said| / |truth ∪ said|."""
    return sum(len(t & s) / len(t | s) for t, s in rows if t | s) / max(len(rows), 1)
