"""Facts of a checkpoint → signals: what the weights and the optimizer state say, and why the rest is missing."""

from __future__ import annotations

from gnnstab.checkpoint.facts import CheckpointFacts
from gnnstab.layers import LAYERS, kinds
from gnnstab.records import Signals
from gnnstab.records.vocabulary import GRADIENT_NORM, GRADIENT_SPIKE, SCORE_GROWTH, WEIGHT_GRAD_RMS

MODEL = "--model pkg.mod:factory"
BATCH = f"{MODEL} --batch FILE"

_NEEDS_BATCH = {
    "activations need an input": (
        "input.",
        "output.",
        "message.",
        "skip.",
        "channels.",
        "tanh.",
        "clip.",
        "smoothness.",
    ),
    "gradients need an input": ("gradient.", WEIGHT_GRAD_RMS),
    "the file holds no graph": ("degree.", "graph.", "pool.", "sum."),
    "the file holds no data": ("place.",),
    "the file holds no features": ("feature.",),
    "attention needs a graph": ("attention.",),
    "attention scores need a graph": ("score.",),
    "an aggregation needs a graph": ("aggregation.",),
    "messages need a graph": ("hub.",),
    "the beta gate needs an input": ("gate.",),
    "the size of the scores needs an input": ("precision.",),
}
"""Why a file shows nothing of the signals with these prefixes."""

_NEEDS_RUN = ("update.", "loss", GRADIENT_SPIKE, GRADIENT_NORM, SCORE_GROWTH)

_NO_STEPS = dict.fromkeys(_NEEDS_RUN, "a single checkpoint holds no steps; record a run with gnnstab.Monitor")


def from_checkpoint(facts: CheckpointFacts) -> Signals:
    """The signals of one checkpoint file, of kind ``checkpoint`` and source ``weights`` or ``optimizer``."""
    return Signals(
        kind="checkpoint",
        layers=facts.layers,
        values=facts.values,
        blind=facts.unjudged,
        missing=_missing(facts),
        context={
            "trained": facts.trained,
            "trained_reason": facts.trained_reason,
            "steps_counted": facts.steps_counted,
            "reshaped": facts.reshaped,
            "layers_expected": facts.layers_expected,
            "assumptions": list(facts.assumptions),
            "linear_initialisation": facts.linear_initialisation,
            "linear_layers": facts.linear_layers,
            "undecided": [f"{u.what}: {u.reason}; pass {u.option}" for u in facts.undecided],
            "optimizers": list(facts.optimizers),
            "uninitialised": list(facts.uninitialised),
            "progress": dict(facts.progress),
            **_step(facts),
        },
    )


def _missing(facts: CheckpointFacts) -> dict[str, str]:
    if not facts.layers:
        return {"": _no_layer(facts), **_NO_STEPS}
    missing = {key: f"{reason}; pass {BATCH}" for reason, keys in _NEEDS_BATCH.items() for key in keys}
    missing |= _NO_STEPS
    missing |= {u.what: f"{u.reason}; pass {u.option}" for u in facts.undecided}
    open_heads = next((u for u in facts.undecided if u.what == "heads"), None)
    bad = any(s.name == "weight.non_finite" and s.value > 0 for s in facts.values)
    if open_heads:
        missing["logit."] = f"{open_heads.reason}; pass {open_heads.option}"
    elif bad:
        missing["logit."] = missing["gain."] = (
            "weights that hold NaN or Inf have no norm; repair or go back to an earlier checkpoint"
        )
    missing["logit.edge_spectral"] = missing.get("logit.", "the layers take no edge features")
    missing["optimizer."] = _no_optimizer(facts)
    return missing


def _no_layer(facts: CheckpointFacts) -> str:
    if facts.unjudged:
        first = facts.unjudged[0]
        return f"no {kinds()} that can be judged; {first.layer or 'the file'} {first.reason}"
    absent = "; ".join(layer.absent for layer in LAYERS if layer.absent)
    return f"no {kinds()} in this file ({absent}); pass {BATCH} to see what there is"


def _no_optimizer(facts: CheckpointFacts) -> str:
    if facts.optimizers:
        return f"the optimizer state could not be used ({facts.optimizers[0]})"
    return "the file holds no optimizer state; save optimizer.state_dict() beside the weights"


def _step(facts: CheckpointFacts) -> dict[str, int]:
    """The most precise count of training steps in the file, under ``step``."""
    order = ("global_step", "step", "total_steps", "num_updates", "update", "iteration", "iter", "n_iter", "epoch")
    return next(({"step": facts.progress[name]} for name in order if name in facts.progress), {})
