"""Which steps are recorded, and how fully: at fixed intervals, or as often as a share of the run's time allows."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque

_FULL_SHARE = 0.4
"""Part of a budget that is kept for the full tier."""

_SETTLE = 8
"""Steps between two adaptations, and steps of a kind that are needed before their times are compared."""

_WINDOW = 32
"""Steps of a kind whose times are remembered."""

_DENSE = 16
"""Steps that a long beginning records in any case: more than the live rules wait for before they judge a series."""

_SPARSE = 8
"""Most steps between two of the light tier in the rest of it."""

_LEAP = 10.0
"""× the largest gradient before, from which on a step that was left out is worth another look; as GS603 counts a spike."""

_LONGEST = 1000
"""Most steps between two of the light tier, however small the budget."""


class Schedule:
    """Decides at the beginning of every step.

    With a budget, the price of a recorded step is measured in two ways and the higher one counts: the time that is
    spent inside the recorder, which misses what calling its hooks costs, and how much longer a recorded step takes than
    the steps before it that were left out, which misses nothing but is blurred by all else that the machine does.

    Args:
        full_every: Steps between two steps of the full tier, 0 for none; with a budget the fewest.
        budget: Largest share of the run's own time that recording may take; None for no limit. Then the intervals
            adapt to what recording costs here, and the light tier leaves steps out.
        beginning: Steps in which the light tier is never sparser than `_SPARSE`, whatever it costs, and the full tier comes
            first and last alone. A step after a loss or a gradient larger than all before it is recorded there.
    """

    def __init__(self, full_every: int = 50, budget: float | None = None, beginning: int = 0) -> None:
        self.full_every = full_every
        self.light_every = 1
        self.budget = budget
        self.clock: list[float] | None = None if budget is None else [0.0]
        """Seconds spent in hooks since a step ended last, added to by the hooks; None when nobody asks."""

        self.held = ""
        """Why every step is recorded although a budget would leave some out; empty when it does."""

        self._beginning = beginning
        self._dense = _DENSE if beginning > _SETTLE else _SETTLE
        self._fewest = full_every
        self._force = self._unusual = False
        self.leapt = False
        """True when the gradient of the step that was heard of last is many times all before."""

        self._closely = 0
        """Steps before this one are all recorded."""

        self._largest = {"loss": -math.inf, "gradient": -math.inf}
        self._next_light = self._next_full = 0
        self._boundary = time.perf_counter()
        self._light = _Kind()
        self._left_out = _Kind()
        self._longer: deque[float] = deque(maxlen=_WINDOW)
        self._full = math.nan

    def force(self) -> None:
        """Make the next step one of the full tier."""
        self._force = True

    def hold(self, reason: str) -> None:
        """Record every step from here on."""
        self.held = self.held or reason
        self.light_every, self._next_light = 1, 0

    def watch(self, step: int) -> None:
        """Something was found: record every step from this one on, for as many as the live rules look back, and look in full once more."""
        self._closely = step + _WINDOW
        self._next_full = min(self._next_full, step + _DENSE)

    def hear(self, step: int, loss: float | None = None, gradient: float | None = None) -> None:
        """Take in the loss or the gradient's norm of a step: in the beginning, the one after a new largest is recorded."""
        self.leapt = gradient is not None and gradient > _LEAP * self._largest["gradient"] > 0
        for kind, value in (("loss", loss), ("gradient", gradient)):
            if value is not None and value > self._largest[kind]:
                self._largest[kind], self._unusual = value, step < self._beginning

    def choose(self, step: int) -> tuple[bool, bool]:
        """(light, full) for this step."""
        full = self._force or (self.full_every > 0 and step >= self._next_full)
        light = full or self._unusual or self.budget is None or step >= self._next_light or step < self._closely
        self._force = self._unusual = False
        if full and self.full_every:
            # Fixed intervals keep to their multiples, also after an event.
            late = step % self.full_every if self.budget is None else 0
            self._next_full = step - late + self.full_every
            if self.budget is not None and step < self._beginning:
                self._next_full = max(self._next_full, self._beginning)
        if light:
            most = _SPARSE if step < self._beginning else _LONGEST
            self._next_light = step + min(self.light_every, most)
        return light, full

    def ended(self, step: int, light: bool, full: bool, now: float, own: float) -> None:
        """A step has ended at ``now`` (`time.perf_counter`), and all that the recorder did for it took ``own`` seconds."""
        if self.budget is None:
            return
        wall, self._boundary = now - self._boundary, now
        if full:
            # The first one also bears what every operation costs at its first use.
            self._full = min(own, 0.7 * self._full + 0.3 * own) if self._full > own else own
        elif light:
            self._light.add(wall, own)
            if self._left_out:
                self._longer.append(wall - self._left_out.lately())
        else:
            self._left_out.add(wall, own)
        if step % _SETTLE == _SETTLE - 1 and step + 1 >= self._dense and self._light and not self.held:
            self._adapt(self.budget)

    def _adapt(self, budget: float) -> None:
        floor = self._left_out.own() if self._left_out else 0.0
        price = self._price(floor)
        step = self._left_out.wall() if self._left_out else self._light.wall() - price
        allowed = budget * max(step - floor, 0.0) - floor
        for_light = (1 - _FULL_SHARE) * allowed
        every = _LONGEST if for_light <= price / _LONGEST else max(1, math.ceil(price / for_light))
        # Until both kinds of steps were seen, some are left out for the sake of the comparison.
        self.light_every = max(every, 1 if self._compared else 2)
        if self.full_every and not math.isnan(self._full):
            rest, extra = allowed - price / self.light_every, max(self._full - self._light.own(), 0.0)
            longest = _LONGEST * self._fewest
            self.full_every = longest if rest <= extra / longest else max(self._fewest, math.ceil(extra / rest))

    @property
    def _compared(self) -> bool:
        return len(self._longer) >= _SETTLE

    def _price(self, floor: float) -> float:
        """Seconds that a step of the light tier takes longer than one that is left out."""
        inside = max(self._light.own() - floor, 1e-9)
        # Calling the hooks costs about as much again as what they do.
        return max(inside, statistics.median(self._longer)) if self._compared else 2 * inside


class _Kind:
    """The latest steps of one kind: seconds from end to end, and seconds inside the recorder."""

    __slots__ = ("_own", "_wall")

    def __init__(self) -> None:
        self._wall: deque[float] = deque(maxlen=_WINDOW)
        self._own: deque[float] = deque(maxlen=_WINDOW)

    def __bool__(self) -> bool:
        return bool(self._wall)

    def add(self, wall: float, own: float) -> None:
        self._wall.append(wall)
        self._own.append(own)

    def wall(self) -> float:
        return statistics.median(self._wall)

    def own(self) -> float:
        return statistics.median(self._own)

    def lately(self) -> float:
        """Median of the latest times: a run may become slower or faster as it goes on."""
        return statistics.median(list(self._wall)[-_SETTLE:])
