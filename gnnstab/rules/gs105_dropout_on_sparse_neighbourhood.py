"""GS105 dropout-on-sparse-neighbourhood."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.errors import NotApplicable
from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import largest, names, need_dropout, need_measured, percent


@rule("GS105", "dropout-on-sparse-neighbourhood", cause="isolated-nodes", severity="warning", confidence="medium")
class DropoutOnSparseNeighbourhood(Rule):
    """Attention dropout is on and many nodes have one neighbour at most.

    ## Why it matters
    Dropout acts on the weights of single edges. A node with one neighbour has one weight, 1: with probability p it gets
    no message in this step (all H heads with p^H), else 1/(1 − p) of it. The training loss gets noisy, and train and
    eval mode differ most at the leaves.

    ## What to do
    `dropout=0`, or self-loops, so that every node keeps something.

    ## How it is measured
    `dropout > 0` in an attention layer, and the share of nodes with in-degree 0 or 1 (those of in-degree 0 have no
    message to lose and count only beside others). Where train and eval mode were seen, the RMS of what the layers
    return decides.

    ## When it is silent
    Where the two modes hardly differ, or the leaves do not matter for the loss. Where one mode was seen the
    configuration is information.

    ## Sources
    Srivastava et al. 2014, *Dropout*, JMLR 15. Derived; the in-degree 1 case was measured.
    """

    share: float = threshold(
        0.2, unit="share of nodes", source="heuristic: one node in five loses its message at rate p"
    )

    difference: float = threshold(
        0.1,
        unit="relative",
        source="derived: √(1/(1 − p)) − 1, what a lone neighbour's message gains, reaches it at p = .17",
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for all layers with dropout."""
        on = [layer for layer in need_dropout(signals) if layer.dropout]
        if not on:
            raise NotApplicable("dropout is off in every layer")
        sparse = largest(need_measured(signals, "degree.at_most_one_share"))
        isolated = signals.find("degree.isolated_share", layer=sparse.layer)
        single = sparse.value - (largest(isolated).value if isolated else 0.0)
        if single > self.share:
            apart = [s for layer in on for s in signals.find("output.train_eval_difference", layer=layer.name)]
            if apart and largest(apart).value <= self.difference:
                return
            told = f" Train and eval mode differ by {percent(largest(apart).value)}." if apart else ""
            rate = max(layer.dropout or 0.0 for layer in on)
            lost = max((layer.dropout or 0.0) ** (layer.heads or 1) for layer in on)
            yield self.finding(
                f"dropout={rate:g} in {names(layer.name for layer in on)} and {percent(single)} of the nodes have a single neighbour: "
                f"each loses {'its whole message' if lost == rate else 'each head of its message'} with probability {rate:g} per step"
                f"{f', all heads with {lost:.2g}' if lost != rate else ''}.{told} Set dropout=0, or add self-loops.",
                severity="warning" if apart else "info",
                limit=self.share,
                signal=sparse,
            )
