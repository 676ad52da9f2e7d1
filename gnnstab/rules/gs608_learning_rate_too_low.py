"""GS608 learning-rate-too-low."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gnnstab.errors import NotApplicable
from gnnstab.records import Finding, Signals
from gnnstab.records.vocabulary import LOSS, OPTIMIZER_LR_JUMP, OPTIMIZER_OUTPUT_MOVE, OPTIMIZER_SLOW
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import percent


@rule("GS608", "learning-rate-too-low", cause="learning-rate", severity="warning", confidence="high")
class LearningRateTooLow(Rule):
    """The learning rate is so small that the network stays as it was initialised.

    ## What it sees
    At the end of a run whose rate was constant, whose updates moved the output by next to nothing and whose loss stands still: up to twenty steps of
    your optimizer on a copy at 10, 100, … times the rate. A rate at which they are calm and lower the loss by a tenth is the measure.

    ## Why it is unstable
    Nothing is unstable, and nothing is learned. In 16 bits such updates are rounded away altogether (GS503).

    ## What it looks like
    The rate of a recipe for fine-tuning, 2e-7, in a network that starts from scratch: 80 steps lower the loss by 0.03 %, and all is finite.

    ## Fix
    Use the rate that is named, or the optimizer's default.

    ## When it is wrong
    Where the run was meant to leave the weights as they are.

    ## References
    Measured on copies, by the user's own loss; no reference.
    """

    factor: float = threshold(100.0, unit="× the rate", source="heuristic: no search over rates is off by more")
    moves: float = threshold(
        1e-4, unit="× spread of the output, per step", source="derived: ten thousand steps move it by its spread"
    )
    stands: float = threshold(
        0.02, unit="ln(loss)", source="heuristic: the loss of the run has fallen by less than 2 %"
    )
    run: float = threshold(50, unit="steps", source="as GS603: a shorter run may not have begun to learn")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for the run."""
        if signals.kind != "trace":
            raise NotApplicable("a rate is too low for a run that does not move")
        told = next((s.detail for s in signals.find(LOSS) if "best" in s.detail), {})
        constant = any(jump.detail.get("constant") for jump in signals.find(OPTIMIZER_LR_JUMP))
        moved = max((s.value for s in signals.find(OPTIMIZER_OUTPUT_MOVE)), default=math.inf)
        fallen = math.log(told["start"] / told["best"]) if 0 < told.get("best", 0) <= told["start"] else math.inf
        if not constant or moved > self.moves or fallen > self.stands or told["steps"] < self.run:
            return
        for slow in signals.find(OPTIMIZER_SLOW):
            own, better = (-math.expm1(-float(fell)) for fell in slow.detail["fell"])
            lr = float(slow.detail["lr"])
            if slow.value >= self.factor:
                yield self.finding(
                    f"at its rate of {lr:.3g} an update moves the output by {moved:.2g} of its spread, and the loss stands still: on a copy "
                    f"{slow.detail['steps']} steps lower it by {100 * own:.2g} %, at {slow.value * lr:.3g} by {percent(better)}, calmly. Raise "
                    f"the rate to {slow.value * lr:.3g}, or more.",
                    limit=self.factor,
                    signal=slow,
                )
