"""GS301 attention-explosion."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gnnstab.errors import NotEvaluable
from gnnstab.layers import FAMILY, layer_named, parts
from gnnstab.records import Finding, LayerFacts, Signal, Signals
from gnnstab.records.vocabulary import PLACE_GAIN, SCORE_COSINE_SCALE, SCORE_PRODUCT_SCALE
from gnnstab.rules._by_steps import OPEN as OPEN
from gnnstab.rules._by_steps import by_steps
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.gs405_degree_one_attention import nothing_to_weigh
from gnnstab.rules.learned import as_learned, beyond
from gnnstab.rules.queries import (
    ASSUMED_DEGREE,
    Attention,
    as_large,
    attention,
    degree_of,
    factor_on_scores,
    head_words,
    largest,
    names,
    need_layers,
    per_head,
    percent,
    trends,
)


@rule("GS301", "attention-explosion", cause="attention-explosion", severity="error", confidence="high")
class AttentionExplosion(Rule):
    """Attention is saturated, or close to it, because of the query and key weights.

    ## Why it matters
    A saturated softmax passes one neighbour on. The gradients behind it get sharp: the scale-free sensitivity of W_q
    and W_k rose 17-fold while the logits rose 36-fold. A small step then swaps neighbours, and in fp16 the product q·k
    nears 65 504 long before the division by √C.

    ## What to do
    Scale the query weight and bias of a saturated head down until its largest score is 3·√(2 ln d) at in-degree d
    (`qk-clip` computes the factor), or use layer normalisation of queries and keys inside `message`. Caps known from
    language models do nothing: at in-degree 10, Ĥ is .16 at max|s| = 44 already. Subtract the mean within each target
    before any cap.

    ## How it is measured
    The attention entropy Ĥ over ln(in-degree), averaged over heads and targets, and the share of node-heads with Ĥ <
    0.1, on the batch and with the layer's input scaled to RMS 1. Saturated in both: the weights did it; on the batch
    alone: GS302. The size of a logit is no error in fp32: healthy networks had up to 59.

    Without a batch: ‖M_h‖_F, M_h = Q̃ᵀK̃/√C, is the typical spread of logits within one target at RMS 1, and the input
    RMS at which a head saturates is (8 ln d)^¼ / √‖M_h‖_F. It is judged for heads that training has sharpened: their
    alignment √C·‖W_qᵀW_k‖_F/(‖W_q‖_F‖W_k‖_F) is 1 for independent matrices of any gain. Beside a batch, a wide ‖M_h‖_F
    *without* alignment counts where it saturates an input of RMS 1, or the batch together with the input.

    With model, loss and optimizer, steps on two copies decide, one of them with softer scores: sharpness that takes a
    quarter of the progress is a warning even where its origin is unknown. Scores over edges that the code multiplies
    with √d or d stay one, too, where steps for half of the rows do no more for the others than with these divided.

    ## When it is silent
    Of a trained model whose attention is soft on your data the weights are not judged; nor are layers next to none of
    whose targets has two neighbours (the attention of fewer than 3 is not judged either), or by weights alone a wide
    first layer (words, counts). Sharp can be right (the best small networks reached .35), so it is information where
    softer scores make the loss worse, or the best loss of the steps twice as large; in a run whose loss ended at its
    best; as a trend over a folder of checkpoints (± 2 standard errors); and for a layer whose formula is not known,
    unless something that makes scores large was measured: a wide map, large features, scores above 4 times q·k/√d
    (cosines times a temperature are a choice).

    A file alone does not tell earned from ruined: some of 266 healthy programs' files spread and agreed more than those
    of two ruined actors (4 of some 380 are warned of). There it is a warning for queries and keys that agree, weights as
    drawn, wide ones that do not agree, and where no gradient is left (scores that spread by more than 87·√(2 ln d), where
    all weights but one underflow in fp32), else information. Of heads that no shape shows, that has to hold at every
    number that is tried, and agreement is information.

    ## Sources
    Zhai et al. 2023, *Stabilizing Transformer Training by Preventing Attention Entropy Collapse*, arXiv 2303.06296;
    Dehghani et al. 2023, *ViT-22B*, arXiv 2302.05442; Kimi K2, arXiv 2507.20534 (QK-clip). Measured: d = 7 to 200,
    widths 16 and 64.
    """

    warn_entropy: float = threshold(0.35, unit="fraction of ln(in-degree)", source="measured: good fits had .35 to .98")
    error_entropy: float = threshold(
        0.10, unit="fraction of ln(in-degree)", source="measured: failed fits had 0 to .03"
    )
    one_hot_share: float = threshold(
        0.25, unit="share of node-heads", source="measured: .15 in a healthy actor, .42 in a saturated one"
    )
    min_degree: float = threshold(
        3, unit="median in-degree", source="with two neighbours one logit decides the entropy"
    )
    free_frobenius: float = threshold(
        4.0, unit="logit at RMS 1", source="measured: twice what an orthogonal gain of √2 gives; raises recall to 1"
    )
    critical_rms: float = threshold(
        2.0, unit="input RMS", source="measured: 2.6 in healthy actors, 1.6 and 1.7 in ruined ones"
    )
    alignment: float = threshold(
        1.4,
        unit="× independent weights",
        source="measured: at most 1.39 in healthy actors, 1.56 and 2.16 in ruined ones",
    )

    fresh_factor: float = threshold(
        0.6,
        unit="× limits on fresh weights",
        source="measured: a fresh orthogonal gain of √2 has Ĥ .25 to .32 and trains",
    )
    product_scale: float = threshold(
        4.0, unit="× q·k/√d", source="heuristic: √d without the division is 2.8 at 8 channels and 5.7 at 32"
    )
    of_products: float = threshold(
        0.6, unit="fraction of ln(in-degree)", source="derived: scores divided by √d leave .99 to fresh weights"
    )
    wide: float = threshold(
        256,
        unit="input columns",
        source="heuristic: words or counts, mostly 0; a trained GAT had Ĥ .33 at RMS 1 and .999",
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """Judge the measured attention where there is any, and the weights."""
        layers = need_layers(signals)
        states = {state.layer: state for state in attention(signals, min_degree=self.min_degree)}
        weights = signals.find("logit.frobenius")
        if not states and not weights:
            raise NotEvaluable(signals.why_missing("attention.entropy"))
        for layer in layers:
            state = states.get(layer.name)
            if ((state is None or state.synthetic) and self._reads_words(layer)) or nothing_to_weigh(
                signals, layer.name
            ):
                continue
            found = self._measured(signals, layer, state) if state is not None else None
            if found is None:
                found = self._static(signals, layer, state)
            if found is None:
                found = self._predicted(signals, layer)
            if found is not None:
                yield by_steps(self.as_learned(found, signals, state), signals)

    def put_there(self, signals: Signals, name: str) -> bool:
        """True where queries and keys agree so little that no training has made their scores sharp."""
        layer = signals.layer(name)
        return layer is not None and not layer_named(layer).weighs_scores and self.independent(signals, layer)

    def independent(self, signals: Signals, layer: LayerFacts) -> bool:
        """True where queries and keys are known to agree no more than independent weights do, whatever factor is learned beside them."""
        aligned = [s.value for s in signals.find("logit.alignment", layer=layer.name)]
        return bool(aligned) and max(aligned) <= self._alignment_limit(layer)

    def as_learned(self, found: Finding, signals: Signals, state: Attention | None) -> Finding:
        """As `as_learned`, with this rule's limits."""
        layer = signals.layer(found.layer or "")
        limit = -math.inf if layer is None else self._alignment_limit(layer)
        return as_learned(found, signals, state, alignment=limit, soft=self.warn_entropy)

    def _measured(self, signals: Signals, layer: LayerFacts, state: Attention) -> Finding | None:
        scale = self.unscaled(signals, layer)
        warn = self.warn_entropy if scale is None else self.of_products
        by_input = scale is None and state.made_by_weights(warn) is False
        if by_input or not state.crosses(warn, self.one_hot_share):
            return None
        severe = state.entropy.value < self.error_entropy
        crossed, limit = state.crossing(self.error_entropy if severe else warn, self.one_hot_share)
        unknown, own = state.unit_entropy is None, FAMILY in layer.options and not layer_named(layer).multiplies
        # Of a formula that nobody knows, what fresh weights may well give is no sign of weights that are too large; nor is a temperature of cosines.
        cosines = bool(signals.find(SCORE_COSINE_SCALE, layer=layer.name))
        unsure = cosines or state.unit_entropy is None or (own and state.unit_entropy >= self.error_entropy)
        told = "which of weights and input scale did it was not measured"
        if not unknown:
            same = f"{state.unit_entropy:.2f}" == f"{state.entropy.value:.2f}"
            told = f"{'also' if same else f'{state.unit_entropy:.2f}'} at an input of RMS 1"
        seen = (
            f"{state.layer}: attention entropy is {state.entropy.value:.2f} of ln(in-degree){state.worst_head_words}"
            f"{_share(state)}, {told}"
        )
        if unsure and not state.synthetic and not self._suspected(signals, layer):
            return self.finding(f"{seen}{OPEN}", severity="info", limit=limit, signal=crossed, confidence="low")
        why = _saturating(signals, layer, unknown) if scale is None else _of_products(scale.value)
        level, sure = "error" if severe else "warning", "medium" if state.synthetic or unknown else "high"
        return self.finding(f"{seen}{why}", severity=level, limit=limit, signal=crossed, confidence=sure)

    def _suspected(self, signals: Signals, layer: LayerFacts) -> bool:
        """True where something that makes scores large was measured: weights of scores, the scale of products, wide weights, large features."""
        wide = any(str(s.layer).startswith(f"{layer.name}.") for s in signals.find(PLACE_GAIN))
        described = FAMILY not in layer.options or layer_named(layer).multiplies
        known = described and bool(per_head(signals, "logit.frobenius", layer.name))
        return known or wide or self.unscaled(signals, layer) is not None or bool(_large_features(signals))

    def unscaled(self, signals: Signals, layer: LayerFacts) -> Signal | None:
        """What multiplies q·k/√d, where that is far above 1."""
        found = signals.find(SCORE_PRODUCT_SCALE, layer=layer.name)
        return next((s for s in found if s.value > self.product_scale), None)

    def _static(self, signals: Signals, layer: LayerFacts, state: Attention | None) -> Finding | None:
        found = per_head(signals, "logit.frobenius", layer.name)
        if not found:
            return None
        real = state is not None and not state.synthetic
        if state is not None and real:
            # Training has had its say: what it made of large weights is soft on the data that they were trained on.
            if signals.context.get("trained") and not state.crosses(self.warn_entropy, self.one_hot_share):
                return None
            unlearned = self.unlearned(signals, layer, state)
            if unlearned is not None:
                return self._put_there(signals, layer, state, unlearned)
            if not state.crosses(self.warn_entropy, self.one_hot_share):
                return None
        degree = degree_of(signals, layer.name) or ASSUMED_DEGREE
        worst, limit = largest(found), self._limit(layer, degree)
        if not real and worst.value > limit and not self._same_gain(signals, layer, worst):
            return self._spread(signals, layer, worst, limit, degree)
        return self._sharpened(signals, layer, found, degree, real)

    def _reads_words(self, layer: LayerFacts) -> bool:
        """True for a first layer so wide that an input of RMS 1 says nothing about what it is really given."""
        return layer.position == 0 and not layer.norm_before and max(layer.in_channels or (0,)) > self.wide

    def unlearned(self, signals: Signals, layer: LayerFacts, state: Attention) -> Signal | None:
        """The widest logit spread of a head whose query and key are large, independent, and out of proportion to the values.

        None where training may have made them so, or where neither the batch nor an input of RMS 1 is saturated.
        """
        found = per_head(signals, "logit.frobenius", layer.name)
        if not found:
            return None
        aligned = {s.head: s.value for s in signals.find("logit.alignment", layer=layer.name)}
        worst = largest(found)
        learned = aligned.get(worst.head, math.inf) > self._alignment_limit(layer)
        saturates = state.made_by_weights(self.warn_entropy) or state.crosses(self.warn_entropy, self.one_hot_share)
        if learned or not saturates or worst.value <= self.free_frobenius or self._same_gain(signals, layer, worst):
            return None
        return worst

    def _put_there(self, signals: Signals, layer: LayerFacts, state: Attention, worst: Signal) -> Finding:
        products = layer_named(layer).multiplies
        advice = "Scale the query weights down, or normalise queries and keys" if products else "Scale them down"
        unit = "unknown" if state.unit_entropy is None else f"{state.unit_entropy:.2f}"
        return self.finding(
            f"{layer.name}: the {_behind(signals, layer)}{head_words(worst)} spread the logits of one target by {worst.value:.2g} at "
            f"an input of RMS 1 (limit {self.free_frobenius:g}) and agree no more than independent weights do, so that training has "
            f"not made them so. Entropy of ln(in-degree): {unit} at RMS 1, {state.entropy.value:.2f} on this batch"
            f"{state.worst_head_words}. {advice}.",
            severity="error" if state.entropy.value < self.error_entropy else "warning",
            limit=self.free_frobenius,
            signal=worst,
            confidence="medium",
        )

    def _predicted(self, signals: Signals, layer: LayerFacts) -> Finding | None:
        """Where the checkpoints of a run head for a limit on a clear trend: information, before it is reached."""
        ahead = [
            (crossing, trend, limit)
            for name, limit in (
                ("attention.entropy", self.warn_entropy),
                ("logit.frobenius", self._limit(layer, degree_of(signals, layer.name) or ASSUMED_DEGREE)),
            )
            for trend in trends(signals, name, layer.name)
            if (crossing := trend.crossing(limit)) is not None
        ]
        if not ahead:
            return None
        (earliest, expected, latest), trend, limit = min(ahead, key=lambda one: one[0][1])
        head = "" if trend.head is None else f" of head {trend.head}"
        change = 100 * math.expm1(min(1000 * trend.slope, 50.0))
        return self.finding(
            f"{layer.name}: {trend.name}{head} changes by {change:+.2g} % per 1000 steps over {trend.points} checkpoints and will "
            f"reach {limit:.2g} near step {expected} (between {earliest} and {latest}) if that goes on. Lower the learning rate "
            "before it does, or normalise queries and keys.",
            severity="info",
            limit=limit,
            signal=Signal(trend.name, math.exp(trend.level), layer.name, trend.head, trend.last_step),
            confidence="medium",
        )

    def _limit(self, layer: LayerFacts, degree: float) -> float:
        """Freezing of the random-energy model where the input's RMS is known to be 1, a wider limit elsewhere."""
        return math.sqrt(2 * math.log(max(degree, math.e))) if layer.norm_before else self.free_frobenius

    @staticmethod
    def _same_gain(signals: Signals, layer: LayerFacts, worst: Signal) -> bool:
        """True when values carry the same gain as query and key: the initialisation, not the attention, is too large."""
        return not layer.norm_before and as_large(signals, layer.name, worst.value)

    def _spread(self, signals: Signals, layer: LayerFacts, worst: Signal, limit: float, degree: float) -> Finding:
        return self.finding(
            f"{layer.name}: the {_behind(signals, layer)}{head_words(worst)} spread the logits of one target by {worst.value:.2g} "
            f"at an input of RMS 1 (limit {limit:.2g} at in-degree {degree:g}). Judged by the weights alone: pass a batch to "
            "measure the attention itself.",
            severity="warning" if self._of_any_heads(signals, layer, worst) else "info",
            limit=limit,
            signal=worst,
            confidence="medium",
        )

    def _sharpened(
        self, signals: Signals, layer: LayerFacts, found: list[Signal], degree: float, real: bool
    ) -> Finding | None:
        aligned = {s.head: s.value for s in signals.find("logit.alignment", layer=layer.name)}
        limit = self._alignment_limit(layer)
        sharp = [
            s
            for s in found
            if aligned.get(s.head, 1.0) > limit and self._saturates_at(s.value, degree) <= self.critical_rms
        ]
        if not sharp:
            return None
        worst, told = largest(sharp), [str(s.head) for s in sharp if s.head is not None]
        heads = f"head {names(told)}" if told else "its heads"
        advice = "It adds to what the input does." if real else "Pass a batch to measure it."
        return self.finding(
            f"{layer.name}: training has sharpened {heads}: query and key agree "
            f"{aligned[worst.head]:.1f} times as much as independent weights, and an input of RMS "
            f"{self._saturates_at(worst.value, degree):.2g} saturates the attention at in-degree {degree:g}"
            f"{'' if degree_of(signals, layer.name) else ' (assumed)'}. {advice}",
            severity="warning" if self._of_any_heads(signals, layer, worst) else "info",
            limit=math.sqrt(8 * math.log(max(degree, 2.0))) / self.critical_rms**2,
            signal=worst,
            confidence="low",
        )

    @staticmethod
    def _saturates_at(frobenius: float, degree: float) -> float:
        """Input RMS at which ρ = 4, where Ĥ is about .3 at any in-degree."""
        return float((8 * math.log(max(degree, 2.0))) ** 0.25 / math.sqrt(max(frobenius, 1e-12)))

    def _of_any_heads(self, signals: Signals, layer: LayerFacts, worst: Signal) -> bool:
        """False where a number of heads that was tried, and not observed, leaves room for sharpness that training has found.

        With every one of them no gradient is left, or queries and keys agree no more than independent weights do.
        """
        tried = worst.detail.get("heads tried")
        if not tried or beyond(worst):
            return True
        aligned = [s.detail for s in signals.find("logit.alignment", layer=layer.name) if "at each" in s.detail]
        return bool(aligned) and all(
            value <= self._alignment_limit(layer, one["width"] // heads)
            for one in aligned
            for heads, value in zip(tried, one["at each"], strict=True)
        )

    def _alignment_limit(self, layer: LayerFacts, channels: int | None = None) -> float:
        """The limit, raised for narrow heads (of ``channels``), whose alignment scatters at initialisation (± 0.3 at 4 channels)."""
        widths = [w for w in (channels or layer.out_channels, *(layer.in_channels or ())) if w]
        return max(self.alignment, 1.0 + 2.5 / min(widths)) if widths else self.alignment


def _behind(signals: Signals, layer: LayerFacts) -> str:
    words = "query and key weights" if layer_named(layer).multiplies else "weights behind the scores"
    return f"{words}{factor_on_scores(signals, layer)}"


def _large_features(signals: Signals) -> str:
    """``x: RMS 110`` for the largest float input of the batch that reaches a weight, if GS406 would speak of it; else empty."""
    found = [
        s
        for s in signals.find("place.rms")
        if s.value > _FEATURES and s.detail.get("arrives") and not s.detail.get("whole") and not s.detail.get("target")
    ]
    worst = max(found, key=lambda s: s.value, default=None)
    return "" if worst is None else f"{worst.layer}: RMS {worst.value:.3g}"


_FEATURES = 10.0
"""RMS of features above which GS406 speaks of them."""


def _saturating(signals: Signals, layer: LayerFacts, unknown: bool) -> str:
    """What made the scores so large and what to do about it, in words that fit the layer."""
    if layer_named(layer).multiplies:
        features = _large_features(signals)
        large = f", and the features are large ({features}). Standardise the features and train anew"
        down = large if features else ". Scale the query weights of the worst heads down"
        return f": the {_behind(signals, layer)} saturate it{down}, or normalise queries and keys."
    made_of = parts(layer, "score")
    if made_of and not unknown and FAMILY in layer.options:
        # Of a formula that nobody knows, a factor on the scores may as well do it as the weights behind them.
        return (
            f": it is what makes its scores ({made_of}), with any factor on them. Scale that down for the worst heads."
        )
    if made_of and not unknown:
        return f": the weights that make its scores ({made_of}) saturate it. Scale them down for the worst heads."
    return ". Scale what its scores are made of down, or normalise the input of the layer."


def _of_products(scale: float) -> str:
    return (
        f": the scores are {scale:.3g} times the products of queries and keys over √d. Divide the products by √d, and by no "
        "smaller temperature."
    )


def _share(state: Attention) -> str:
    return f", {percent(state.one_hot.value)} of node-heads are one-hot" if state.one_hot is not None else ""
