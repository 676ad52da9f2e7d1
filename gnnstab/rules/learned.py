"""What training has found: a loss that came down, sharp attention that is of use, and a softmax that no training comes back from."""

from __future__ import annotations

import math
from dataclasses import replace

from gnnstab.layers import layer_named
from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.vocabulary import (
    ATTENTION_ENTROPY,
    ATTENTION_ONE_HOT_SHARE,
    LOGIT_FROBENIUS,
    LOSS,
    LOSS_OVER_ZERO,
    OPTIMIZER_UNDONE,
    PLACE_TARGETS_LEFT,
    PRECISION_ROUNDING,
    SCORE_WITHIN_STD,
)
from gnnstab.rules.queries import ASSUMED_DEGREE, Attention
from gnnstab.rules.run_losses import learned_well, trained_well

LAST_BIT = 24 * math.log(2)
"""Lead of the largest score of a target from which on 1 − p is 0 in fp32: 16.6; its softmax passes no gradient back."""

UNDERFLOW = 126 * math.log(2)
"""Lead from which on all other weights leave the normal numbers of fp32: 87. Of inputs that were generated this one counts, since scores that are
products shrink with the square of a real input that is smaller."""


def frozen(signals: Signals, state: Attention | None) -> float | None:
    """The spread of the scores of one target where the softmax of a typical one has no gradient left; else None.

    Of scores that spread by σ over d neighbours the largest leads by about σ/√(2 ln d).
    """
    if state is None:
        return None
    own = [s for s in signals.find(SCORE_WITHIN_STD, layer=state.layer, head=None) if s.source == state.entropy.source]
    degree = max(state.degree or ASSUMED_DEGREE, math.e)
    lead = min((s.value for s in own), default=0.0) / math.sqrt(2 * math.log(degree))
    return min(s.value for s in own) if lead > (UNDERFLOW if state.synthetic else LAST_BIT) else None


def beyond(spread: Signal) -> bool:
    """True of a ``logit.frobenius`` at which the softmax of a typical target has no gradient left at an input of RMS 1 (`frozen`)."""
    return UNDERFLOW * math.sqrt(2 * math.log(ASSUMED_DEGREE)) < spread.value < math.inf


def _beyond(signals: Signals, layer: str | None, state: Attention | None) -> float | None:
    """As `frozen`, of a layer that was not run, by its weights at an input of RMS 1."""
    own = signals.find(LOGIT_FROBENIUS, layer=layer) if state is None else ()
    return max((s.value for s in own if beyond(s)), default=None)


def as_learned(found: Finding, signals: Signals, state: Attention | None, *, alignment: float, soft: float) -> Finding:
    """Sharpness that training has found is information where only a loss could tell whether it is of use.

    That is so of a file alone, unless its weights are as drawn or agree so little (``alignment``) that training has not made them so, or
    no gradient is left (`frozen`), of layers without queries and keys that could agree or with a learned factor beside them, and in a run
    whose loss ended at its best while attention that had begun ``soft`` became sharp.
    """
    # Of a short run nobody knows (None); its loss may show that it was long enough.
    trained = signals.context.get("trained")
    if trained is False or (trained is None and signals.kind == "model"):
        return found
    if signals.kind == "checkpoint" and (state is None or state.synthetic):
        if (spread := frozen(signals, state) or _beyond(signals, found.layer, state)) is not None:
            stuck = f"Scores of one target spread by {spread:.2g}: a softmax of fp32 is one-hot to its last bit there, and passes no gradient back."
            return replace(found, message=f"{found.message} {stuck}")
        layer = signals.layer(found.layer or "")
        tells = layer is not None and not layer_named(layer).weighs_scores
        aligned = [s.value for s in signals.find("logit.alignment", layer=found.layer) if tells]
        put_there = layer is not None and max(aligned, default=math.inf) <= alignment
        # Queries and keys that training made agree stay a warning here: a file does not tell earned from ruined.
        if put_there or (aligned and found.signal.startswith("logit.")):
            return found
        origin = "Training has made it so" if trained else "Training may have made it so"
        why = f"{origin}; whether it is of use, your data and loss tell: pass the model with batch= and loss=."
    elif (trained_well(signals) or learned_well(signals)) and _began_soft(signals, found.layer, soft):
        end = "has ended at its best" if trained_well(signals) else "has come down to a small part of what it was"
        why = f"Attention began soft, and the loss {end}: training has found it of use."
    else:
        return found
    return replace(found, severity="info", confidence="low", message=f"{found.message} {why}")


def _began_soft(signals: Signals, layer: str | None, soft: float) -> bool:
    first = [s.values[0] for s in signals.over_steps(ATTENTION_ENTROPY, layer=layer) if len(s.values) > 1]
    return bool(first) and min(first) >= soft


_IN_THE_WAY = {
    "GS302": (ATTENTION_ENTROPY, ATTENTION_ONE_HOT_SHARE),
    "GS406": ("place.rms", "place.column_ratio", "feature.rms", "feature.column_ratio"),
    "GS501": (PRECISION_ROUNDING,),
}
"""Rule → its signals of scales and formats that are blamed for keeping a model from learning, and of nothing else."""


def in_the_way(finding: Finding, signals: Signals) -> Finding:
    """A finding of what keeps models from learning, as information where the run has learned; what steps on a copy have shown stays, and targets.

    Of scores that the weights make, `as_learned` asks for more: they may have been learned by heart.
    """
    named = _IN_THE_WAY.get(finding.code, ())
    shown = finding.message.endswith(KEEPS) or finding.message.startswith("the targets")
    if finding.severity == "info" or finding.signal not in named or shown or not has_learned(signals):
        return finding
    return replace(finding, severity="info", message=f"{finding.message} The run has learned all the same.")


def has_learned(signals: Signals) -> bool:
    """True for a recorded run that nothing has kept from learning: its loss `came_down`.

    Where nobody knows the loss of an output of zeros, beside which a first one may be far off, it ended at its best, and a factor e further down.
    """
    # Targets far from 0 leave a large loss to an output of zeros, whose better half their mean alone takes away.
    left = [s.value for s in signals.find(PLACE_TARGETS_LEFT)]
    if signals.kind != "trace" or any(not share < math.exp(-2) for share in left):
        return False
    return came_down(signals) if signals.find(LOSS_OVER_ZERO) else trained_well(signals) and learned_well(signals, 3)


KEEPS = "the sharpness keeps the model from learning."
"""How a message of sharp attention ends that steps with softer scores have shown to do harm."""


def came_down(signals: Signals) -> bool:
    """True where the run, or steps on a copy, have brought the loss down to less than 1/e² of that of an output of zeros."""
    over = signals.find(LOSS_OVER_ZERO)
    told = [
        s.detail
        for name in (LOSS, OPTIMIZER_UNDONE)
        for s in signals.find(name)
        if {"best", "first"} <= s.detail.keys()
    ]
    # The ratio may have been measured at another step than the first.
    zeros = [[float(s.detail.get("zeros", float(one["first"]) / s.value)) for s in over] for one in told]
    return any(float(one["best"]) < math.exp(-2) * min(own, default=0.0) for one, own in zip(told, zeros, strict=True))
