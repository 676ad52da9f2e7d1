"""How the five causes stand on this model when no finding decides: the facts in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gnnstab.layers import parts
from gnnstab.records import LayerFacts, RuleStatus, Signals
from gnnstab.rules.queries import count, largest, measured, smallest, takes_dropout

StatusAndReason = tuple[str, str]
"""(status, reason)."""

Statuses = Mapping[str, RuleStatus]

_PASS_MODEL = "pass the model to see it (--model pkg.mod:factory --batch FILE)"


def status_from_configuration(cause: str, statuses: Statuses, signals: Signals) -> StatusAndReason:
    """Status and reason of one of the five causes from configuration and rule statuses alone."""
    if not signals.attention_layers:
        return "not-evaluable", "no attention layer was recognised"
    return _BY_CAUSE[cause](statuses, signals)


def _no_dropout(statuses: Statuses, signals: Signals) -> StatusAndReason:
    known = [layer for layer in signals.attention_layers if layer.dropout is not None]
    if not known and signals.attention_layers and not any(map(takes_dropout, signals.attention_layers)):
        return "absent", "layers of this kind have no dropout"
    if not known:
        told = f"a state dict does not hold the dropout probability; {_PASS_MODEL}"
        return "not-evaluable", "the layers do not say their dropout" if signals.kind != "checkpoint" else told
    off = [layer for layer in known if layer.dropout == 0]
    if not off:
        values = ", ".join(sorted({f"{layer.dropout:g}" for layer in known}))
        return "absent", f"dropout={values} in {count(known, known)} layers"
    return "present", (
        f"dropout=0.0 in {count(off, known)} layers; dropout is no stabiliser: inverted dropout raises the message RMS in "
        "training by √(1/(1−p)), ×1.05 at p=0.1"
    )


def _beta_disabled(statuses: Statuses, signals: Signals) -> StatusAndReason:
    known = [layer for layer in signals.attention_layers if layer.get("beta") is not None]
    if not known and not any(parts(layer, "gate") for layer in signals.attention_layers):
        return "absent", "layers of this kind have no gate between message and skip"
    if not known:
        return "not-evaluable", f"whether the beta gate is on cannot be seen; {_PASS_MODEL}"
    off = [layer for layer in known if not layer.get("beta")]
    if not off:
        return "absent", f"beta=True in {count(known, known)} layers"
    silent = [layer for layer in off if layer.get("beta_requested")]
    asked = f" (asked for in {count(silent, off)}, but root_weight=False switches it off)" if silent else ""
    return "present", (
        f"beta=False in {count(off, known)} layers{asked}; the gate halves skip and message, which damps only gradients that "
        f"explode with depth{_ratio(signals)}"
    )


def _no_residual(statuses: Statuses, signals: Signals) -> StatusAndReason:
    layers = signals.attention_layers
    known = [layer for layer in layers if layer.identity_path is not None]
    if not known:
        return (
            "not-evaluable",
            f"{_linear_skip(layers)}; whether an identity goes around the layers is code, not weights; {_PASS_MODEL}",
        )
    bare = [layer for layer in known if not layer.identity_path]
    if not bare:
        return "absent", f"an identity path leads around {count(known, known)} layers"
    seen = "" if len(known) == len(layers) else " of which that can be seen"
    where = f"no identity path around {count(bare, known)} layers{seen}, {_linear_skip(layers)}"
    shallow = f"; at {signals.depth} attention layers that made no measurable difference" if signals.depth <= 4 else ""
    return "present", f"{where}{shallow}{_ratio(signals)}"


def _attention_explosion(statuses: Statuses, signals: Signals) -> StatusAndReason:
    entropy = measured(signals.find("attention.entropy", head=None))
    if entropy:
        worst = smallest(entropy)
        scores = measured(signals.find("score.max_abs"))
        # Of a run the largest score is that of any recorded step, not that of the end.
        size = f", largest |score| {max(s.detail.get('worst', s.value) for s in scores):.3g}" if scores else ""
        lowest = f"lowest attention entropy {worst.value:.2f} of ln(in-degree) at {worst.layer}{size}"
        if _status(statuses, "GS301") == "passed" and _status(statuses, "GS302") in ("passed", "suppressed"):
            return "absent", lowest
        if fired := [code for code in ("GS301", "GS302") if _status(statuses, code) == "fired"]:
            return "present", f"{lowest}; {' and '.join(fired)} tells why that is no cause of its own here"
        return "not-evaluable", f"{lowest}; {_reason(statuses, 'GS301', 'GS302')}"
    weights = signals.find("logit.frobenius")
    if not weights:
        return "not-evaluable", _reason(statuses, "GS301", "GS302") or signals.why_missing("attention.entropy")
    worst = largest(weights)
    return "not-evaluable", (
        f"the weights alone give no warning (typical logit spread at an input of RMS 1: {worst.value:.2g} at {worst.layer}); "
        "whether the real input saturates them needs a batch (--model pkg.mod:factory --batch FILE)"
    )


def _unsuitable_init(statuses: Statuses, signals: Signals) -> StatusAndReason:
    layers, depth = signals.attention_layers, signals.depth
    labels = sorted({layer.initialisation for layer in layers if layer.initialisation})
    looks = f"weights look {', '.join(labels)}; " if labels else ""
    missed = (
        "the initialiser of the plain Linear layers did not reach the convolutions; "
        if _status(statuses, "GS202") == "fired"
        else ""
    )
    if _status(statuses, "GS201") == "fired":
        return "present", f"{looks}{missed}GS201: they begin as no initialisation in use draws them"
    if depth < 6 and (missed or "unknown" not in labels):
        status = "present" if missed else "absent"
        return (
            status,
            f"{looks}{missed}at {depth} attention layers no initialisation up to gain 5/3 made a measurable difference",
        )
    if depth < 6:
        return "not-evaluable", f"{looks}how they were drawn is not to be seen in them any more"
    if _status(statuses, "GS201") == "passed" or "passed" == _status(statuses, "GS203") == _status(statuses, "GS204"):
        gain = _ratio(signals).removeprefix("; ") or "the initial gain over all layers lies within its limits"
        return "present" if missed else "absent", f"{looks}{missed}{gain}"
    return "not-evaluable", f"{looks}{missed}{_reason(statuses, 'GS203', 'GS201')}"


_BY_CAUSE: Mapping[str, Callable[[Statuses, Signals], StatusAndReason]] = {
    "no-dropout": _no_dropout,
    "beta-disabled": _beta_disabled,
    "no-residual": _no_residual,
    "attention-explosion": _attention_explosion,
    "unsuitable-init": _unsuitable_init,
}


def _linear_skip(layers: Sequence[LayerFacts]) -> str:
    known = [(layer, name) for layer in layers for name in _SKIPS if layer.get(name) is not None]
    if not known:
        return "the layers' own linear skip cannot be seen"
    kept = [layer for layer, name in known if layer.get(name)]
    names = "/".join(dict.fromkeys(f"{name}=True" for _, name in known))
    return f"{count(kept, [layer for layer, _ in known])} layers have their own linear skip ({names})"


_SKIPS = ("root_weight", "residual")
"""Options that give a layer a linear branch of the node itself."""


def _ratio(signals: Signals) -> str:
    found = signals.find("gradient.ratio")
    return f"; gradient at the first over the last layer: {found[0].value:.2g}" if found else ""


def _status(statuses: Statuses, code: str) -> str:
    return statuses[code].status if code in statuses else ""


def _reason(statuses: Statuses, *codes: str) -> str:
    reasons = [statuses[code].reason for code in codes if code in statuses and statuses[code].reason]
    return reasons[0] if reasons else ""
