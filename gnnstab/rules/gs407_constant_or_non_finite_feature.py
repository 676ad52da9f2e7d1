"""GS407 constant-or-non-finite-feature."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gnnstab.errors import NotEvaluable
from gnnstab.records import Finding, Signal, Signals
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import first_loss, largest, measured, percent


@rule("GS407", "constant-or-non-finite-feature", cause="non-finite-data", severity="error", confidence="high")
class ConstantOrNonFiniteFeature(Rule):
    """The input holds NaN or Inf, or columns that never change.

    ## Why it matters
    One NaN reaches every node within as many layers as the graph is wide, and every weight with the next step. A
    constant column is a second bias; behind a normalisation over nodes it divides by almost nothing.

    ## What to do
    Find the source of the NaN, which `torch.nan_to_num` only hides. Drop constant columns, or add eps where they are
    divided by their deviation.

    ## How it is measured
    NaN and Inf entries in any tensor of the batch by its name: an error. Columns of the input features without variance
    over the batch: information.

    ## When it is silent
    NaN is information where output and loss are finite all the same, as with targets that a mask leaves out. A column
    may be constant in one batch only, or meant as a bias.

    ## Sources
    IEEE 754. Measured: constant columns into GraphNorm, single gradient entries × 548.
    """

    non_finite: float = threshold(0, unit="entries", source="any is one too many")
    constant: float = threshold(0, unit="share of columns", source="any is worth knowing")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """At most one finding of each kind."""
        places = measured(signals.find("place.non_finite"))
        yield from self._at_places(places, signals)
        bad, constant = measured(signals.find("feature.non_finite")), measured(signals.find("feature.constant_share"))
        if places:
            bad = ()
        if not bad and not constant:
            if places or signals.find("place.rms"):
                return
            raise NotEvaluable(signals.why_missing("feature.non_finite"))
        if bad and largest(bad).value > self.non_finite:
            yield self.finding(
                f"the input features hold {largest(bad).value:.0f} NaN or Inf entries: everything behind them follows. Clean the data.",
                limit=self.non_finite,
                signal=largest(bad),
            )
        if constant and largest(constant).value > self.constant:
            yield self.finding(
                f"{percent(largest(constant).value)} of the input columns do not vary over the batch.",
                severity="info",
                limit=self.constant,
                signal=largest(constant),
                cause="feature-scale",
            )

    def _at_places(self, places: Sequence[Signal], signals: Signals) -> Iterator[Finding]:
        """One finding for each tensor of the batch that holds NaN or Inf."""
        events = [event for event in signals.events if event.kind == "non-finite"]
        named = {str(((e.detail.get("operation") or {}).get("tensor") or {}).get("name")) for e in events}
        for signal in places:
            # −inf is how a mask is written that is added to scores: bad data only where the step shows it to be.
            wrong = bool(events) and (not signal.detail.get("minus_inf") or signal.layer in named)
            rows = ", ".join(str(row) for row in signal.detail.get("rows", ()))
            # A monitor does not see the loss: whether a target is masked shows in what became of the step.
            masked = not wrong and bool(signal.detail.get("masked") or signal.detail.get("minus_inf"))
            kinds = "−inf" if signal.detail.get("minus_inf") else "NaN or Inf"
            what = f"`{signal.layer}` of the batch holds {signal.value:.0f} {kinds} entries (rows {rows})"
            after = "everything behind them follows. Clean the data"
            if masked:
                after = "they are not what is wrong here" if events else "output and loss are finite all the same"
                if not events and signal.detail.get("target") and math.isnan(first_loss(signals)):
                    after = "the output is finite, and what a loss makes of them was not seen: pass it"
            yield self.finding(
                f"{what}: {after}.",
                severity="info" if masked else "error",
                limit=self.non_finite,
                signal=signal,
            )
