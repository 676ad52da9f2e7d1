"""What a few steps on a copy did."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gnnstab.records.rises import Rise, rise_of


@dataclass(frozen=True, slots=True)
class Trial:
    """What a few steps on a copy did."""

    losses: tuple[float, ...]
    """Mean loss over the batches before the first step and after each; inf from the step that broke it."""

    moved: float
    """Change of the output in the first step over its spread (over nodes or graphs); NaN where it has none."""

    @property
    def rise(self) -> Rise | None:
        """How far the loss rose; None where losses are not positive, which have no ratio, unless one is not finite."""
        if not all(math.isfinite(value) for value in self.losses):
            return Rise(math.inf, len(self.losses) - 1, len(self.losses) - 1)
        return rise_of(self.losses)

    @property
    def calm(self) -> bool:
        """True when no loss rose by more than a quarter."""
        return self.rise is None or self.rise.above == 0

    @property
    def fall(self) -> float:
        """ln(first / smallest loss); 0 where losses are not positive, which have no ratio."""
        first, best = self.losses[0], min(self.losses)
        return math.log(first / best) if 0 < best <= first < math.inf else 0.0

    @property
    def lost(self) -> float:
        """The largest loss after the lowest, over the lowest: what the steps had reached and did not keep."""
        lowest = min(self.losses)
        return max(self.losses[self.losses.index(lowest) :]) / lowest if lowest > 0 else math.nan
