"""GS304 attention-unused."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.errors import NotApplicable, NotEvaluable
from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import attention


@rule("GS304", "attention-unused", cause="attention-explosion", severity="info", confidence="medium")
class AttentionUnused(Rule):
    """After training the attention is still uniform.

    ## Why it matters
    It is a mean over the neighbours at the price of attention. Often the node states hardly differ, so there is nothing
    to attend to (GS404).

    ## What to do
    Do not sharpen the scores: add a term of the node itself before the attention, or use a mean, which is cheaper.

    ## How it is measured
    Ĥ over ln(in-degree) in every head of a layer, on trained weights and your own data.

    ## When it is silent
    At initialisation, where it is normal. It is information: the right answer may be the mean, and a last layer is
    often nearly uniform (.991 on a real actor).

    ## Sources
    Zhai et al. 2023, arXiv 2303.06296, for the other end. Measured: fresh and trained layers at in-degree 7 to 500.
    """

    entropy: float = threshold(0.99, unit="fraction of ln(in-degree)", source="measured: .97 to .99 at initialisation")
    min_degree: float = threshold(3, unit="median in-degree", source="as GS301")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding per layer."""
        if signals.context.get("trained") is False:
            raise NotApplicable("fresh weights: uniform attention is normal at initialisation")
        states = [state for state in attention(signals, min_degree=self.min_degree) if not state.synthetic]
        if not states:
            raise NotEvaluable(f"needs the user's own data: {signals.why_missing('attention.entropy')}")
        if signals.context.get("trained") is None:
            raise NotEvaluable(
                "whether the weights are trained is not known, and at initialisation uniform attention is normal"
            )
        for state in states:
            heads = [s.value for s in signals.find("attention.entropy", layer=state.layer) if s.head is not None]
            if min([*heads, state.entropy.value]) > self.entropy:
                yield self.finding(
                    f"{state.layer}: after training the attention is still uniform (entropy {state.entropy.value:.3f} of ln(in-degree)): "
                    "it computes a mean. Harmless; a term of the node itself before it may give it something to attend to.",
                    limit=self.entropy,
                    signal=state.entropy,
                )
