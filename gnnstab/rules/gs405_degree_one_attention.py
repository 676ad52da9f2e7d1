"""GS405 degree-one-attention."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import largest, measured, need_measured, percent


@rule("GS405", "degree-one-attention", cause="", severity="info", confidence="high")
class DegreeOneAttention(Rule):
    """Nearly every node has one neighbour at most, so there is nothing to attend to.

    ## Why it matters
    A softmax over one score is 1 whatever the score is: the gradient of the query and key weights is exactly 0
    (measured), and they stay as they were initialised (GS604 may list them). GS301 and GS303 do not judge such scores.

    ## What to do
    Self-loops, or a layer without attention.

    ## How it is measured
    The share of nodes with in-degree 0 or 1.

    ## When it is silent
    It is information: on trees it is meant, and the layer acts as a linear map of the parent.

    ## Sources
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


def nothing_to_weigh(signals: Signals, layer: str) -> bool:
    """True where next to no edge of a layer leads to a target with two neighbours, on the user's data: its scores decide nothing.

    Edges count, not nodes: a node that collects all the others weighs every edge there is.
    """
    share, isolated, mean = (
        measured(signals.find(name, layer=layer) or signals.find(name))
        for name in ("degree.at_most_one_share", "degree.isolated_share", "degree.mean")
    )
    if not (share and isolated and mean):
        return False
    single = largest(share).value - largest(isolated).value
    return single >= DegreeOneAttention.share * largest(mean).value
