"""Which fixes to recommend for which cause on this target, in which order, and what to say beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gnnstab.fixes._loop import in_place_of_a_lower_rate
from gnnstab.fixes.base import NOTHING_MEASURED, Seen
from gnnstab.fixes.by_hand import ByHand, decays, normalised_too_much, operation_behind
from gnnstab.fixes.table import addressing, find
from gnnstab.layers import FAMILY, layer_named
from gnnstab.records import Cause, Finding, FixAdvice, LayerFacts, Signals
from gnnstab.records.vocabulary import (
    LOGIT_ALIGNMENT,
    OPTIMIZER_UNSEEN,
    PLACE_CONSTANT_ROWS,
    PLACE_LOST_DIGITS,
    PLACE_SHARED_ANSWERS,
    POOL_SUM_SIZE,
    SUM_BY_HAND_SIZE,
)

Choice = tuple[str, dict[str, Any], str]
"""Fix, its options, and what is known about it on this target."""


def recommend(
    causes: Iterable[Cause], findings: Iterable[Finding], signals: Signals | None = None
) -> tuple[Cause, ...]:
    """The causes with `FixAdvice` attached: the change for this model, not yet tested, and how to test it.

    A root or contributing cause gets the fixes that measurements support for it, best first. A cause that is merely
    present gets the one that belongs to it, with the note that nothing measured asks for it. Causes that are absent
    or not evaluable get none.
    """
    codes = frozenset(finding.code for finding in findings)
    found = tuple(causes)
    roots = frozenset(cause.cause for cause in found if cause.status == "root-cause")
    seen = Seen(codes, roots, signals or NOTHING_MEASURED)
    return tuple(replace(cause, fixes=_advice(cause, seen)) for cause in found)


def _advice(cause: Cause, seen: Seen) -> tuple[FixAdvice, ...]:
    if cause.status in ("root-cause", "contributing"):
        choices = COMPETING.get(cause.cause, _addressing(cause.cause))(seen)
    elif cause.status == "present":
        choices = _STANDING_BY.get(cause.cause, [])
    else:
        return ()
    layers = seen.signals.layers
    return tuple(
        FixAdvice(
            name,
            find(name).change(layers, seen.signals, **options),
            signal=find(name).signal,
            note=_note(name, options, said),
        )
        for name, options, said in choices
        if find(name).helps(seen.signals, **options) and _fits(find(name).edit, layers)
    )


def _fits(edit: str, layers: Sequence[LayerFacts]) -> bool:
    """False where no attention layer is of a kind that can be edited so; the scores of somebody's own layers can be scaled in its code."""
    own = edit == "scale_scores" and any(FAMILY in layer.options for layer in layers if layer.attention)
    kinds = [layer_named(layer) for layer in layers if layer.attention]
    return own or not edit or not kinds or any(kind.applies(edit) for kind in kinds)


def _note(name: str, options: dict[str, Any], said: str) -> str:
    chosen = "".join(f" --option {k}={v}" for k, v in options.items())
    test = f"not tested: gnnstab verify --fix {name}{chosen}, or diagnose --verify"
    if isinstance(find(name), ByHand):
        test = "a change that cannot be tried on a copy: make it by hand and diagnose again"
    return f"{said}; {test}" if said else test


def _addressing(cause: str) -> Callable[[Seen], list[Choice]]:
    """All fixes that name the cause and do not speak against themselves by what was seen."""
    return lambda seen: [
        (fix.name, {}, fix.said)
        for fix in addressing(cause)
        if fix.unless not in seen.codes and (not fix.only_with or fix.only_with in seen.codes)
    ]


def _for_sums(seen: Seen, said: str = "") -> list[Choice]:
    """The reduction of a layer where one sums; a division where a pooling or the model's own code does."""
    own = any(seen.signals.find(name) for name in (SUM_BY_HAND_SIZE, POOL_SUM_SIZE))
    in_layers = any(not f.attention and f.aggregation in ("add", "sum") for f in seen.signals.layers)
    beside = find("weigh-messages").helps(seen.signals)
    names = ("weigh-messages",) * beside + ("divide-sum",) * own
    names += ("mean-aggregation-root", "norm-after-sum") * (in_layers or not names)
    return [(name, {}, said) for name in names]


def _for_attention(seen: Seen) -> list[Choice]:
    """Saturation by the input is cured at the input; saturation by the weights at queries and keys."""
    if "sum-aggregation" in seen.roots:
        return _for_sums(seen, "the sum aggregation before the layer drives the scores: treat that first")
    if "feature-scale" in seen.roots:
        return [("input-standardisation", {}, "the scale of the features drives the scores: treat that first")]
    if "GS302" in seen.codes and "unsuitable-init" in seen.roots:
        said = "layers before it grow what they pass on, and that drives the scores: treat that first"
        return [(name, options, said) for name, options, _ in _for_init(seen)]
    if "GS302" in seen.codes:
        return [("qk-norm", {}, "keeps the input's scale out of the scores"), ("score-cap", {}, "")]
    if _independent(seen.signals):
        said = "query and key agree no more than independent weights do: nothing learned is lost"
        return [("reinit-qk", {}, said), ("qk-norm", {}, ""), ("qk-clip", {}, "keeps the weights' directions")]
    return [
        ("qk-clip", {}, "a weight edit without any change of code"),
        ("qk-norm", {}, ""),
        ("score-cap", {}, "fixed caps of 50 or 100 do nothing at such in-degrees"),
    ]


def _independent(signals: Signals) -> bool:
    """True when no head's query and key agree more than weights that training has not made: see GS301."""
    from gnnstab.rules.gs301_attention_explosion import AttentionExplosion

    found = [s.value for s in signals.find(LOGIT_ALIGNMENT)]
    return bool(found) and max(found) <= AttentionExplosion().alignment


def _for_depth(seen: Seen) -> list[Choice]:
    """Identity paths of weight 1; on large gains only together with a norm or another initialisation."""
    if any(s.detail.get("cause") == "no-residual" for s in seen.signals.find(OPTIMIZER_UNSEEN)):
        bare = any(layer.get("root_weight") is False for layer in seen.signals.attention_layers)
        return [("root-weight", {}, "")] if bare else [("residual", {"weight": 1.0}, "where the widths are equal")]
    said = "a weight of 0.1 leaves the gradient ratio where it is"
    return [("pre-norm-residual", {}, said), ("residual-depth-init", {}, "needs fresh weights")]


def _for_init(seen: Seen) -> list[Choice]:
    """The identity path with small fresh weights restored every exploding stack of the fault benchmark, a gain of 1 alone most."""
    if "GS204" in seen.codes and "GS203" not in seen.codes:
        luck = "takes the growth per layer away, without a change of forward; in deep stacks a matter of luck"
        return [
            ("residual-depth-init", {}, "takes the growth per layer away and keeps a path that trains"),
            ("unit-gain-init", {}, luck),
            ("pre-norm-residual", {}, "bounds the growth; the large weights stay and train slowly"),
        ]
    return [
        ("residual-depth-init", {}, "depth scaling without the identity path would make it vanish faster"),
        ("pre-norm-residual", {}, "bounds the growth; weights of a large gain stay and train slowly"),
    ]


def _for_precision(seen: Seen) -> list[Choice]:
    """Where it overflowed, or what was rounded away, decides: no change of the attention helps elsewhere."""
    by_hand: list[Choice] = [("fp32-operation", {}, "")]
    if not seen.codes & {"GS501", "GS502"} and seen.codes & {"GS503", "GS504"}:
        lost = [s for s in seen.signals.find(PLACE_LOST_DIGITS) if s.detail.get("how") not in ("spaced", "scaled")]
        return by_hand if "GS504" in seen.codes and lost else []
    if "GS609" in seen.codes and not seen.codes & {"GS501", "GS502"}:
        return by_hand
    operation = operation_behind(seen.signals)
    inside = {layer.name for layer in seen.signals.attention_layers}
    if not operation or (operation.get("place") == "model" and str(operation.get("module")) in inside):
        wider: list[Choice] = [("fp32-attention", {}, "")] if seen.signals.context.get("precision") != "fp32" else []
        return [*wider, ("qk-clip", {}, "")]
    return by_hand


def _for_lone_nodes(seen: Seen) -> list[Choice]:
    """GS105 names dropout that takes the few edges of a node away; everywhere else the edges are missing themselves."""
    if any(s.detail.get("sparse") for s in seen.signals.find(PLACE_CONSTANT_ROWS)):
        return []  # Of a relation that is nearly empty the edges are wanted, and no loops.
    sparse = "GS105" in seen.codes and "GS402" not in seen.codes
    return [("dropout", {"p": 0.0}, "")] if sparse else [("root-weight", {}, "")]


def _for_alike_nodes(seen: Seen) -> list[Choice]:
    """First what the layers were asked to leave out, where their kind offers it; an identity path tells nothing apart that comes alike."""
    if "GS705" in seen.codes and "GS704" not in seen.codes:
        return [("keep-result", {}, "")]
    same_queries = any("queries" in s.detail for s in seen.signals.find(PLACE_SHARED_ANSWERS))
    looked_up = seen.codes & {"GS504", "GS408"} and "GS704" not in seen.codes
    if "GS609" in seen.codes or same_queries or looked_up:
        return []
    if any(layer.get("root_weight") is False for layer in seen.signals.attention_layers):
        said = "the layers were asked to leave the node's own features out"
        return [("root-weight", {}, said), ("pre-norm-residual", {}, "")]
    return _beside_identity("indistinguishable-nodes", seen)


def _for_norms(seen: Seen) -> list[Choice]:
    """A division by a value's own size is taken out; no other norm helps beside it."""
    if normalised_too_much(seen.signals):
        return [("undo-normalisation", {}, "")]
    return _addressing("normalization-misuse")(seen)


def _for_rate(seen: Seen) -> list[Choice]:
    """A decay that takes everything away does so at any rate; likewise a momentum of 1, a rate below 0, gradients that are still scaled."""
    if decays(seen.signals):
        return [("lower-decay", {}, "")]
    if instead := in_place_of_a_lower_rate(seen.signals):
        return [(name, {}, "") for name in instead]
    return [choice for choice in _addressing("learning-rate")(seen) if choice[0] not in _OTHER_THAN_RATE]


_OTHER_THAN_RATE = ("lower-decay", "correct-settings", "scaler-step")


def _alone(name: str, cause: str, seen: Seen) -> list[Choice]:
    """One fix where it helps; else all others of the cause."""
    if find(name).helps(seen.signals):
        return [(name, {}, "")]
    return [choice for choice in _addressing(cause)(seen) if choice[0] != name]


def _beside_identity(cause: str, seen: Seen) -> list[Choice]:
    """No identity path is offered where one leads around every layer already."""
    layers = seen.signals.attention_layers
    around = bool(layers) and all(layer.identity_path for layer in layers)
    return [choice for choice in _addressing(cause)(seen) if not (around and choice[0] == "pre-norm-residual")]


COMPETING: Mapping[str, Callable[[Seen], list[Choice]]] = {
    "attention-explosion": _for_attention,
    "no-residual": _for_depth,
    "learning-rate": _for_rate,
    "unsuitable-init": _for_init,
    "sum-aggregation": _for_sums,
    "precision": _for_precision,
    "isolated-nodes": _for_lone_nodes,
    "indistinguishable-nodes": _for_alike_nodes,
    "normalization-misuse": _for_norms,
    "oversmoothing": lambda seen: _alone("mix-first-state", "oversmoothing", seen),
    "saturated-gate": lambda seen: _beside_identity("saturated-gate", seen),
}
"""Causes whose fixes exclude or outrank each other by what was seen; of the others each fix knows its own case."""

_STANDING_BY: Mapping[str, list[Choice]] = {
    "no-dropout": [("dropout", {}, "no symptom asks for it; a cure for over-fitting, never for instability")],
    "beta-disabled": [
        ("beta", {}, "no symptom asks for it; it helps against exploding gradients and harms vanishing ones")
    ],
    "no-residual": [("residual", {"weight": 1.0}, "no symptom asks for it; up to four layers train as well without")],
}
"""What belongs to a cause that is present without any symptom."""
