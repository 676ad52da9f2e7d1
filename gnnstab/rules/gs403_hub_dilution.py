"""GS403 hub-dilution."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import degree_of, largest, measured, need_measured, smallest


@rule("GS403", "hub-dilution", cause="", severity="info", confidence="medium")
class HubDilution(Rule):
    """The messages to hubs are far weaker than their own skip.

    ## Why it matters
    Attention weights sum to 1, so a hub gets an average, and averages of independent messages shrink like 1/√n: what
    reaches the hub is its own state.

    ## What to do
    The logarithm of the in-degree as a node feature, or messages scaled by √degree.

    ## How it is measured
    The largest in-degree over the median, and the RMS of the messages to the top 1 % of targets over that of the linear
    skip; at a hub of in-degree 399 .039 against .261 elsewhere and .57 of the skip.

    ## When it is silent
    Where in-degrees are even. It is information: hubs may carry no label.

    ## Sources
    Corso et al. 2020, *Principal Neighbourhood Aggregation*, arXiv 2004.05718, for degree scalers. Measured: one hub.
    """

    imbalance: float = threshold(
        20.0, unit="largest over median in-degree", source="heuristic: beside a measured hub of in-degree 399"
    )
    message_share: float = threshold(0.2, unit="× skip RMS", source="measured: .07 at the hub, .46 elsewhere")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding per layer."""
        found = need_measured(signals, "hub.message_share")
        for layer in signals.attention_layers:
            shares = [s for s in found if s.layer == layer.name]
            most = measured(signals.find("degree.max", layer=layer.name)) or measured(signals.find("degree.max"))
            median = degree_of(signals, layer.name)
            if not shares or not most or not median or largest(most).value <= self.imbalance * median:
                continue
            if smallest(shares).value < self.message_share:
                yield self.finding(
                    f"{layer.name}: hubs have up to {largest(most).value:.0f} neighbours (median {median:g}) and get messages of "
                    f"{smallest(shares).value:.2g} of their skip: the average over many neighbours is nearly nothing.",
                    limit=self.message_share,
                    signal=smallest(shares),
                )
