"""GS401 sum-aggregation-growth."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gnnstab.errors import NotApplicable, NotEvaluable
from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.rises import LASTING
from gnnstab.records.vocabulary import (
    LOSS_OVER_ZERO,
    OPTIMIZER_LOSS_RISE,
    PLACE_ATTENTION_SUM,
    PLACE_SIGNED_DIVISOR,
    POOL_SUM_SIZE,
    SUM_BY_HAND_SIZE,
)
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.gs301_attention_explosion import AttentionExplosion
from gnnstab.rules.gs305_softmax_misused import SoftmaxMisused
from gnnstab.rules.learned import came_down
from gnnstab.rules.queries import Attention, attention, largest, measured, names, smallest


@rule("GS401", "sum-aggregation-growth", cause="sum-aggregation", severity="error", confidence="high")
class SumAggregationGrowth(Rule):
    """A sum over neighbours grows with in-degree and saturates the attention behind it.

    ## Why it matters
    A sum of n messages grows like n, and the logits behind it like n²: 5.2, 9.5, 272, 1052, 4500 for 7 to 200 nodes of
    a complete graph (with a LayerNorm inside the message 4.9 to 402, behind a mean .16 and falling). The same weights
    were healthy at in-degree 4.5 and 42 % one-hot at 9.4. Clipping, dropout, the beta gate and residuals leave that
    untouched.

    ## What to do
    Mean instead of sum **and** a term of the node itself: `super().__init__(aggr="mean")` and `h = h +
    self.lin_root(x)`; or a LayerNorm after the sum and the same term. The mean alone heals the logits and ruins the
    task, since each node's own part drops to 1/n: R² −.04 against .92 at 50 nodes.

    ## How it is measured
    For every sum whose weights no softmax and no in-degree normalises: the exponent p in RMS(output) ∝ in-degree^p,
    from all edges and from half of them, less what the messages lose over nodes of larger in-degree, and the RMS of its
    output. Both large, and attention behind it sharpened by that: a warning.

    Attention counts where something is added to its messages outside of the weights: what a layer of the model's own
    code adds up grows with the in-degree from target to target (the slope of ln(norm), less what chance can make),
    where normalised weights give a mean.

    Such sums, poolings by a sum, and sums in the model's own code, by an index or a matrix that is sparse or holds
    counts, also count where the loss of a fresh network is far above that of an output of zeros, on the batch or in one
    of the first 10 steps; and where the first steps of the optimizer raise the loss, and do not with the mean in their
    place, on a copy.

    ## When it is silent
    Where a run, or steps on a copy, bring the loss below 1/e² of that of an output of zeros, its start counts for
    nothing. Without a symptom, as at constant in-degree, where a sum is a mean with another weight, it is information; so is a
    sum of the model's own code beside attention that the size of its input saturates, until it is undone.

    ## Sources
    Xu et al. 2019, *How Powerful are Graph Neural Networks?*, arXiv 1810.00826, for what a sum can do that a mean
    cannot. Measured: complete graphs, 16 channels, 3 heads; training over 250 steps, up to 6 seeds; a real multi-agent
    actor.
    """

    exponent: float = threshold(0.4, unit="power of in-degree", source="measured: sum 1 to 2, mean and √deg at most .1")
    rms: float = threshold(
        4.0,
        unit="RMS",
        source="measured: 3.1 behind a healthy actor's sum, 6.1 behind a saturated one's; precision and recall 1.0 on the pilot benchmark",
    )
    warn_entropy: float = threshold(
        AttentionExplosion.warn_entropy, unit="fraction of ln(in-degree)", source="as GS301"
    )
    sharp_entropy: float = threshold(
        0.6,
        unit="fraction of ln(in-degree)",
        source="measured: .47 and .58 behind sums at 50 nodes that ruin training, 1.0 behind means",
    )
    drop: float = threshold(
        0.2, unit="fraction of ln(in-degree)", source="heuristic: entropy lost to the size of the input"
    )
    error_entropy: float = threshold(
        AttentionExplosion.error_entropy, unit="fraction of ln(in-degree)", source="as GS301"
    )
    one_hot_share: float = threshold(AttentionExplosion.one_hot_share, unit="share of node-heads", source="as GS301")

    far_off: float = threshold(
        4.0,
        unit="× the loss of zeros",
        source="measured: .5 to 1.5 in fresh networks of usual initialisation, 5.8 to 480 behind sums that ruin training",
    )
    """Loss of a fresh network's output from which on it does worse than no output at all, by its size."""

    far_rms: float = threshold(
        1.0, unit="RMS", source="as the input of a layer; the loss that is far off is the symptom"
    )
    """Size of a sum that counts where the loss is so far off: of a run one batch was measured, and others are larger."""

    rows: float = threshold(
        8.0, unit="rows", source="derived: a sum of 8 independent rows is 2.8 times as large as one"
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding per aggregation that grows."""
        steep = [s for s in signals.find(OPTIMIZER_LOSS_RISE) if "calm_as_means" in s.detail]
        for rise in steep[:1]:
            yield self._steep(rise)
            return
        found = measured(signals.find("aggregation.exponent"))
        beside = self.of_attention(signals)
        if not found and not beside and (signals.find(POOL_SUM_SIZE) or signals.find(SUM_BY_HAND_SIZE)):
            yield from self._pooled(signals)
            return
        others = [layer for layer in signals.layers if not layer.attention and layer.aggregation in ("add", "sum")]
        if not found and not beside and signals.kind != "checkpoint" and not others:
            raise NotApplicable(
                "no sum over neighbours other than attention was found, in layers that name their aggregation or in calls of scatter, index_add "
                "and products with sparse matrices or with counts; what PyG's layers add up by a sparse adjacency (adj_t) themselves is not seen"
            )
        if not found and not beside:
            raise NotEvaluable(signals.why_missing("aggregation.exponent"))
        far = self._far_off(signals)
        for growth in self._growing(signals, found, self.rms if far is None else self.far_rms):
            symptoms = self._saturated_behind(signals, growth.layer)
            yield self._finding(signals, growth, symptoms, far)
            far = None
        for total in beside:
            if total.value > (self.rms if far is None else self.far_rms):
                yield self._beside_weights(signals, total, self._saturated_behind(signals, total.layer), far)
                far = None
        if far is not None:
            yield from self._pooled(signals)

    def of_attention(self, signals: Signals) -> list[Signal]:
        """What attention layers add up that grows with the in-degree, in the order of the layers: a mean, as weights from a softmax give, does not."""
        order = {layer.name: layer.position for layer in signals.attention_layers}
        found = [s for s in measured(signals.find(PLACE_ATTENTION_SUM)) if s.layer in order]
        grown = [s for s in found if float(s.detail.get("exponent", 0.0)) > self.exponent]
        return sorted(grown, key=lambda s: order[s.layer or ""])

    def _beside_weights(
        self, signals: Signals, total: Signal, symptoms: list[Attention], far: Signal | None
    ) -> Finding:
        exponent, degree = (float(total.detail.get(key, math.nan)) for key in ("exponent", "degree"))
        what = (
            f"{total.layer}: what it adds up grows like in-degree^{exponent:.2g} and has reached RMS {total.value:.2g} at in-degrees of up to "
            f"{degree:.0f}, where weights that a softmax has normalised give a mean: something is added to its messages outside of the weights"
        )
        cure = "Multiply it by the weights as well: att * (v + e) in place of att * v + e."
        if symptoms:
            severe = any(state.entropy.value < self.error_entropy for state in symptoms)
            behind = f", and saturates {names(s.layer for s in symptoms)}"
            return self.finding(
                f"{what}{behind}. {cure}", severity="error" if severe else "warning", limit=self.rms, signal=total
            )
        if far is not None:
            over = f", and the loss of the output is {far.value:.3g} times that of an output of zeros"
            return self.finding(
                f"{what}{over}. {cure}", severity="warning", limit=self.far_off, signal=far, confidence="medium"
            )
        still = "No attention behind it is saturated by that on this data; denser graphs will change it."
        return self.finding(f"{what}. {still}", severity="info", limit=self.rms, signal=total)

    def _steep(self, rise: Signal) -> Finding:
        """Steps of the optimizer raise the loss, and do not with means in the place of the sums."""
        sums = names(str(name) for name in rise.detail["calm_as_means"])
        return self.finding(
            f"the sum over neighbours in {sums} makes the loss so steep that the first steps of {rise.detail.get('optimizer', 'the optimizer')} "
            f"raise it {rise.value:.3g} times; divided by the in-degree, on a copy, the same steps at the same rate are calm. Use mean "
            "aggregation and add a term of the node itself (h + lin_root(x)), or a LayerNorm after the sum.",
            severity="warning",
            limit=LASTING,
            signal=rise,
        )

    def _far_off(self, signals: Signals) -> Signal | None:
        """The loss of a fresh network beside that of zeros, where its output is far off, no divisor near 0 has made it so, and it is not learned away."""
        divided = any(s.value > SoftmaxMisused.near_zero for s in signals.find(PLACE_SIGNED_DIVISOR))
        explained = divided or signals.context.get("trained") or came_down(signals)
        found = () if explained else signals.find(LOSS_OVER_ZERO)
        return next((s for s in found if s.value > self.far_off), None)

    def _pooled(self, signals: Signals) -> Iterator[Finding]:
        far = self._far_off(signals)
        pooled, by_hand = signals.find(POOL_SUM_SIZE), signals.find(SUM_BY_HAND_SIZE)
        if by_hand and far is None:
            yield from self._before_attention(signals, largest(by_hand))
        if far is None or not (pooled or by_hand):
            return
        what = (
            f"a pooling adds up the nodes of graphs of up to {largest(pooled).value:.0f} nodes"
            if pooled
            else f"the model's own code adds up the features of up to {largest(by_hand).value:.0f} rows"
        )
        yield self.finding(
            f"{what}, and the loss of the output is {far.value:.3g} times that of an output of zeros. Take the mean, or divide by a "
            "typical size.",
            severity="warning",
            limit=self.far_off,
            signal=far,
            confidence="medium",
        )

    def _before_attention(self, signals: Signals, sums: Signal) -> Iterator[Finding]:
        """What its input saturates may stand behind the sum or not: undoing it tells."""
        saturated = [state.layer for state in attention(signals) if not state.synthetic and self._suffers(state)]
        if saturated:
            yield self.finding(
                f"the model's own code adds up the features of up to {sums.value:.0f} rows, and the size of its input saturates "
                f"{names(saturated)}. Divide the sum by the size of the groups.",
                severity="info",
                limit=self.rows,
                signal=sums,
            )

    def _growing(self, signals: Signals, measurements: tuple[Signal, ...], least: float) -> Iterator[Signal]:
        per_layer: dict[str | None, list[Signal]] = {}
        for signal in measurements:
            facts = signals.layer(signal.layer or "")
            # An attention layer's own aggr="add" sums weights that add up to 1: a mean.
            if facts is None or not facts.attention:
                per_layer.setdefault(signal.layer, []).append(signal)
        for layer, found in per_layer.items():
            rms = signals.find("aggregation.rms", layer=layer)
            if largest(found).value > self.exponent and rms and largest(rms).value > least:
                yield largest(found)

    def _saturated_behind(self, signals: Signals, aggregator: str | None) -> list[Attention]:
        facts = signals.layer(aggregator or "")
        after = -1 if facts is None else facts.position
        reached = {
            layer.name
            for layer in signals.attention_layers
            if layer.position > after and aggregator not in (layer.beside or ())
        }
        return [
            state
            for state in attention(signals)
            if state.layer in reached and not state.synthetic and self._suffers(state)
        ]

    def _suffers(self, state: Attention) -> bool:
        """True when the input's size has sharpened the attention well beyond what its weights do to an input of RMS 1."""
        if state.unit_entropy is None:
            return state.crosses(self.warn_entropy, self.one_hot_share)
        sharpened = state.unit_entropy - state.entropy.value > self.drop
        return sharpened and state.crosses(self.sharp_entropy, self.one_hot_share)

    def _finding(self, signals: Signals, growth: Signal, symptoms: list[Attention], far: Signal | None) -> Finding:
        rms = largest(signals.find("aggregation.rms", layer=growth.layer)).value
        # The in-degree of another layer, as of attention over all pairs, says nothing about this sum.
        own = [s for s in measured(signals.find("degree.median")) if s.layer in (growth.layer, None)]
        degree = smallest(own).value if own else None
        at = "" if degree is None else f" at median in-degree {degree:g}"
        what = f"{growth.layer or 'an aggregation'}: its sum over neighbours grows like in-degree^{growth.value:.2g} and has reached RMS {rms:.2g}{at}"
        if not symptoms and far is not None:
            return self.finding(
                f"{what}, and the loss of the output is {far.value:.3g} times that of an output of zeros. Use mean aggregation and add a "
                "term of the node itself (h + lin_root(x)), or a LayerNorm after the sum.",
                severity="warning",
                limit=self.far_off,
                signal=far,
                confidence="medium",
            )
        if not symptoms:
            return self.finding(
                f"{what}. No attention behind it is saturated by that on this data; denser graphs will change it.",
                severity="info",
                limit=self.exponent,
                signal=growth,
            )
        severe = any(state.entropy.value < self.error_entropy for state in symptoms)
        return self.finding(
            f"{what}; logits grow with its square and saturate {names(s.layer for s in symptoms)}. Use mean aggregation and add a "
            "term of the node itself (h + lin_root(x)), or a LayerNorm after the sum.",
            severity="error" if severe else "warning",
            limit=self.exponent,
            signal=growth,
        )
