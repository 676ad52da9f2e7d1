"""From finished arms to a verdict."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from gnnstab.characters import counted
from gnnstab.verification._arms import ArmResult
from gnnstab.verification.targets import Goal

NO_EFFECT = 0.25
"""Share of the way to the threshold below which a fix is said to have no effect."""

WORSE_SIGNAL = -0.15
"""A signal that moves away from its threshold by more than this share of the way has been made worse."""

TOLERANCE = 0.1
"""ln(loss with / loss without) up to which a short training is called not worse: 10 %."""

FEWEST = 3
"""Pairs of trainings below which chance is not told from an effect: their 95 % interval says nothing."""

BY_HEART = 0.01
"""Share of the loss at the start below which a training has learnt what it was shown: what is left is noise of the optimizer."""

LEARNT = 0.5
"""Share of the loss at the start above which a training has hardly learnt: a better constant answer comes that far as well."""

SAME = 0.1
"""Relative difference up to which two arms show the same number."""

MAJORITY = 0.8
"""Share of the seeds in which a threshold must be crossed."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Arms of the same seeds, without and with the fix."""

    before: tuple[ArmResult, ...]
    after: tuple[ArmResult, ...]
    by_chance: bool = True
    """False where every seed is known to give the same training, so that one pair says all."""
    redrawn: bool = False
    """True where the fix takes what the weights as given have learned, perhaps of the very batches that are kept from the training here."""

    @property
    def too_few(self) -> bool:
        """True where chance plays a part and the trained pairs are fewer than `FEWEST`."""
        return self.by_chance and sum(r.final is not None for r in self.after) < FEWEST

    def values(self, which: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """The goal's signal per seed; ``which`` is ``before`` or ``after``."""
        return np.array([r.value for r in getattr(self, which)], dtype=np.float64)

    @property
    def new_codes(self) -> tuple[str, ...]:
        """Codes that fire with the fix in most seeds, and without it in fewer than half.

        Not new are those that follow from one that fires without it, and those whose number stood there without it as
        well: what lies behind a cured fault is then seen, and was not made.
        """
        return tuple(code for code in self._fire_now() if not self._stood(code))

    @property
    def unmasked(self) -> tuple[str, ...]:
        """Codes that fire with the fix alone, although their numbers stood there without it."""
        return tuple(code for code in self._fire_now() if self._stood(code))

    def _fire_now(self) -> list[str]:
        without = Counter(code for r in self.before for code in r.codes)
        many, few = MAJORITY * len(self.after), 0.5 * len(self.before)
        with_fix = Counter(c for r in self.after for c in r.codes if without[r.follows.get(c, "")] < max(few, 1))
        return sorted(c for c, n in with_fix.items() if n >= many and without[c] < few)

    def _stood(self, code: str) -> bool:
        """True where the rule found the same number, up to `SAME` of it, in most arms without the fix."""
        pairs = zip(self.before, self.after, strict=True)
        found = [(b.numbers.get(code, math.nan), a.numbers.get(code, math.nan)) for b, a in pairs]
        return _mostly(abs(after - before) <= SAME * abs(before) for before, after in found)


def crossing(pairs: Pairs, goal: Goal) -> bool:
    """True when the goal's signal crosses with margin, and its rule is silent, in most seeds."""
    return _mostly(goal.crossed(r.value) and goal.code not in r.codes for r in pairs.after)


def _mostly(of_seeds: Iterable[bool]) -> bool:
    good = list(of_seeds)
    return bool(good) and sum(good) >= MAJORITY * len(good)


def fires_before(pairs: Pairs, goal: Goal) -> bool:
    """True when most arms without the fix are not healthy, so that there is something to cure."""
    ill = [goal.code in r.codes or not goal.crossed(r.value) for r in pairs.before]
    return sum(ill) >= 0.5 * len(ill)


def effect(pairs: Pairs, goal: Goal) -> float:
    """Median over seeds of `Goal.effect`; NaN when it has no meaning."""
    shares = [goal.effect(b, a) for b, a in zip(pairs.values("before"), pairs.values("after"), strict=True)]
    finite = [s for s in shares if math.isfinite(s)]
    return float(np.median(finite)) if finite else math.nan


def spread(pairs: Pairs, goal: Goal) -> float | None:
    """Standard deviation over the seeds of the signal with the fix, on the scale of distances."""
    values = np.array([goal.scaled(v) for v in pairs.values("after")])
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1)) if finite.size > 1 else None


def loss_change(pairs: Pairs, which: str = "final") -> tuple[float, float] | None:
    """95 % interval of the mean of ln(loss with / loss without) over paired seeds; None without trained pairs, or with too few.

    ``which`` is ``final``, the end of the training, ``unseen``, features that it has not met, or ``best``, the lowest loss on these. A run that broke off
    counts as an infinite loss: (−inf, −inf) when the fix keeps it alive, (inf, inf) when the fix kills it.
    """
    trained = [(getattr(b, which), getattr(a, which)) for b, a in zip(pairs.before, pairs.after, strict=True)]
    complete = [(b, a) for b, a in trained if b is not None and a is not None]
    if not complete or (pairs.by_chance and len(complete) < FEWEST):
        return None
    broken_before = sum(not math.isfinite(b) for b, _ in complete)
    broken_after = sum(not math.isfinite(a) for _, a in complete)
    if broken_before != broken_after:
        end = math.inf if broken_after > broken_before else -math.inf
        return end, end
    changes = np.array([_log_ratio(b, a) for b, a in complete if math.isfinite(b) and math.isfinite(a)])
    if changes.size == 0:
        return None
    if changes.size == 1 or np.ptp(changes) == 0:
        return float(changes[0]), float(changes[0])
    low, high = stats.t.interval(0.95, changes.size - 1, loc=changes.mean(), scale=stats.sem(changes))
    return float(low), float(high)


def _log_ratio(before: float, after: float) -> float:
    """ln(after / before); a loss that may be negative is compared by its relative difference instead."""
    if before > 0 and after > 0:
        return math.log(after / before)
    size = max(abs(before), abs(after))
    return 0.0 if size == 0 else (after - before) / size


def by_signal(pairs: Pairs, goal: Goal) -> tuple[str, str] | None:
    """Verdict and reason as far as the signal alone decides; None when the training has to."""
    if not fires_before(pairs, goal):
        return "inconclusive", (
            f"{goal.code} does not fire in the arms without the fix, fresh or after a short training, so that nothing could be "
            "cured there: the symptom comes with longer training, or with your own initialisation (gnnstab.verify(…, factory=…) draws it)"
        )
    covered, new = effect(pairs, goal), pairs.new_codes
    if crossing(pairs, goal):
        if new:
            return "made-worse", f"the signal crosses its threshold, and {', '.join(new)} fires instead"
        return None
    if _mostly(goal.crossed(r.value) for r in pairs.after):
        where = f" on {goal.layer}" if goal.layer else ""
        return "inconclusive", f"the signal crosses its threshold{where}, and {goal.code} still fires on another layer"
    other_side = _other_side(pairs, goal)
    if other_side:
        return "made-worse", other_side + (f", and {', '.join(new)} fires instead" if new else "")
    silent = sum(goal.code in r.codes for r in pairs.after) <= (1 - MAJORITY) * len(pairs.after)
    overshoots = math.isfinite(covered) and covered > 1 and silent
    if overshoots and new:
        return "made-worse", f"it overshoots: {goal.code} is silent, and {', '.join(new)} fires instead"
    if math.isfinite(covered) and covered < WORSE_SIGNAL:
        return "made-worse", f"the signal moves away from its threshold ({-covered:.0%} of the distance)"
    if new:
        return "made-worse", f"the signal does not cross its threshold, and {', '.join(new)} fires besides"
    if not math.isfinite(covered):
        alive = "the signal is no number in one of the arms" if not goal.counts_events else "non-finite values remain"
        return ("no-effect" if goal.counts_events else "inconclusive"), alive
    if covered < NO_EFFECT:
        return "no-effect", f"the signal covers {max(covered, 0.0):.0%} of the way to its threshold"
    return (
        "inconclusive",
        f"the signal covers {min(covered, 1.0):.0%} of the way to its threshold and does not pass it with margin in most seeds",
    )


def _other_side(pairs: Pairs, goal: Goal) -> str:
    """In words, when a gradient that exploded now vanishes or the other way round; else empty."""
    if goal.healthy is None:
        return ""
    before, after = float(np.median(pairs.values("before"))), float(np.median(pairs.values("after")))
    low, high = goal.healthy
    if before > high and after < low:
        return f"it overshoots into vanishing: the gradient ratio goes from {before:.2g} to {after:.2g}"
    if before < low and after > high:
        return f"it overshoots into explosion: the gradient ratio goes from {before:.2g} to {after:.2g}"
    return ""


def by_training(pairs: Pairs) -> tuple[str, str]:
    """Verdict and reason when the signal crosses: the short training must not be worse.

    What is kept from the training, where anything is, alone can speak against a fix, at the end and at its best, where
    something was learned without the fix; that it is not worse may be shown by either loss. The reasons stand in docs/decisions/0006.
    """
    if pairs.too_few and pairs.after:
        seeds = counted(len(pairs.after), "seed", "does", "do")
        return "inconclusive", (
            f"the signal crosses its threshold, but {seeds} not tell whether the short training is worse: "
            f"that takes at least {FEWEST}"
        )
    own, (unseen, at_best) = loss_change(pairs), _kept(pairs)
    if own is None:
        return "inconclusive", "the signal crosses its threshold, but no short training was finished in both arms"
    if all(map(stands, (*pairs.before, *pairs.after))):
        return (
            "inconclusive",
            "the signal crosses its threshold, but no training changes the loss, with or without the fix",
        )
    if unseen is None and any(r.unseen is not None for r in pairs.after):
        return "inconclusive", (
            "the signal crosses its threshold, but with and without the fix the loss on what was kept from the training is no number: look at the "
            "second half of the batches"
        )
    (low, high), where = (own, "") if unseen is None else (unseen, f" on what it has not seen{at_best}")
    if unseen is None and high > TOLERANCE and _by_heart(pairs):
        return "inconclusive", (
            "the signal crosses its threshold, but with and without the fix the training learns all it is shown by heart, and which is better "
            "there says nothing: pass four batches or more, half of which are kept to judge by"
        )
    if own[0] <= TOLERANCE < low < math.inf and (why := _unfair(pairs)):
        return "inconclusive", f"the signal crosses its threshold, but {why}"
    if low > TOLERANCE:
        worse = "breaks off" if math.isinf(low) else f"ends {math.expm1(low):.0%} or more above{where}"
        return "made-worse", f"the signal crosses its threshold, but the short training {worse}"
    if (low + high) / 2 > TOLERANCE or min(high, own[1]) > TOLERANCE:
        return (
            "inconclusive",
            f"the signal crosses its threshold, but the short training may be worse{where}: more seeds or steps would tell",
        )
    if not _mostly(_learns(r) for r in pairs.after):
        return (
            "inconclusive",
            "the signal crosses its threshold, but the short training with the fix ends above its start",
        )
    if high > TOLERANCE:
        where = ", on average on what it has not seen either"
    return (
        "confirmed",
        f"the signal crosses its threshold with margin, nothing new fires, the short training is not worse{where}",
    )


def _by_heart(pairs: Pairs) -> bool:
    """True where the trainings of most seeds end at next to nothing of their start, with and without the fix."""
    return _mostly(
        r.start is not None and r.final is not None and 0 <= r.final <= BY_HEART * r.start
        for r in (*pairs.before, *pairs.after)
    )


def _kept(pairs: Pairs) -> tuple[tuple[float, float] | None, str]:
    """The change of the loss on what is kept from the training, at the end or, where that speaks against the fix, at its best, and words for the latter.

    A training that goes on to learn by heart what it is shown gets ever surer of what it has not seen, right or wrong.
    """
    end, best = loss_change(pairs, "unseen"), loss_change(pairs, "best")
    return (end, "") if end is None or best is None or end[0] <= TOLERANCE else (best, ", at its best")


def _unfair(pairs: Pairs) -> str:
    """Why a higher loss on what is kept from the training does not speak against the fix; empty where it does."""
    if not any(r.start is not None and r.final is not None and r.final <= LEARNT * r.start for r in pairs.before):
        return (
            "without the fix the training learns next to nothing, and what learns nothing cannot learn by heart either: "
            "what it has not seen says nothing; pass more batches"
        )
    if pairs.redrawn:
        return (
            "the weights as given may know the batches that were kept from the training, which it ends above on, and the fix takes what they "
            "have learned: pass batches that your model was not trained on"
        )
    return ""


def too_wide(pairs: Pairs) -> bool:
    """True where the mean change of the loss that decides is none for the worse, and no interval is narrow enough to show it."""
    own, (unseen, _) = loss_change(pairs), _kept(pairs)
    if own is None:
        return False
    low, high = own if unseen is None else unseen
    return (low + high) / 2 <= TOLERANCE < min(high, own[1])


def stands(result: ArmResult) -> bool:
    """True for a training that ends at exactly the loss that it began with: no update changes it."""
    return result.start is not None and result.start == result.final


def _learns(result: ArmResult) -> bool:
    """False for a training that ends above where it began: what it has not seen may then be equal and mean nothing."""
    if result.start is None or result.final is None:
        return True
    return math.isfinite(result.final) and _log_ratio(result.start, result.final) <= TOLERANCE
