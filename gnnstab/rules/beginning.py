"""The learning rate of a run, as it comes: does it raise the loss of the first steps, jump, overshoot, rise without end?"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.rises import OF, Overshoot, lasting_level, rise_of_run
from gnnstab.records.vocabulary import LOSS_FIRST_RISE, OPTIMIZER_LR_JUMP, OPTIMIZER_OUTPUT_MOVE, OPTIMIZER_OVERSHOOT
from gnnstab.rules._tracks import median
from gnnstab.rules.gs601_learning_rate_too_high import LearningRateTooHigh, calm_rate, lower
from gnnstab.rules.gs606_rate_jump import RateJump
from gnnstab.signals.optimisation import FIRST, NEIGHBOURS, WARM_START


class Beginning:
    """Asks GS601 about the losses of the first steps, once each of them is known.

    Args:
        rule: GS601 with the thresholds of the run.
    """

    def __init__(self, rule: LearningRateTooHigh) -> None:
        self._rule = rule
        self._losses: list[float] = []
        self._told: list[Signal] = []

    @property
    def told(self) -> tuple[Signal, ...]:
        """What trial steps and updates have shown so far."""
        return tuple(self._told)

    def moved(self, value: float | None) -> None:
        """The change of the output by one update, over its spread."""
        if value is not None and len(self._losses) <= FIRST:
            self._told.append(Signal(OPTIMIZER_OUTPUT_MOVE, value, source="training"))

    def tried(self, rise: Signal) -> None:
        """How far the loss rose in trial steps from before the first update."""
        self._told.append(rise)

    def lower(self, lr: float | None, of: str = "") -> str:
        """What to do about the rate, which ``of`` describes: down to the one that trial steps found calm, unless it is there by now."""
        if lr is not None and lr < 0:
            return f"Correct the schedule: the learning rate{of} must not fall below 0."
        calm = calm_rate(Signals(kind="trace", layers=(), values=tuple(self._told)))
        return lower(None if calm is not None and lr is not None and 0 < lr <= calm else calm, of=of)

    def loss(self, step: int, loss: float, lr: float | None) -> Iterator[Finding]:
        """The loss of one step; later ones, and those of a run whose step 0 is not known, are not looked at."""
        if step > FIRST or (step > 0 and not self._losses):
            return
        self._losses.append(loss)
        rise = rise_of_run(self._losses)
        if rise is None:
            return
        detail = {
            "first": self._losses[0],
            "lr": lr,
            "above": rise.above,
            "peak": rise.peak,
            "broke": _broke(self._losses, rise.peak),
        }
        signal = Signal(LOSS_FIRST_RISE, rise.largest, None, None, step, "training", detail)
        yield from self._rule.check(Signals(kind="trace", layers=(), values=(signal, *self._told)))


def _broke(losses: Sequence[float], peak: int) -> bool:
    """True where the loss after the largest is not finite: the rise was still going on."""
    return peak + 1 < len(losses) and not math.isfinite(losses[peak + 1])


class Rates:
    """Asks GS606 about a learning rate that jumps.

    A single step of a warm-up is left to the run's end: it is early, no larger than the smallest that counts, and ends no higher than usual.

    Args:
        rule: GS606 with the thresholds of the run.
        usual: The highest rate that is usual for the optimizer; 0 where it is not known.
    """

    def __init__(self, rule: RateJump, usual: float = 0.0) -> None:
        self._rule, self._usual = rule, usual
        self._last: tuple[int, float] = (-1, math.inf)
        self._largest = math.inf

    def rate(self, step: int, lr: float | None) -> Iterator[Finding]:
        """The rate of one step, in order of steps."""
        if lr is None or not 0 < lr < math.inf:
            return
        before, (at, last) = self._largest, self._last
        self._last, self._largest = (step, lr), lr if math.isinf(before) else max(before, lr)
        warms = step <= self._rule.warm_up and lr <= SAME * self._usual and lr <= SAME * self._rule.jump * last
        if lr > before and not warms and step - at <= NEIGHBOURS and step >= WARM_START:
            jump = Signal(OPTIMIZER_LR_JUMP, lr / last, None, None, step, "training", {"before": last, "after": lr})
            yield from self._rule.check(Signals(kind="trace", layers=(), values=(jump,)))


SAME = 1.0001
"""× a limit up to which a rate counts as at it: a schedule multiplies with rounding."""


class Overshoots:
    """Asks GS601 about updates that overshoot.

    Args:
        rule: GS601 with the thresholds of the run.
    """

    def __init__(self, rule: LearningRateTooHigh) -> None:
        self._rule = rule
        self._updates: deque[tuple[int, float]] = deque(maxlen=OF)
        self._last = -1

    def measured(self, update: Overshoot, lr: float | None) -> Iterator[Finding]:
        """Rate times curvature along one update; one that was told before is left out."""
        if update.step <= self._last:
            return
        self._last = step = update.step
        self._updates.append((step, update.value))
        detail = {"lasting": True, "lr": lr, "adaptive": update.adaptive}
        level = lasting_level(list(self._updates))
        yield from self._rule.overshot(Signal(OPTIMIZER_OVERSHOOT, level, None, None, step, "training", detail))


class Climb:
    """Asks GS601 about a rate that goes on rising far above what its optimizer usually has, while the loss has left its best behind.

    Under optimizers whose updates have the size of the rate, curvature is near its limit at every rate that works, and says nothing of the next.

    Args:
        rule: GS601 with the thresholds of the run.
        usual: The rate that the class of the optimizer has by default; 0 where there is none to compare with.
    """

    def __init__(self, rule: LearningRateTooHigh, usual: float) -> None:
        self._rule, self._usual = rule, usual
        self._rate, self._rose = math.inf, -math.inf
        self._losses: deque[float] = deque(maxlen=2 * BLOCK)
        self._rates: deque[float] = deque(maxlen=2 * BLOCK)
        self._best, self._best_rate = math.inf, math.inf

    def loss(self, step: int, loss: float, lr: float | None) -> Iterator[Finding]:
        """The loss and the rate of one step, in order of steps; most runs end here at the second line."""
        if not self._usual or lr is None:
            return
        before, self._rate = self._rate, lr
        if lr > before:
            self._rose = step
        if lr < before or step - self._rose > 2 * BLOCK:
            self._losses.clear()
            self._rates.clear()
            self._best = math.inf
            return
        self._losses.append(loss)
        self._rates.append(lr)
        if len(self._losses) < 2 * BLOCK:
            return
        earlier, latest = (median(part) for part in (list(self._losses)[:BLOCK], list(self._losses)[BLOCK:]))
        if latest < self._best:
            self._best, self._best_rate = latest, lr
        far = lr >= self._rule.far_above * self._usual and lr >= ABOVE * max(self._rates[0], self._best_rate)
        if far and self._best > 0 and min(earlier, latest) >= self._rule.left_behind * self._best:
            self._usual = 0.0
            yield self._rule.climbed(step, lr, latest, self._best, self._best_rate)


BLOCK = 10
"""Losses whose median counts."""

ABOVE = 1.05
"""× the rate of `BLOCK` losses before, and of the best, from which on it rises."""
