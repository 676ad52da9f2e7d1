"""GS405 degree-one-attention."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import largest, need_measured, percent


@rule("GS405", "degree-one-attention", cause="", severity="info", confidence="high")
class DegreeOneAttention(Rule):
    """Nearly every node has one neighbour at most, so there is nothing to attend to.

    ## What it sees
    More than 90 % of the nodes with in-degree 0 or 1.

    ## Why it is unstable
    It is not. A softmax over one score is 1 whatever the score is; the gradient of the query and key weights is exactly 0
    (measured), and they stay as they were initialised.

    ## What it looks like
    GS604 may list the query and key maps as never updated.

    ## Fix
    Self-loops, or a layer without attention.

    ## When it is wrong
    On trees, where this is meant; the layer then acts as a linear map of the parent.

    ## References
    PyTorch Geometric, documentation of `TransformerConv`. Measured: in-degree 1.
    """

    share: float = threshold(
        0.9, unit="share of nodes", source="heuristic: attention acts on less than a tenth of the nodes"
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for the batch."""
        worst = largest(need_measured(signals, "degree.at_most_one_share"))
        if worst.value > self.share:
            yield self.finding(
                f"{percent(worst.value)} of the nodes have one neighbour at most: their attention weight is 1 and the weights behind the "
                "scores get a gradient of exactly 0 from them.",
                limit=self.share,
                signal=worst,
            )
