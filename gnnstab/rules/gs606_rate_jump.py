"""GS606 rate-jump."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.records import Finding, Signals
from gnnstab.records.vocabulary import OPTIMIZER_LR_JUMP, OPTIMIZER_MOMENTUM
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import largest


@rule("GS606", "rate-jump", cause="learning-rate", severity="warning", confidence="medium")
class RateJump(Rule):
    """The learning rate rises tenfold or more from one step to the next, beyond all that the run has had, or the momentum reaches 1.

    ## What it sees
    The learning rate of every recorded step: the largest factor between two of them in a row that leads beyond the largest rate
    before. The first five steps are left out, where a warm-up from next to nothing multiplies its rate. While a run goes on, also the momentum
    of the optimizer, from 1 on: there every gradient stays in all later updates, and above 1 it grows in them by itself.

    ## Why it is unstable
    The weights, and the moments of an optimizer, fit the rate that they were trained with: the curvature of the loss rises
    until steps of that rate just do not overshoot. A rate ten times as large overshoots by construction.

    ## What it looks like
    A schedule that is stepped per batch instead of per epoch, one that multiplies where it should divide, a warm-up that ends in
    the unscaled rate, a second parameter group whose rate is taken for the first one's.

    ## Fix
    Print `optimizer.param_groups[0]["lr"]` at the step that is named, and correct the schedule. Where the higher rate is meant, warm up
    to it over some hundred steps.

    ## When it is wrong
    A second phase of a training that begins with new data or unfrozen layers may ask for a higher rate. A restart that goes
    back to a rate that the run has had before is none.

    ## References
    Cohen et al. 2021, *Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability*, arXiv 2103.00065.
    """

    jump: float = threshold(
        10.0, unit="× the step before", source="heuristic: no usual schedule does it beyond all rates before"
    )

    most: float = threshold(1.0, unit="momentum", source="derived: the sum of m, m², m³, … has a limit below 1 alone")

    def kept(self, step: int, momentum: float) -> Finding:
        """The finding of an update under a momentum of 1 or more."""
        return self.finding(
            f"at step {step} the momentum is {momentum:.4g}: no gradient leaves the update again, and from 1 on updates grow by themselves, whatever "
            "the loss is. Correct its schedule: it must stay below 1.",
            limit=self.most,
            name=OPTIMIZER_MOMENTUM,
            value=momentum,
            step=step,
        )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for the run: the largest jump."""
        jump = largest(signals.need(OPTIMIZER_LR_JUMP))
        if not jump.value >= self.jump:
            return
        rates = [jump.detail.get(key) for key in ("before", "after")]
        known = all(isinstance(rate, (int, float)) for rate in rates)
        between = f" from {rates[0]:.3g} to {rates[1]:.3g}" if known else ""
        yield self.finding(
            f"at step {jump.step} the learning rate jumps{between}, {jump.value:.3g} times that of the step before and beyond every rate "
            "of the run. Correct the schedule, or warm up to the higher rate.",
            limit=self.jump,
            signal=jump,
        )
