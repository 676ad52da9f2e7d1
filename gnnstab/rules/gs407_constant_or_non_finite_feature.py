"""GS407 constant-or-non-finite-feature."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from gnnstab.errors import NotEvaluable
from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, threshold
from gnnstab.rules.reading import largest, measured, percent


@dataclass(frozen=True)
class ConstantOrNonFiniteFeature(Rule):
    """The input holds NaN or Inf, or columns that never change.

    ## What it sees
    NaN and Inf entries in the input node features: an error. Columns without variance over the batch: information.

    ## Why it is unstable
    One NaN reaches every node within as many layers as the graph is wide, and every weight with the next step. A constant column
    is a second bias; behind a normalisation over nodes it divides by almost nothing.

    ## What it looks like
    The first non-finite value of the run lies in the input (GS502 says so with the node).

    ## Fix
    `torch.nan_to_num` hides it: find the source. Drop constant columns, or add eps where they are divided by their deviation.

    ## When it is wrong
    A column may be constant in one batch only; a column of ones may be meant as a bias.

    ## References
    IEEE 754. Measured: constant columns into GraphNorm, single gradient entries × 548.
    """

    code: ClassVar[str] = "GS407"
    name: ClassVar[str] = "constant-or-non-finite-feature"
    cause: ClassVar[str] = "non-finite-data"
    severity: ClassVar[str] = "error"
    confidence: ClassVar[str] = "high"

    non_finite: float = threshold(0, unit="entries", source="any is one too many")
    constant: float = threshold(0, unit="share of columns", source="any is worth knowing")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """At most one finding of each kind."""
        bad, constant = measured(signals.find("feature.non_finite")), measured(signals.find("feature.constant_share"))
        if not bad and not constant:
            raise NotEvaluable(signals.why_missing("feature.non_finite"))
        if bad and largest(bad).value > self.non_finite:
            yield self.finding(
                f"the input features hold {largest(bad).value:.0f} NaN or Inf entries: everything behind them follows. Clean the data.",
                severity="error",
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
