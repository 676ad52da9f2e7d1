"""GS302 attention-saturated-by-input."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.errors import NotEvaluable
from gnnstab.records import Finding, Signals
from gnnstab.rules._by_steps import by_steps
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.gs301_attention_explosion import AttentionExplosion
from gnnstab.rules.queries import Attention, attention, large_gain, need_layers, percent


@rule("GS302", "attention-saturated-by-input", cause="attention-explosion", severity="error", confidence="high")
class AttentionSaturatedByInput(Rule):
    """Attention is saturated because the layer's input is large.

    ## Why it matters
    Logits are a product of two projections of the input: ten times the input took them from 31 to 3113, and Ĥ from .99
    to .04. Clipping or rescaling the innocent weights breaks on the next, denser graph. A real 7-agent network behind a
    sum (input RMS 6.1, in-degree 9.4) had Ĥ = .23, with the input at RMS 1 .99.

    ## What to do
    Look for the source first: a sum aggregation (GS401), unscaled features (GS406), or an initialisation whose gain
    grows the states. Then `nn.LayerNorm` before the layer: `x = conv(norm(x), edge_index)`.

    ## How it is measured
    Ĥ and the share of one-hot node-heads, as in GS301, saturated on the batch and healthy when the same layer sees the
    same input scaled to RMS 1. On fresh weights the limits are stricter, since training can still undo a mild
    saturation.

    ## When it is silent
    Where query and key weights are out of all proportion (GS301); with fewer than 3 neighbours. A sharp attention may
    be what the task needs: where steps with softer scores on a copy end at no less than 0.8 × the loss, it is
    information. So it is in a run that has learned (1/e² of the loss of an output of zeros).

    ## Sources
    Zhai et al. 2023, arXiv 2303.06296; Xiong et al. 2020, *On Layer Normalization in the Transformer Architecture*,
    arXiv 2002.04745. Measured: features × 1 to × 100; a real multi-agent actor with its own batches.
    """

    warn_entropy: float = threshold(
        AttentionExplosion.warn_entropy, unit="fraction of ln(in-degree)", source="as GS301"
    )
    error_entropy: float = threshold(
        AttentionExplosion.error_entropy, unit="fraction of ln(in-degree)", source="as GS301"
    )
    one_hot_share: float = threshold(AttentionExplosion.one_hot_share, unit="share of node-heads", source="as GS301")
    fresh_factor: float = threshold(
        AttentionExplosion.fresh_factor, unit="× limits on fresh weights", source="as GS301"
    )
    growth: float = threshold(
        4.0,
        unit="× input RMS of the first layer",
        source="derived: logits grow with its square, 4 takes Ĥ from .8 to .3",
    )
    min_degree: float = threshold(AttentionExplosion.min_degree, unit="median in-degree", source="as GS301")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """Warn, or raise an error, per layer that the input's scale saturates."""
        need_layers(signals)
        states = [state for state in attention(signals, min_degree=self.min_degree) if not state.synthetic]
        if not states:
            raise NotEvaluable(f"the scale of the layers' inputs needs data: {signals.why_missing('input.rms')}")
        weights = AttentionExplosion()
        for state in states:
            layer = signals.layer(state.layer)
            if layer is not None and (weights.unlearned(signals, layer, state) or weights.unscaled(signals, layer)):
                continue
            driven = state.driven_by_input(self.warn_entropy, self.one_hot_share, self.fresh_factor)
            if driven and state.made_by_weights(self.warn_entropy) is False:
                found = self._finding(signals, state)
                found = weights.as_learned(found, signals, state) if signals.kind == "trace" else found
                yield by_steps(found, signals)

    def _finding(self, signals: Signals, state: Attention) -> Finding:
        severe = state.entropy.value < self.error_entropy
        crossed, limit = state.crossing(self.error_entropy if severe else self.warn_entropy, self.one_hot_share)
        rms = signals.value("input.rms", layer=state.layer)
        scale = "" if rms is None else f" (input RMS {rms:.2g})"
        share = "" if state.one_hot is None else f", {percent(state.one_hot.value)} of node-heads are one-hot"
        degree = "" if state.degree is None else f" at median in-degree {state.degree:g}"
        return self.finding(
            f"{state.layer}: attention entropy is {state.entropy.value:.2f} of ln(in-degree){state.worst_head_words}{share}{degree}, but "
            f"{state.unit_entropy:.2f} at an input of RMS 1: the scale of its input{scale} saturates it, not its weights. "
            "Find what makes the input large, or put a LayerNorm before the layer.",
            severity="error" if severe else "warning",
            limit=limit,
            signal=crossed,
            cause="unsuitable-init" if self._grown_by_gain(signals, state) else None,
        )

    def _grown_by_gain(self, signals: Signals, state: Attention) -> bool:
        """True when the layers before have grown the input, by values that carry as large a gain as query and key do."""
        first = min(signals.attention_layers, key=lambda layer: layer.position).name
        before, here = signals.value("input.rms", layer=first), signals.value("input.rms", layer=state.layer)
        if not before or not here or here < self.growth * before:
            return False
        return all(large_gain(layer.name, signals) for layer in signals.attention_layers)
