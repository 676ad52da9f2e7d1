"""Which steps are recorded, and how fully: at fixed intervals, or as often as a share of the run's time allows."""

from __future__ import annotations

import math
import time

_FULL_SHARE = 0.25
"""Part of a budget that is kept for the full tier."""

_SETTLE = 8
"""Steps between two adaptations."""

_MEMORY = 0.2
"""Weight of the newest step in the running means."""


class Schedule:
    """Decides at the beginning of every step.

    Args:
        full_every: Steps between two steps of the full tier, 0 for none.
        budget: Largest share of the run's own time that recording may take; None for no limit. Then the intervals
            adapt to what recording costs here, and the light tier may leave steps out.
    """

    def __init__(self, full_every: int = 50, budget: float | None = None) -> None:
        self.full_every = full_every
        self.light_every = 1
        self.budget = budget
        self.clock: list[float] | None = None if budget is None else [0.0]
        """Seconds spent in hooks since the last end of a step, added to by the hooks; None when nobody asks."""

        self._force = False
        self._boundary = time.perf_counter()
        self._run = math.nan
        self._light = math.nan
        self._full = math.nan

    def force(self) -> None:
        """Make the next step one of the full tier."""
        self._force = True

    def choose(self, step: int) -> tuple[bool, bool]:
        """(light, full) for this step."""
        full = self._force or (self.full_every > 0 and step % self.full_every == 0)
        self._force = False
        return full or step % self.light_every == 0, full

    def ended(self, step: int, own: float, light: bool, full: bool) -> None:
        """A step has ended, ``own`` seconds of it were spent at its end by the recorder."""
        if self.clock is None or self.budget is None:
            return
        now = time.perf_counter()
        own += self.clock[0]
        self.clock[0] = 0.0
        self._run = _mean(self._run, max(now - self._boundary - own, 0.0))
        self._boundary = now
        if full:
            self._full = _mean(self._full, own)
        elif light:
            self._light = _mean(self._light, own)
        if step % _SETTLE == _SETTLE - 1:
            self._adapt(self.budget * self._run)

    def _adapt(self, allowed: float) -> None:
        if math.isnan(self._light) or allowed <= 0:
            return
        self.light_every = max(1, math.ceil(self._light / ((1 - _FULL_SHARE) * allowed)))
        extra = self._full - self._light
        if self.full_every and extra > 0:
            self.full_every = max(self.light_every, math.ceil(extra / (_FULL_SHARE * allowed)))


def _mean(old: float, new: float) -> float:
    return new if math.isnan(old) else (1 - _MEMORY) * old + _MEMORY * new
