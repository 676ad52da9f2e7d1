"""The cause of a non-finite value, from what was measured of it; none where nothing was."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gnnstab.records import Event, Signals
from gnnstab.records.vocabulary import OPTIMIZER_OUTPUT_MOVE, SINGULAR_OPERATION, WEIGHT_NON_FINITE
from gnnstab.rules.operation_advice import LEAVE_EMPTY, advice

LOW = ("fp16", "float16", "half", "bf16", "bfloat16")
GREW = 100.0
"""× the median of the steps before: from here on a size has grown over the run."""

_SHORTEST = 5
"""Steps that a growth must be seen over."""

_LARGE = ("overflow", "exp-overflow", "inf-minus-inf", "inf-over-inf", "undefined-of-inf")
_UNDEFINED = (
    "log-of-zero", "log-of-negative", "division-by-zero", "zero-over-zero", "root-of-negative", "inf-minus-inf", "inf-over-inf",
    "exp-overflow", "outside-domain", "undefined-of-inf", "uninitialised", "undefined", "deviation-of-one", "mean-of-nothing", "written",
)  # fmt: skip


class Judged(NamedTuple):
    """What is known of the cause of an event."""

    cause: str
    """One of the causes; ``""`` where nothing measured shows one."""

    why: str
    """The measurement that shows it, or what to pass to know more."""

    do: str = ""
    """What to change."""


def event_cause(signals: Signals, event: Event) -> Judged:
    """Cause of a non-finite value, the measurement that shows it, and what to change."""
    operation = event.detail.get("operation")
    if isinstance(operation, Mapping) and operation:
        return _of_operation(signals, event, operation)
    if any(s.value > 0 for s in signals.find("feature.non_finite")) or _came_with_input(signals, event):
        return Judged("non-finite-data", "the data held it already")
    held = event.detail.get("held")
    if isinstance(held, (list, tuple)) and held and event.stage in ("loss", "gradient"):
        batch = [t for t in held if t.get("owner") == "batch"]
        if batch:
            told = {"tensor": batch[0], "place": "loss"}
            why = f"the model's output is finite, and of the batch {batch[0]['words']}"
            return Judged("non-finite-data", why, advice(told, "non-finite-data"))
    if reduction := event.detail.get("of_too_few"):
        return Judged("undefined-operation", f"{reduction}: 0/0", LEAVE_EMPTY)
    if _only_targets_are_left(signals, event):
        why = "the targets hold NaN or Inf: of a finite output and finite targets this loss and its gradient are finite"
        return Judged("non-finite-data", why, _CLEAN_TARGETS)
    if event.stage == "weight" or event.detail.get("weights_finite") is False:
        return _of_weights(signals, event)
    if _overflowed_in_low_precision(event):
        return Judged(
            "precision",
            f"the sum passed the largest number of {event.detail.get('dtype')} with all weights finite; in float64 it is "
            f"{event.detail['largest_exact']:.3g}",
        )
    return Judged("", _unknown(event))


_ENTIRE = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits")
"""Losses that are finite, with their gradients, for all finite numbers of ordinary size."""

_ABSOLUTE = re.compile(r"(mean|sum) ← abs ← sub ← addmm")
"""Absolute differences to what a linear layer gives: their gradient is finite for a NaN, too, which the loss alone shows."""

_ORDINARY = 1e4
"""Size of an output whose square fits every format that a loss is computed in but fp16, whose overflow is told before."""

_CLEAN_TARGETS = "look at the targets with torch.isfinite, and leave such rows out of the loss"


def _only_targets_are_left(signals: Signals, event: Event) -> bool:
    """True where nothing between a finite output and the NaN that came back can have made it but what it was compared with."""
    if event.detail.get("other_loss"):
        return False
    graph = str(event.detail.get("loss_graph") or signals.context.get("loss_graph") or "")
    finite = float(event.detail.get("output_largest", math.inf)) < _ORDINARY
    # The gradient of the weights was finite, and so was what the layer was given: of finite numbers it makes no NaN.
    if (
        event.stage == "loss"
        and event.detail.get("loss") == "nan"
        and not event.detail.get("refines")
        and _ABSOLUTE.fullmatch(graph)
    ):
        return True
    dtype = str(event.detail.get("dtype") or "").removeprefix("torch.")
    loss, _, before = graph.partition(" ← ")
    entire = loss in _ENTIRE and not SINGULAR_OPERATION.search(before)
    return event.stage in ("loss", "gradient") and finite and entire and dtype not in LOW


def _of_operation(signals: Signals, event: Event, operation: Mapping[str, Any]) -> Judged:
    kind, tensor = str(operation.get("kind", "")), operation.get("tensor")
    if isinstance(tensor, Mapping):
        return _of_tensor(signals, event, operation, tensor)
    if operation.get("dtype") in LOW and (
        operation.get("finite_in_float32") or (operation.get("facts") or {}).get("float32") is not None
    ):
        what = "step" if operation.get("finite_in_float32") else "operation"
        return _with_advice("precision", f"the same {what} is finite in float32", operation)
    if operation.get("fits_float32"):
        why = "in float64 the same step is finite, and what comes out fits float32: only the way there does not"
        return _with_advice("undefined-operation", why, operation)
    undone = operation.get("undone")
    if undone:
        which = " and ".join(f"`{name}`" for name in undone)
        return _with_advice("feature-scale", f"with {which} standardised the same step is finite", operation)
    if kind in ("all-masked", "zero-times-inf"):
        return _with_advice("masking", "", operation)
    if kind == "overflow":
        grown = growth(signals, event.step)
        if grown:
            return Judged("learning-rate", grown)
        return Judged(
            "",
            "cause not established: the operands were as large as that, and no growth over steps was recorded before it",
        )
    if kind in _UNDEFINED:
        return _with_advice("undefined-operation", "", operation)
    return Judged("", _unknown(event))


def _of_tensor(signals: Signals, event: Event, operation: Mapping[str, Any], tensor: Mapping[str, Any]) -> Judged:
    owner = tensor.get("owner")
    if owner in ("batch", "local"):
        return _with_advice("non-finite-data", "", operation)
    if owner == "unknown":
        return Judged("", _NAMELESS, _RETURN_IT)
    return _of_weights(signals, event)


_NAMELESS = (
    "cause not established: that tensor has no name in the batch, the model or the line, and was not made in the repeated step; it is data, "
    "or something that a forward has left behind, such as a penalty in an attribute of the model"
)

_RETURN_IT = "return what the loss needs from the forward, so that its operations are watched, or look at the data with torch.isfinite"


def _of_weights(signals: Signals, event: Event) -> Judged:
    tensor = (event.detail.get("operation") or {}).get("tensor") or {}
    bad, total = event.detail.get("bad_parameters"), event.detail.get("parameters")
    if event.step <= 0 or event.detail.get("from_start"):
        if isinstance(bad, int) and isinstance(total, int) and 2 * bad > total > 2:
            if signals.kind != "trace":
                return Judged("", TOO_LATE)
            return Judged("", BROKEN_BEFORE if event.detail.get("from_start") else UNSEEN_UPDATES)
        names = event.detail.get("non_finite_parameters") or ()
        return _of_loaded_weights(signals, str(tensor.get("name") or next(iter(names), "")))
    grown = growth(signals, event.step)
    if grown:
        return Judged("learning-rate", f"the weights went non-finite in an update; {grown}")
    return Judged(
        "",
        "the weights went non-finite in an update, and no growth over steps was recorded before it: cause not established. Pass "
        "Monitor(loss=fn), so that the step is repeated with its loss before the weights move",
    )


def _of_loaded_weights(signals: Signals, name: str) -> Judged:
    """Weights that no update of what was seen has made non-finite: never written, or so in the file that they are from."""
    which = f"`{name}` was" if name else "weights were"
    if signals.kind == "trace" or signals.context.get("trained") is False:
        return Judged("uninitialized-parameter", f"{which} non-finite before the first update")
    bad = [s for s in signals.find(WEIGHT_NON_FINITE) if s.value > 0 and name in ("", s.detail.get("parameter"))]
    counted = signals.context.get("trained") or signals.context.get("steps_counted")
    if bad and not counted and all(s.detail.get("unwritten") for s in bad):
        why = "no step was counted, other weights are finite, and this one holds memory as it was"
        return Judged("uninitialized-parameter", f"{which} non-finite in the model as it was given: {why}", WRITE_IT)
    why = f"{which} non-finite in the model as it was given: which step or file made it so was not seen"
    return Judged("non-finite-data", why, MEND_FILE)


WRITE_IT = "write it before it is used, e.g. in reset_parameters; torch.empty gives memory as it is"

MEND_FILE = "load an earlier checkpoint, in which this weight is finite, and train on under gnnstab.Monitor, which names what makes it so"

BROKEN_BEFORE = "most of the network was non-finite when the run began: too late to show why. Look at the file or the code that its weights are from"

UNSEEN_UPDATES = (
    "most of the network became non-finite within the first step that was told of, in an update that was not seen: too late to show why. If it was "
    "the first, look at its rate; else call monitor.step() after each, or give the Monitor the optimizer whose step() makes them"
)

TOO_LATE = (
    "most of the network is non-finite: too late to show why. Look at an earlier state, or run the training under gnnstab.Monitor, which "
    "names the first operation"
)


def growth(signals: Signals, step: int) -> str:
    """Which size grew over the steps before ``step``, in words; empty when none did or no steps were recorded."""
    best, words = GREW, ""
    for move in signals.find(OPTIMIZER_OUTPUT_MOVE):
        if move.source == "training" and best < move.value < math.inf and (move.step or 0) <= step:
            best = move.value
            words = f"the update of step {move.step} moved the output by {move.value:.3g} times its spread"
    for series in signals.series:
        if series.name not in (
            "loss",
            "gradient.norm",
            "output.max_abs",
            "output.rms",
            "score.max_abs",
            "weight.rms",
            "input.rms",
        ):
            continue
        before = np.asarray(series.values, dtype=float)[np.asarray(series.steps) <= step]
        before = np.abs(before[np.isfinite(before)])
        if len(before) < _SHORTEST:
            continue
        usual = float(np.median(before[: max(_SHORTEST - 1, len(before) // 2)]))
        if usual > 0 and before[-1] / usual > best and before[-1] >= before[-2]:
            best = float(before[-1] / usual)
            where = f" of {series.layer}" if series.layer else ""
            words = f"{series.name}{where} had grown ×{best:.3g} over the {len(before)} recorded steps before it"
    return words


def _with_advice(cause: str, why: str, operation: Mapping[str, Any]) -> Judged:
    return Judged(cause, why, advice(operation, cause))


def _came_with_input(signals: Signals, event: Event) -> bool:
    if event.origin != "came-in" or event.stage == "weight":
        return False
    first = min(signals.layers, key=lambda layer: layer.position).name if signals.layers else None
    return event.stage in (None, "input") or (first is not None and event.layer == first and event.stage != "gradient")


def _overflowed_in_low_precision(event: Event) -> bool:
    exact = event.detail.get("largest_exact")
    dtype = str(event.detail.get("dtype") or "").removeprefix("torch.")
    return dtype in LOW and isinstance(exact, (int, float)) and event.detail.get("weights_finite") is True


def _unknown(event: Event) -> str:
    note = event.detail.get("note")
    said = f" ({note})" if note else ""
    if event.stage == "state":
        return (
            f"cause not established{said}: loss and weights stayed finite, so that the step which made it so was not seen; evaluation, or the "
            "updates that a training goes on with, read it"
        )
    if event.stage == "loss" and event.mode == "eval":
        return f"cause not established{said}: look at the output and the targets of the evaluation with torch.isfinite"
    if event.stage in ("loss", "gradient"):
        return f"cause not established{said}: pass Monitor(loss=fn), so that the loss and its backward are repeated as well"
    return f"cause not established{said}: run gnnstab replay on the bundle, or diagnose(model, batch, loss)"
