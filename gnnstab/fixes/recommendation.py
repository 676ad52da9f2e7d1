"""Which fixes to recommend for which cause on this target, in which order, and what to say beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from gnnstab.fixes.by_hand import ByHand, operation_behind
from gnnstab.fixes.table import addressing, find
from gnnstab.layers import layer_named
from gnnstab.records import Cause, Finding, FixAdvice, LayerFacts, Signals
from gnnstab.records.vocabulary import LOGIT_ALIGNMENT, POOL_SUM_SIZE, SUM_BY_HAND_SIZE

Choice = tuple[str, dict[str, Any], str]
"""Fix, its options, and what is known about it on this target."""

_VANISHING, _EXPLODING = "GS203", "GS204"


def recommend(
    causes: Iterable[Cause], findings: Iterable[Finding], signals: Signals | None = None
) -> tuple[Cause, ...]:
    """The causes with `FixAdvice` attached: the change for this model, not yet tested, and how to test it.

    A root or contributing cause gets the fixes that measurements support for it, best first. A cause that is merely
    present gets the one that belongs to it, with the note that nothing measured asks for it. Causes that are absent
    or not evaluable get none.
    """
    codes = {finding.code for finding in findings}
    found = tuple(causes)
    roots = {cause.cause for cause in found if cause.status == "root-cause"}
    return tuple(replace(cause, fixes=_advice(cause, codes, roots, signals)) for cause in found)


def _advice(cause: Cause, codes: set[str], roots: set[str], signals: Signals | None) -> tuple[FixAdvice, ...]:
    if cause.status in ("root-cause", "contributing"):
        choices = _choices(cause.cause, codes, roots, signals)
    elif cause.status == "present":
        choices = _standing_by(cause.cause)
    else:
        return ()
    layers = signals.layers if signals is not None else ()
    return tuple(
        FixAdvice(
            name,
            find(name).change(layers, signals, **options),
            signal=find(name).signal,
            note=_note(name, options, said),
        )
        for name, options, said in choices
        if find(name).helps(layers, signals, **options) and _fits(find(name).edit, layers)
    )


def _fits(edit: str, layers: Sequence[LayerFacts]) -> bool:
    """False where no attention layer is of a kind that can be edited so."""
    kinds = [layer_named(layer) for layer in layers if layer.attention]
    return not edit or not kinds or any(kind.applies(edit) for kind in kinds)


def _note(name: str, options: dict[str, Any], said: str) -> str:
    chosen = "".join(f" --option {k}={v}" for k, v in options.items())
    test = f"not tested: gnnstab verify --fix {name}{chosen}, or diagnose --verify"
    if isinstance(find(name), ByHand):
        test = "a change that cannot be tried on a copy: make it by hand and diagnose again"
    return f"{said}; {test}" if said else test


def _choices(cause: str, codes: set[str], roots: set[str], signals: Signals | None) -> list[Choice]:
    if cause == "indistinguishable-nodes" and signals is not None and _without_skip(signals):
        return [
            ("root-weight", {}, "the layers were asked to leave the node's own features out"),
            ("pre-norm-residual", {}, ""),
        ]
    if cause == "learning-rate" and "GS608" in codes:
        return []  # All others lower it.
    if cause == "sum-aggregation":
        return _for_sums(signals)
    if cause == "isolated-nodes":
        return [("root-weight", {}, "")] if "GS402" in codes or "GS105" not in codes else [("dropout", {"p": 0.0}, "")]
    special = {
        "attention-explosion": _for_attention,
        "no-residual": _for_depth,
        "unsuitable-init": _for_init,
        "beta-disabled": _for_beta,
        "no-dropout": _for_dropout,
        "precision": _for_precision,
    }
    if cause == "normalization-misuse" and find("undo-normalisation").helps((), signals):
        return [("undo-normalisation", {}, "")]
    if cause in special:
        return special[cause](codes, roots, signals)
    return [(fix.name, {}, "") for fix in addressing(cause)]


def _for_sums(signals: Signals | None, said: str = "") -> list[Choice]:
    """The reduction of a layer where one sums; a division where a pooling or the model's own code does."""
    own = signals is not None and any(signals.find(name) for name in (SUM_BY_HAND_SIZE, POOL_SUM_SIZE))
    layers = (
        not own or any(not f.attention and f.aggregation in ("add", "sum") for f in signals.layers) if signals else True
    )
    names = ("divide-sum",) * own + ("mean-aggregation-root", "norm-after-sum") * layers
    return [(name, {}, said) for name in names]


def _without_skip(signals: Signals) -> bool:
    """True when some attention layer has no branch of the node's own features although its kind offers one."""
    return any(layer.get("root_weight") is False for layer in signals.attention_layers)


def _for_attention(codes: set[str], roots: set[str], signals: Signals | None) -> list[Choice]:
    """Saturation by the input is cured at the input; saturation by the weights at queries and keys."""
    if "sum-aggregation" in roots:
        return _for_sums(signals, "the sum aggregation before the layer drives the scores: treat that first")
    if "feature-scale" in roots:
        return [("input-standardisation", {}, "the scale of the features drives the scores: treat that first")]
    if "GS302" in codes and "unsuitable-init" in roots:
        said = "layers before it grow what they pass on, and that drives the scores: treat that first"
        return [(name, options, said) for name, options, _ in _for_init(codes, roots, signals)]
    if "GS302" in codes:
        return [("qk-norm", {}, "keeps the input's scale out of the scores"), ("score-cap", {}, "")]
    if signals is not None and _independent(signals):
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


def _for_depth(codes: set[str], roots: set[str], signals: Signals | None) -> list[Choice]:
    """Identity paths of weight 1; on large gains only together with a norm or another initialisation."""
    said = "a weight of 0.1 leaves the gradient ratio where it is"
    return [("pre-norm-residual", {}, said), ("residual-depth-init", {}, "needs fresh weights")]


def _for_init(codes: set[str], roots: set[str], signals: Signals | None) -> list[Choice]:
    """The identity path with small fresh weights restored every exploding stack of the fault benchmark, a gain of 1 alone most."""
    if _EXPLODING in codes and _VANISHING not in codes:
        return [
            ("residual-depth-init", {}, "takes the growth per layer away and keeps a path that trains"),
            (
                "unit-gain-init",
                {},
                "takes the growth per layer away, without a change of forward; in deep stacks a matter of luck",
            ),
            ("pre-norm-residual", {}, "bounds the growth; the large weights stay and train slowly"),
        ]
    return [
        ("residual-depth-init", {}, "depth scaling without the identity path would make it vanish faster"),
        ("pre-norm-residual", {}, "bounds the growth; weights of a large gain stay and train slowly"),
    ]


def _for_beta(codes: set[str], roots: set[str], signals: Signals | None) -> list[Choice]:
    """The gate halves both branches: a damper for explosion, and nothing for the rest."""
    if _EXPLODING not in codes:
        return []
    return [("beta", {}, "damps an exploding stack; beyond about 12 layers it overshoots into vanishing")]


def _for_precision(codes: set[str], roots: set[str], signals: Signals | None) -> list[Choice]:
    """Where it overflowed, or what was rounded away, decides: no change of the attention helps elsewhere."""
    if not codes & {"GS501", "GS502"} and codes & {"GS503", "GS504"}:
        return [("fp32-operation", {}, "")] if "GS504" in codes else []
    attention: list[Choice] = [("fp32-attention", {}, ""), ("qk-clip", {}, "")]
    operation = operation_behind(signals)
    if not operation:
        return attention
    inside = {layer.name for layer in signals.attention_layers} if signals is not None else set()
    if operation.get("place") == "model" and str(operation.get("module")) in inside:
        return attention
    return [("fp32-operation", {}, "")]


def _for_dropout(codes: set[str], roots: set[str], signals: Signals | None) -> list[Choice]:
    if _EXPLODING in codes:
        return []
    return [("dropout", {}, "against over-fitting only: it raises the RMS of messages")]


def _standing_by(cause: str) -> list[Choice]:
    table: dict[str, Choice] = {
        "no-dropout": ("dropout", {}, "no symptom asks for it; a cure for over-fitting, never for instability"),
        "beta-disabled": (
            "beta",
            {},
            "no symptom asks for it; it helps against exploding gradients and harms vanishing ones",
        ),
        "no-residual": ("residual", {"weight": 1.0}, "no symptom asks for it; up to four layers train as well without"),
    }
    return [table[cause]] if cause in table else []
