"""GS608 learning-rate-too-low."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from gnnstab.errors import NotApplicable
from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.vocabulary import (
    LOSS,
    OPTIMIZER_LOST_SHARE,
    OPTIMIZER_LR_JUMP,
    OPTIMIZER_OUTPUT_MOVE,
    OPTIMIZER_SLOW,
)
from gnnstab.rules._standing import standing_still
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import percent


@rule("GS608", "learning-rate-too-low", cause="learning-rate", severity="warning", confidence="high")
class LearningRateTooLow(Rule):
    """The learning rate, or a limit of the gradient, is so small that the network stays as it was initialised.

    ## Why it matters
    Nothing is unstable, and nothing is learned: at 2e-7, meant for fine-tuning, 80 steps from scratch lower the loss by
    0.03 %. A limit of .001 on the norm of gradients of norm 0.6 does the same under SGD. In 16 bits such updates are
    rounded away altogether (GS503).

    ## What to do
    Use the rate that is named, or the optimizer's default (Adam's .001 is no rate for Adadelta, whose default is 1); a
    limit near the norms that you log. Step a schedule that is meant for epochs per epoch.

    ## How it is measured
    Whether up to twenty steps of your optimizer on a copy, at a higher rate or without the limit, are calm and lower
    the loss by a tenth, where one of these holds:

    - the schedule has taken the rate below a hundredth of its largest for more than half of the run, in which little
      was learned, or less than twenty steps at the largest rate would add (where that holds of some groups of parameters, the first of them among these, theirs alone is raised);
    - no weight has moved by more than rounding from some step to the end of the run, although gradients came (a rate of 0);
    - a run of constant rate ends with updates that move the output by next to nothing and a loss that stands still,
      or is near that of an output of zeros where all updates of the run together moved the output by a hundredth of its
      spread (what the loss fell by is then the difference of its batches): tried at 10, 100, … times the rate;
    - all updates of the run together moved the output by less than its spread, or its rate still grew when it ended,
      and the loss is still near that of an output of zeros: a hundred times its largest rate, or the first of 10³,
      10⁴, … times that lowers the loss by a tenth, must get more than 25 times as far as that rate, and twice as far as
      the run;
    - the gradients of a run stayed below a tenth of the norm of the first one on a copy, or `diagnose(clip=)` says so:
      steps without the limit must get more than 25 times as far;
    - before a run, the rate is a hundredth or less of the default of its optimizer's class, or of what its schedule
      warms up to, and a step hardly moves the output: the default must get more than 25 times as far.

    ## When it is silent
    Where steps at a higher rate gain nothing. The run may be meant to leave the weights as they are.

    ## Sources
    Measured on copies, by the user's own loss; no reference.
    """

    factor: float = threshold(100.0, unit="× the rate", source="heuristic: no search over rates is off by more")
    moves: float = threshold(
        1e-4, unit="× spread of the output, per step", source="derived: ten thousand steps move it by its spread"
    )
    hardly: float = threshold(
        1e-3,
        unit="× spread of the output, in the first step",
        source="measured: Adam at 1e-5 moves it by .0012 and .0015 where 1e-3 suits",
    )
    stands: float = threshold(
        0.02, unit="ln(loss)", source="heuristic: the loss of the run has fallen by less than 2 %"
    )
    unmoved: float = threshold(
        0.01, unit="× spread of the output, over the run", source="derived: a loss of it falls by hardly more than that"
    )
    spent: float = threshold(
        0.5,
        unit="share of the run",
        source="derived: cosine and linear decay spend .06 and .01 of their steps below a hundredth",
    )
    learned: float = threshold(
        1.0, unit="ln(loss)", source="as for stacks: a run whose schedule has come down has learned by then"
    )
    partly: float = threshold(
        2.0, unit="ln(loss)", source="as GS609: from there on nothing keeps a model from learning"
    )
    crawls: float = threshold(
        0.2, unit="ln(loss)", source="heuristic: the run has taken less than a fifth off its loss"
    )
    learns: float = threshold(0.1, unit="ln(loss)", source="as for a rate at which the loss stands still: a tenth")
    linear: float = threshold(
        25.0,
        unit="× the progress",
        source="derived: far below the rates that suit a model progress grows with the rate, and a quarter of that is asked for",
    )
    untrained: float = threshold(
        0.5, unit="× the loss of zeros", source="heuristic: weights that go on from a training have a lower loss"
    )
    rounded: float = threshold(
        0.5, unit="share of entries", source="as GS503: what 16 bits round away is no matter of the rate"
    )
    updates: float = threshold(8, unit="updates", source="as GS604: a warm-up may begin with a few at a rate of 0")
    run: float = threshold(50, unit="steps", source="as GS603: a shorter run may not have begun to learn")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for the run."""
        yield from self._clipped(signals)
        if signals.kind != "trace":
            yield from self._before(signals)
            return
        rounded = any(s.value > self.rounded for s in signals.find(OPTIMIZER_LOST_SHARE))
        for standing in standing_still(signals, self.updates):
            if standing.detail.get("given") and not rounded:
                rate = standing.detail.get("rate")
                yield self.finding(
                    f"from step {standing.detail.get('since')} on {standing.value:.0f} updates with gradients have moved no weight by more than rounding"
                    f"{'' if rate is None else f': the rate is {rate:.3g}'}. Raise it, or look at the schedule and at what scales the gradients.",
                    limit=self.updates,
                    signal=standing,
                )
                return
        told = next((s.detail for s in signals.find(LOSS) if "best" in s.detail), {})
        rates = next((jump.detail for jump in signals.find(OPTIMIZER_LR_JUMP)), {})
        moved = max((s.value for s in signals.find(OPTIMIZER_OUTPUT_MOVE)), default=math.inf)
        fallen = math.log(told["start"] / told["best"]) if 0 < told.get("best", 0) <= told["start"] else math.inf
        came_down = rates.get("spent", 0.0) > self.spent and fallen < self.partly
        per_step = max((s.value * _over(s, rates) for s in signals.find(OPTIMIZER_OUTPUT_MOVE)), default=math.inf)
        unmoved = per_step * told.get("steps", math.inf) <= self.unmoved and self._untrained(signals)
        stood = rates.get("constant") and moved <= self.moves and (fallen <= self.stands or unmoved)
        warming = rates.get("rising", False) and fallen <= self.learned
        crept = per_step * told.get("steps", math.inf) < 1 and fallen <= self.crawls
        crawled = not came_down and (warming or crept)
        if not (came_down or stood or crawled) or told["steps"] < self.run:
            return
        for slow in signals.find(OPTIMIZER_SLOW):
            if "clip" in slow.detail:
                continue
            own, better = (-math.expm1(-float(fell)) for fell in slow.detail["fell"])
            lr = float(slow.detail["lr"])
            rate = float(slow.detail.get("rate", slow.value * lr))
            further = float(slow.detail.get("furthest", 0.0))
            if slow.value >= self.factor and came_down and (fallen < self.learned or further >= self.learned):
                most = f" (20 steps at {rates['largest']:.3g} by {percent(-math.expm1(-further))})" if further else ""
                fell = (
                    "the loss hardly fell"
                    if fallen < self.learned
                    else f"the loss fell by {percent(-math.expm1(-fallen))} in all"
                )
                groups = slow.detail.get("groups")
                whose = f" of {groups[0]} of {groups[1]} groups of parameters" if isinstance(groups, list) else ""
                yield self.finding(
                    f"the schedule has taken the rate{whose} from {rates['largest']:.3g} to {lr:.3g}, and {percent(rates['spent'])} of the run were spent "
                    f"below a hundredth of it, while {fell}: on a copy {slow.detail['steps']} steps lower it by {100 * own:.2g} %, at "
                    f"{rate:.3g} by {percent(better)}{most}, calmly. Step the schedule less often, or let it end higher.",
                    limit=self.factor,
                    signal=slow,
                )
            elif "groups" in slow.detail:
                continue  # Groups that are meant to be slower than others.
            elif slow.value >= self.factor and stood:
                yield self.finding(
                    f"at its rate of {lr:.3g} an update moves the output by {moved:.2g} of its spread, and the loss stands still: on a copy "
                    f"{slow.detail['steps']} steps lower it by {100 * own:.2g} %, at {slow.value * lr:.3g} by {percent(better)}, calmly. "
                    f"Raise the rate to {slow.value * lr:.3g}, or more.",
                    limit=self.factor,
                    signal=slow,
                )
            elif crawled and (times := self._far_below(slow, fallen)):
                its = "the rates of its warm-up, at the end" if warming else "the rates of its schedule, at most"
                its = "its rate of" if rates.get("constant") else its
                at_hundred = times == self.factor
                reached = float(slow.detail["at_hundred"] if at_hundred else slow.detail["fell"][1])
                yield self.finding(
                    f"at {its} {lr:.3g} the whole run of {told['steps']} steps has lowered the loss by {100 * -math.expm1(-fallen):.2g} %: on a copy "
                    f"{20 if at_hundred else slow.detail['steps']} steps at {times * lr:.3g} lower it by {percent(-math.expm1(-reached))}, calmly. "
                    f"{'Warm up in fewer steps than the run has' if warming else 'Raise the rate'}.",
                    limit=self.factor,
                    signal=replace(slow, value=times),
                )

    def _untrained(self, signals: Signals) -> bool:
        """True where the loss at the end is near that of an output of zeros."""
        return any(s.detail.get("over_zeros", 0.0) >= self.untrained for s in signals.find(OPTIMIZER_SLOW))

    def _clipped(self, signals: Signals) -> Iterator[Finding]:
        """One finding where the gradients of a run were limited to next to nothing, and more of them gets anywhere."""
        for slow in (s for s in signals.find(OPTIMIZER_SLOW) if "clip" in s.detail):
            told = slow.detail
            own, free = (float(fell) for fell in told["fell"])
            if told["over_zeros"] >= self.untrained and free > max(self.linear * own, self.learns):
                limited = (
                    "no gradient of the run had a norm above"
                    if signals.kind == "trace"
                    else "gradients are limited to a norm of"
                )
                yield self.finding(
                    f"{limited} {told['clip']:.3g}, where the loss gives one of {told['norm']:.3g}: a limit, or a "
                    f"factor on the loss, leaves 1/{slow.value:.3g} of it. On a copy {told['steps']} steps of {told['optimizer']} with such gradients lower "
                    f"the loss by {-100 * math.expm1(-own):.2g} %, with whole ones by {percent(-math.expm1(-free))}, calmly. Raise the limit to the norms that you log.",
                    limit=self.factor,
                    signal=slow,
                )

    def _before(self, signals: Signals) -> Iterator[Finding]:
        """One finding where the default rate of the optimizer is not in use, and gets anywhere."""
        tried = signals.find(OPTIMIZER_SLOW)
        if not tried:
            raise NotApplicable("a rate is too low for a run that does not move")
        for slow in tried:
            told = slow.detail
            if "usual" not in told:  # Of a run, and tried at its end, or of a limit.
                continue
            own, better = (float(fell) for fell in told["fell"])
            fresh = told["over_zeros"] >= self.untrained and told["moved"] <= self.hardly
            if slow.value >= self.factor and fresh and better > max(self.linear * own, self.learns):
                name, usual = told["optimizer"], float(told["usual"])
                yield self.finding(
                    f"the rate of {name} is {told['lr']:.3g}, and its default is {usual:.3g}: a step moves the output by {told['moved']:.2g} of its "
                    f"spread, and on a copy {told['steps']} steps lower the loss by {-100 * math.expm1(-own):.2g} %, at {usual:.3g} by "
                    f"{percent(-math.expm1(-better))}, calmly. Raise the rate.",
                    limit=self.factor,
                    signal=slow,
                )

    def _far_below(self, slow: Signal, fallen: float) -> float:
        """A factor on the rate, a hundred or more, that gets so much further that the rate stands far below those that matter; 0 for none."""
        tried = slow.detail
        own, better = (float(n) for n in tried["fell"])
        if float(tried.get("over_zeros", 0)) < self.untrained:
            return 0.0
        enough = max(self.linear * own, 2 * fallen, self.learns)
        if float(tried.get("at_hundred", 0)) > enough:
            return self.factor
        return slow.value if slow.value > self.factor and better > enough else 0.0


def _over(moved: Signal, rates: Mapping[str, Any]) -> float:
    """What turns the move of one update into that of a usual one: those of a warm-up grow with its rate."""
    return float(rates.get("over_first", math.inf)) if moved.detail.get("first") else 1.0
