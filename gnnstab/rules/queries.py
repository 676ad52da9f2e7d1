"""How rules read signals: which of several values counts, and how numbers are written in messages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from gnnstab.errors import NotApplicable, NotEvaluable
from gnnstab.layers import FAMILY, layer_named
from gnnstab.records import LayerFacts, Signal, Signals
from gnnstab.records.vocabulary import ATTENTION_ENTROPY, LOSS, WEIGHT_RMS
from gnnstab.signals import Trend

ASSUMED_DEGREE = 10.0
"""In-degree that a static judgement assumes when no graph was seen; every message that uses it says so."""


def never_finite(signals: Signals) -> bool:
    """True for a run without one finite loss: what its gradients are says nothing of the wiring."""
    losses = [s for s in signals.series if s.name == LOSS and s.layer is None]
    return bool(losses) and not any(np.isfinite(s.values).any() for s in losses)


def times(ratio: float) -> str:
    """A ratio with three digits, in digits that can be read: ``1.92``, ``193 000``, ``6.49 million``."""
    rounded = float(f"{ratio:.3g}")
    if 1e3 <= rounded < 1e6:
        return f"{rounded:,.0f}".replace(",", " ")
    return f"{rounded / 1e6:.3g} million" if 1e6 <= rounded < 1e9 else f"{ratio:.3g}"


def measured(found: Iterable[Signal]) -> tuple[Signal, ...]:
    """The values taken from the user's own data; those of generated graphs are left out."""
    return tuple(s for s in found if s.source != "synthetic")


def need_measured(signals: Signals, name: str, **narrow: str | None) -> tuple[Signal, ...]:
    """The measured values of a signal; raises `NotEvaluable` when there are none or generated graphs alone."""
    found = measured(signals.need(name, **narrow))
    if not found:
        raise NotEvaluable("the graphs were generated, not yours; pass a batch (--batch FILE)")
    return found


def preferred(found: Sequence[Signal]) -> tuple[Signal, ...]:
    """Measured values where there are any, else those of the generated graphs closest to the assumed in-degree."""
    real = measured(found)
    if real:
        return real
    gaps = [abs(_degree_detail(s) - ASSUMED_DEGREE) for s in found]
    return tuple(s for s, gap in zip(found, gaps, strict=True) if gap == min(gaps))


def smallest(found: Sequence[Signal]) -> Signal:
    """The smallest finite value (the first one when none is finite); ``found`` must not be empty."""
    return min(found, key=lambda s: s.value if math.isfinite(s.value) else math.inf)


def largest(found: Sequence[Signal]) -> Signal:
    """The largest finite value (the first one when none is finite); ``found`` must not be empty."""
    return max(found, key=lambda s: s.value if math.isfinite(s.value) else -math.inf)


def typical_matrix(found: Iterable[Signal]) -> Signal | None:
    """The median over weight matrices of a number per parameter; None without a finite one.

    Tensors that start at zero or one have no meaningful size: biases and normalisations are left out by their names.
    """
    ordered = sorted(matrices(found), key=lambda s: s.value)
    return ordered[len(ordered) // 2] if ordered else None


def matrices(found: Iterable[Signal]) -> list[Signal]:
    """The finite numbers of weight matrices."""
    weights = [s for s in found if str(s.detail.get("parameter", "weight")).endswith("weight")]
    return [s for s in weights if "norm" not in str(s.layer) and math.isfinite(s.value)]


def per_head(signals: Signals, name: str, layer: str) -> list[Signal]:
    """The finite values of a signal per head of one layer; the layer's own where heads were not told apart."""
    found = [s for s in signals.find(name, layer=layer) if math.isfinite(s.value)]
    return [s for s in found if s.head is not None] or found


def head_words(signal: Signal) -> str:
    """`` of head 1``; of heads that nobody knows, the numbers that were tried; empty where heads were not told apart."""
    tried: Any = signal.detail.get("heads tried")
    if tried:
        return f" of a head, whichever of {', '.join(map(str, tried))} their number is,"
    return "" if signal.head is None else f" of head {signal.head}"


def factor_on_scores(signals: Signals, layer: LayerFacts) -> str:
    """``, times p_rel (up to 40, not 1),``: a learned factor that makes the scores of a layer larger; empty without one."""
    part = layer_named(layer).weighs_scores
    own = [s for s in signals.find(WEIGHT_RMS, layer=layer.name) if part]
    sizes = [s.value for s in own if f"{s.detail.get('parameter')}.".startswith(f"{layer.name}.{part}.")]
    return f", times {part} (up to {max(sizes):.3g}, not 1)," if sizes and max(sizes) > 1 else ""


def degree_of(signals: Signals, layer: str | None) -> float | None:
    """Median in-degree of the targets of a layer, or of the batch; None when no graph was seen."""
    found = measured(signals.find("degree.median", layer=layer)) if layer else ()
    found = found or measured(signals.find("degree.median"))
    return smallest(found).value if found else None


def need_depth(signals: Signals, at_least: float) -> int:
    """The number of attention layers; raises `NotApplicable` below ``at_least`` of them."""
    if signals.depth < at_least:
        raise NotApplicable(
            f"{signals.depth} attention layers; below {at_least:g} no variant of initialisation, residual or normalisation "
            "made a measurable difference"
        )
    return signals.depth


def need_layers(signals: Signals) -> tuple[LayerFacts, ...]:
    """The attention layers; raises `NotApplicable` when there are none."""
    if not signals.attention_layers:
        raise NotApplicable("no attention layer was recognised")
    return signals.attention_layers


def takes_dropout(layer: LayerFacts) -> bool:
    """False of a kind whose constructor, which is known, has no ``dropout``."""
    known = layer_named(layer).defaults
    return not known or "dropout" in known


def need_dropout(signals: Signals) -> tuple[LayerFacts, ...]:
    """The attention layers whose dropout is known; raises `NotApplicable` where their kind has none, `NotEvaluable` where it cannot be seen."""
    if not any(map(takes_dropout, need_layers(signals))):
        raise NotApplicable("layers of this kind have no dropout")
    how = "a state dict does not hold the dropout probability; pass the model (--model pkg.mod:factory)"
    return need_fact(signals, "dropout", how)


def need_fact(signals: Signals, field: str, how: str) -> tuple[LayerFacts, ...]:
    """The attention layers whose ``field`` is known; raises `NotEvaluable` with ``how`` to see it when none is."""
    known = tuple(layer for layer in need_layers(signals) if layer.get(field) is not None)
    if not known and not any(field in layer.flat() for layer in need_layers(signals)):
        raise NotApplicable(f"no attention layer here has {field}")
    if not known:
        seen = signals.kind != "checkpoint"
        raise NotEvaluable(
            f"{field} of the attention layers could not be read from the layers that ran" if seen else how
        )
    return known


def trends(signals: Signals, name: str, layer: str) -> tuple[Trend, ...]:
    """What several checkpoints of one run say about a signal of a layer; empty for a single state."""
    known = {field.name for field in fields(Trend)}
    found = signals.context.get("trends", ())
    return tuple(
        Trend(**{key: value for key, value in one.items() if key in known})
        for one in found
        if one["name"] == name and one["layer"] == layer
    )


@dataclass(frozen=True, slots=True)
class Attention:
    """How concentrated the attention of one layer is."""

    layer: str
    entropy: Signal
    """Ĥ, mean over heads and targets."""

    one_hot: Signal | None
    """Share of node-heads with Ĥ < 0.1."""

    unit_entropy: float | None
    """Ĥ with the layer's input scaled to RMS 1."""

    degree: float | None
    """Median in-degree, None when unknown."""

    worst_head: Signal | None
    """Ĥ of the most concentrated head, None where heads were not told apart."""

    fresh: bool = False
    """True for weights as initialised: saturation that training can still undo."""

    @property
    def synthetic(self) -> bool:
        """True when no data of the user was involved."""
        return self.entropy.source == "synthetic"

    @property
    def worst_head_words(self) -> str:
        """`` (.08 in head 1)`` for a message; empty where heads were not told apart, or do not lie apart."""
        worst = self.worst_head
        apart = worst is not None and f"{worst.value:.2f}" != f"{self.entropy.value:.2f}"
        return f" ({worst.value:.2f} in head {worst.head})" if worst is not None and apart else ""

    def crosses(self, entropy: float, one_hot: float) -> bool:
        """True when Ĥ lies below ``entropy`` or the one-hot share above ``one_hot``."""
        return self.entropy.value < entropy or (self.one_hot is not None and self.one_hot.value > one_hot)

    def driven_by_input(self, entropy: float, one_hot: float, fresh_factor: float) -> bool:
        """True when attention is saturated on this input and not, or not known to be, at an input of RMS 1.

        On fresh weights Ĥ must lie below ``fresh_factor·entropy`` or the share of open heads below
        ``fresh_factor·(1 − one_hot)``.
        """
        factor = fresh_factor if self.fresh else 1.0
        crossed = self.crosses(factor * entropy, 1.0 - factor * (1.0 - one_hot))
        return crossed and not self.synthetic and self.made_by_weights(entropy) is not True

    def crossing(self, entropy: float, one_hot: float) -> tuple[Signal, float]:
        """The signal that crosses, with its limit: Ĥ where it does, else the one-hot share."""
        if self.entropy.value < entropy or self.one_hot is None:
            return self.entropy, entropy
        return self.one_hot, one_hot

    def made_by_weights(self, entropy: float) -> bool | None:
        """True when the weights saturate an input of RMS 1 as well, None when that was not measured."""
        return None if self.unit_entropy is None else self.unit_entropy < entropy


def attention(signals: Signals, *, min_degree: float = 3.0) -> tuple[Attention, ...]:
    """The attention of every layer with a known entropy.

    Layers whose median in-degree lies below ``min_degree`` are left out: with two neighbours a single logit
    difference already decides the entropy.
    """
    states = []
    for layer in signals.attention_layers:
        found = signals.find("attention.entropy", layer=layer.name, head=None)
        finite = [s for s in preferred(found) if math.isfinite(s.value)] if found else []
        degree = degree_of(signals, layer.name)
        if finite and (degree is None or degree >= min_degree):
            states.append(_attention_of(signals, layer.name, smallest(finite), degree))
    return tuple(states)


def _attention_of(signals: Signals, layer: str, entropy: Signal, degree: float | None) -> Attention:
    def partner(name: str, want: str) -> Signal | None:
        found = [s for s in signals.find(name, layer=layer, head=None) if s.source == entropy.source]
        found = [s for s in found if _degree_detail(s) == _degree_detail(entropy)] or found
        return (largest(found) if want == "largest" else smallest(found)) if found else None

    unit = partner("attention.entropy_unit_input", "smallest")
    heads = [
        s for s in signals.find("attention.entropy", layer=layer) if s.head is not None and s.source == entropy.source
    ]
    return Attention(
        layer=layer,
        entropy=entropy,
        one_hot=partner("attention.one_hot_share", "largest"),
        unit_entropy=unit.value
        if unit is not None and math.isfinite(unit.value)
        else _unit_entropy(signals, layer, degree),
        degree=degree,
        worst_head=smallest(heads) if len(heads) > 1 else None,
        fresh=fresh(signals),
    )


def _unit_entropy(signals: Signals, layer: str, degree: float | None) -> float | None:
    """Ĥ at an input of RMS 1 from the score spread, which grows with the square of the input's RMS.

    None for a layer whose scores are no products of two maps of the input. Uses Ĥ ≈ 1 − ρ for small ρ and a fit of the measured table for larger ones (ρ=.5: .71, 1: .58, 4: .33, 16: .17).
    """
    spread = measured(signals.find("score.within_std", layer=layer, head=None))
    scale = measured(signals.find("input.rms", layer=layer))
    facts = signals.layer(layer)
    if facts is not None and FAMILY in facts.options and not layer_named(facts).multiplies:
        return None
    if not spread or not scale or not degree or degree <= 1 or smallest(scale).value <= 0:
        return None
    at_one = largest(spread).value / max(1.0, smallest(scale).value ** 2)
    rho = at_one**2 / (2 * math.log(degree))
    return 1.0 / (1.0 + 0.75 * rho**0.72) if math.isfinite(rho) else None


def _degree_detail(signal: Signal) -> float:
    value = signal.detail.get("in_degree", signal.detail.get("degree", ASSUMED_DEGREE))
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else ASSUMED_DEGREE


def seen_at_the_end(signals: Signals) -> frozenset[str]:
    """Layers that came into the model of a run when it was watched already, and were measured in full when it had ended."""
    late = {blind.layer for blind in signals.blind if blind.came_later}
    return frozenset(
        late & {s.layer for s in signals.values if s.source == "training"} & {f.name for f in signals.layers}
    )


def left_out(signals: Signals) -> frozenset[str]:
    """Attention layers that no forward calls and that no gradient reaches, as of a template that copies were made from."""
    silent = [
        str(name)
        for signal in (*signals.find("place.without_gradient"), *signals.find("optimizer.never_updated"))
        for name in signal.detail.get("parameters", ())
    ]
    layers = {b.layer for b in signals.blind if b.site == "output" and not b.is_other_attention}
    moved = {s.layer for s in signals.find("weight.grad_rms") if s.value > 0}
    return frozenset(
        layer for layer in layers - moved if layer and any(name.startswith(f"{layer}.") for name in silent)
    )


def stops(signals: Signals, *operations: str) -> list[Signal]:
    """The places at which an operation of these kinds hands no gradient on to parameters, unless it does so in evaluation mode alone."""
    found = signals.find("place.gradient_stops")
    return [s for s in found if s.detail.get("operation") in operations and not s.detail.get("evaluation")]


def sharp_from_the_start(signals: Signals, layer: str | None, limit: float) -> bool:
    """True where the run's first measurement of a layer's attention has an entropy below ``limit`` already."""
    own = (s for s in signals.series if s.name == ATTENTION_ENTROPY and s.layer == layer and len(s.values))
    return any(bool(series.values[0] < limit) for series in own)


def fresh(signals: Signals) -> bool:
    """True when the weights are as initialised: the source says so, or every layer bears a recognisable fingerprint."""
    trained = signals.context.get("trained")
    if trained is not None:
        return not trained
    return bool(signals.attention_layers) and all(map(_recognised, signals.attention_layers))


def _recognised(layer: LayerFacts) -> bool:
    return bool(layer.initialisation) and not str(layer.initialisation).startswith(("unknown", "trained", "lightly"))


def large_gain(layer: str | None, signals: Signals) -> bool:
    """True when values carry a gain as large as query and key do: the initialisation is at fault, not the attention."""
    spread = [s.value for s in signals.find("logit.frobenius", layer=layer)]
    return bool(spread) and as_large(signals, layer, max(spread))


def as_large(signals: Signals, layer: str | None, spread: float) -> bool:
    """True when maps of the gain of the values give such a spread of the logits, or more than half of it."""
    value, facts = signals.value("gain.value", layer=layer), signals.layer(layer or "")
    maps = 2 if facts is None else layer_named(facts).score_maps
    return value is not None and value**maps > spread / 2


def worst_gradient_ratio(signals: Signals) -> Signal:
    """The gradient ratio furthest from 1; raises `NotEvaluable` when none was measured."""
    found = signals.find("gradient.ratio") or _ratio_from_slope(signals)
    if not found:
        raise NotEvaluable(signals.why_missing("gradient.ratio"))
    return max(preferred(found), key=lambda s: abs(math.log(s.value)) if 0 < s.value < math.inf else math.inf)


def _ratio_from_slope(signals: Signals) -> tuple[Signal, ...]:
    """The ratio that the slope over depth amounts to, e.g. that of Adam's second moments in a checkpoint."""
    slopes = [s for s in signals.find("gradient.slope") if math.isfinite(s.value)]
    depth = signals.depth
    return tuple(
        replace(s, name="gradient.ratio", value=math.exp(max(-700.0, min(700.0, s.value * (depth - 1)))))
        for s in slopes
        if depth > 1
    )


def percent(share: float) -> str:
    """A share as text: 0.423 → ``42 %``, small ones with one more digit."""
    return f"{100 * share:.1f} %" if 0 < abs(share) < 0.1 else f"{100 * share:.0f} %"


def names(layers: Iterable[str], most: int = 4) -> str:
    """Layer names for a sentence, at most ``most`` of them."""
    listed = list(layers)
    shown = ", ".join(listed[:most])
    return shown if len(listed) <= most else f"{shown} and {len(listed) - most} more"


def count(items: Sequence[object], of: Sequence[object]) -> str:
    """``3 of 3``."""
    return f"{len(items)} of {len(of)}"


def first_loss(signals: Signals) -> float:
    """The user's loss before any update of what was seen; NaN where nobody told it."""
    found = signals.find("loss")
    if found:
        return float(found[0].detail.get("first", math.nan))
    losses = signals.context.get("losses") or [math.nan]
    return float(losses[0]) if signals.context.get("loss_given") else math.nan
