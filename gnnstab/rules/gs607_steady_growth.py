"""GS607 steady-growth."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.vocabulary import LOSS_GROWTH, OUTPUT_GROWTH
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import times as shown


@rule("GS607", "steady-growth", cause="", severity="warning", confidence="medium")
class SteadyGrowth(Rule):
    """The loss and the gradient, or the output of a layer, grow exponentially and do not slow down.

    ## Why it matters
    What doubles again and again in the same number of steps reaches the end of any number format. Nothing stops such a
    growth: an objective without a lower bound, inputs or neighbourhoods that grow, a term of the loss with the wrong
    sign, weights that feed their own growth.

    ## What to do
    Find what grows along with it. Bound an objective that falls (a margin, a floor under a variance, a penalty on the
    size of the output); normalise inputs, or divide sums by the in-degree, where the data grow; check the sign of
    weight decay and of each term.

    ## How it is measured
    Straight lines through logarithms over the last 24 to 32 recorded steps. The first finding needs one through |loss|
    and one through the gradient norm, each rising clearly, also by the order of the values, and in the second half at
    three quarters of the pace or more; the loss has doubled within these steps, and both lie above the first ten. Where
    both have grown fourfold the last 16 steps are enough, and the loss may lie between half and all of its start. A
    slower growth is read from the medians of six blocks of eight losses, which end above the first block, while the
    gradient norm lies above its start; a line through these losses, each held against those at its place in the other
    blocks, must rise clearly too, and both be so at the next block. The second finding needs the same line through the RMS of a layer's output, and
    a loss above half of its start that does not fall.

    ## When it is silent
    After a leap of one step that the values have come down from since. In a run whose loss ends at its best (a
    curriculum may get harder) it is information, and so it becomes at the end where later steps disprove it: the loss
    has lain below half of its rise for 50 steps or more, or within a quarter of its lowest before, after as many
    steps as its growth would have taken to a quarter more (two players that hold one another), or the output has grown by no tenth for as long as it would
    have doubled in, within four times what it was, and the loss is no higher than it was. Of outputs, where no loss was given: they may grow as it is learned. The rule names no cause, since it measures none.

    ## Sources
    Measured: none of 107 healthy runs, 14 of 30 that blow up; docs/accuracy.md, lead time.
    """

    output_factor: float = threshold(
        4.0, unit="× first steps", source="measured: none of 87 healthy runs reaches it and goes on growing"
    )
    output_least: float = threshold(
        1.0, unit="RMS", source="derived: the size that norms hand on; what grows up to it is not on its way out"
    )
    pace: float = threshold(0.0, unit="per step", source="measured: a clear line that lasts is enough")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for the loss at the end of a run; those of earlier steps and of outputs are raised while it goes on."""
        yield from self._objective(signals.need(LOSS_GROWTH)[0])

    def objective(self, step: int, loss: float, pace: float, gradient: float = math.nan) -> Iterator[Finding]:
        """The finding of a loss that grows by ``pace`` per step, and of a gradient that grows by ``gradient`` where it was asked for."""
        detail = {"loss": loss, "gradient": gradient}
        yield from self._objective(Signal(LOSS_GROWTH, pace, None, None, step, "training", detail))

    def grown(self, start: float) -> float:
        """The RMS of an output from which its growth counts, where it began at ``start``."""
        return max(self.output_factor * start, self.output_least)

    def output(self, layer: str, step: int, times: float, pace: float) -> Iterator[Finding]:
        """The finding of a layer whose output is ``times`` that of the first steps and grows by ``pace`` per step."""
        if pace > self.pace:
            yield self.finding(
                f"{layer}: at step {step} its output has {shown(times)} times the RMS of the first steps and grows by {100 * pace:.2g} % per "
                "step, without slowing down, while the loss is not at its best. Find what grows with it: inputs, sums over neighbours, weights.",
                limit=self.pace,
                signal=Signal(OUTPUT_GROWTH, pace, layer, None, step, "training"),
            )

    def _objective(self, growth: Signal) -> Iterator[Finding]:
        if not growth.value > self.pace:
            return
        loss, gradient = (float(growth.detail.get(key, math.nan)) for key in ("loss", "gradient"))
        beside = "" if math.isnan(gradient) else f" and the gradient norm by {100 * gradient:.2g} %"
        paces = f"{100 * growth.value:.2g} % per step{beside}, without slowing down"
        if loss < 0:
            words = f"falls: its size grows by {paces}. Nothing bounds it from below; give the objective a bound."
        else:
            words = f"grows by {paces}. Find what grows with it: inputs, neighbourhoods, weights, a term of the loss."
        yield self.finding(f"at step {growth.step} the loss ({loss:.3g}) {words}", limit=self.pace, signal=growth)
