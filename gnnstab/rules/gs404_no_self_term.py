"""GS404 no-self-term."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.errors import NotApplicable
from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import largest, measured, need_measured, percent


@rule("GS404", "no-self-term", cause="sum-aggregation", severity="info", confidence="medium")
class NoSelfTerm(Rule):
    """An aggregation without a term of the node itself makes the nodes alike before attention begins.

    ## Why it matters
    A mean or sum over the neighbours of a dense graph is nearly the same for every node; its own part survives at an
    amplitude of 1/n. Attention then has nothing to tell nodes apart by: with a mean it stays uniform, with a sum the
    scale hides the loss behind large logits.

    ## What to do
    `h = conv(x, edge_index) + self.lin_root(x)` in the aggregation before the attention (R² .92 instead of −.04 at 50
    nodes of a complete graph).

    ## How it is measured
    ‖X − mean‖/‖X‖ per graph before and after an aggregation that is no attention.

    ## When it is silent
    Behind an identity path around the aggregation. It is information: that nodes are alike is measured, that the model
    needs them apart is not (GS704 tells what cannot be told apart any more).

    ## Sources
    Hamilton et al. 2017, *Inductive Representation Learning on Large Graphs*, arXiv 1706.02216, for the separate root
    weight. Measured: complete graphs of 10 and 50 nodes, up to 6 seeds.
    """

    after: float = threshold(
        0.15, unit="‖X − mean‖/‖X‖", source="measured: .10 at 50 nodes, .44 behind a real actor's embedding"
    )
    before: float = threshold(
        0.5, unit="‖X − mean‖/‖X‖", source="measured: .86 at 50 nodes, .65 on a real actor's features"
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding per aggregation."""
        others = {layer.name for layer in signals.layers if not layer.attention and layer.aggregation}
        carried = {layer.name for layer in signals.layers if layer.identity_path}
        if not others and signals.kind != "checkpoint":
            raise NotApplicable("no aggregation other than attention was found")
        for signal in need_measured(signals, "smoothness.relative"):
            before = measured(signals.find("smoothness.relative_input", layer=signal.layer))
            if (
                signal.layer in others - carried
                and signal.value < self.after
                and before
                and largest(before).value > self.before
            ):
                yield self.finding(
                    f"{signal.layer}: the nodes of a graph differ by {percent(largest(before).value)} of their size before this "
                    f"aggregation and by {percent(signal.value)} after it: it has no term of the node itself. Add h + lin_root(x).",
                    limit=self.after,
                    signal=signal,
                )
