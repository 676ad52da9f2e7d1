"""Numbers that the weights of one layer give without any input; the formulas are the layer's own."""

from __future__ import annotations

import math

from gnnstab.checkpoint._heads import tried_heads
from gnnstab.layers import StoredLayer
from gnnstab.records import LayerFacts, Signal

SLOPE_SQUARED = {"relu": 0.5, "leaky_relu": 0.5, "gelu": 0.5, "elu": 0.5, "silu": 0.5, "tanh": 1.0, "identity": 1.0}
"""φ, the mean squared slope of the activation around zero (ReLU ½; tanh and identity 1; the smooth ReLUs as ReLU)."""


def layer_signals(stored: StoredLayer, facts: LayerFacts, activation: str) -> list[Signal]:
    """Gains and logit norms: per head (``head=h``) and their maximum (``head=None``) when the heads are known.

    Else the smallest maximum of all numbers of heads that are tried: what the norm is at least, whichever is right.
    """
    signals = gain_signals(stored, facts, activation)
    if facts.heads is None:
        width = stored.kind.widths(stored)[0]
        tried = tried_heads(width)
        norms = [{n: max(v) for n, v in stored.kind.logits(stored, heads).items()} for heads in tried]
        for name in norms[0]:
            each = [one[name] for one in norms]
            detail = {"over heads": "maximum", "heads tried": list(tried), "at each": each, "width": width}
            signals.append(Signal(name, min(each), facts.name, None, source="weights", detail=detail))
    else:
        for name, values in stored.kind.logits(stored, facts.heads).items():
            signals += [Signal(name, value, facts.name, head, source="weights") for head, value in enumerate(values)]
            over = {"over heads": "maximum"}
            signals.append(Signal(name, max(values), facts.name, None, source="weights", detail=over))
    return signals


def gain_signals(stored: StoredLayer, facts: LayerFacts, activation: str) -> list[Signal]:
    """``gain.value``, ``gain.skip`` and the interval of the static log gain λ per layer.

    With r, the weight of an identity path around the layer, taken as 0:
    λ ∈ [½ ln(φ b g_s²), ½ ln(φ b (g_s² + g_v²))], b = ¼ behind an open gate, else 1.
    """
    gain = stored.kind.gain(stored, facts)
    factor = SLOPE_SQUARED[activation] * (0.25 if gain.gated else 1.0)
    detail = {"activation": activation, "beta": gain.gated, "identity": 0.0}
    low, high = _half_log(factor * gain.skip**2), _half_log(factor * (gain.skip**2 + gain.value**2))
    return [
        Signal("gain.value", gain.value, facts.name, source="weights"),
        Signal("gain.skip", gain.skip, facts.name, source="weights"),
        Signal("gain.lambda_low", low, facts.name, source="weights", detail=detail),
        Signal("gain.lambda_high", high, facts.name, source="weights", detail=detail),
    ]


def _half_log(square: float) -> float:
    return 0.5 * math.log(square) if square > 0 else -math.inf
