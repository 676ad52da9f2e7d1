"""The first non-finite value, reproduced stage by stage, and the fixes tried on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gnnstab.errors import FixError, NothingEvaluable, UsageError
from gnnstab.fixes import find
from gnnstab.observation import measured_signals
from gnnstab.probe.operations.repeat import repeat
from gnnstab.probe.operations.telling import sentence
from gnnstab.probe.replaying.provenance import StageRow, locate_non_finite, walk
from gnnstab.probe.replaying.replica import Autocast, ForwardInputs, replica, run_replica, tensors_in
from gnnstab.randomness import keeps_random_state
from gnnstab.records import Event, Signals
from gnnstab.verification.fix_spec import fix_specs

FIRST_AID = ("fp32-attention", "qk-clip", "score-cap", "activation-clamp")
"""Fixes that leave the weights' meaning alone, and can therefore be tried on the very forward that failed."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One fix on the forward that failed."""

    fix: str
    verdict: str
    """``confirmed`` when everything is finite with it, ``no-effect`` when the same layer fails, ``inconclusive`` when
    only another one does, ``not-tested`` when the fix finds no place."""

    first: Event | None
    """The first non-finite value that is left."""

    reason: str


@dataclass(frozen=True, slots=True)
class Replay:
    """What happened, stage by stage."""

    event: Event | None
    """The first non-finite value; None when the forward is finite here."""

    rows: tuple[StageRow, ...]
    """Every stage in order of execution, up to the failure."""

    tried: tuple[Tried, ...]

    recorded: Event | None = None
    """What the monitor wrote into the bundle; None without one."""

    note: str = ""
    """How the replay compares with the run, or which of several batches this is."""

    operation: str = ""
    """The first operation behind it: sizes of its operands, line of the code."""


@keeps_random_state
def replay(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    precision: str = "fp32",
    fixes: Any = FIRST_AID,
) -> Replay:
    """`replay_forward` of the arguments of a forward, under autocast to ``precision`` (``fp32``, ``fp16``, ``bf16``)."""
    inputs = ForwardInputs(tuple(args), dict(kwargs or {}), autocast=Autocast.of(model, precision))
    return replay_forward(model, inputs, fixes)


def replay_forward(model: nn.Module, inputs: ForwardInputs, fixes: Any) -> Replay:
    """Run one forward again on a copy, stage by stage, and once more with every fix.

    Args:
        model: The model with the weights before the failing step.
        inputs: Of the failing forward.
        fixes: Which fixes to try, as for `gnnstab.verify`. Scores for qk-clip come from an fp32 run of the same forward.

    Raises:
        UsageError: The forward fails for another reason, or a fix needs fresh weights and so says nothing here.
        NothingEvaluable: The stages are finite, and no tensor is found in what the forward returns.
    """
    rows, event = walk(model, inputs)
    if event is None:
        event = _of_output(model, inputs)
        return Replay(event, tuple(rows), ())
    chosen = fix_specs(fixes)
    for item in chosen:
        if find(item.fix).needs_fresh_weights:
            raise UsageError(
                f"{item.fix} makes these weights useless, so that replaying them proves nothing; use gnnstab verify"
            )
    # A value that came in with the data is not cured by a change of the model.
    from_data = event.layer is None and event.stage == "input" and fixes == FIRST_AID
    tried = []
    for item in () if from_data else chosen:
        options = dict(item.options)
        if item.fix == "qk-clip" and "scores" not in options:
            options["signals"] = _scores(model, inputs)
        try:
            left = locate_non_finite(find(item.fix).apply(model, **options), inputs)
            tried.append(_compared(item.label, event, left))
        except FixError as error:
            tried.append(Tried(item.label, "not-tested", None, str(error)))
    found = repeat(model, inputs._replace(mode="train-nograd"))
    operation = sentence(found.origin) if found.origin is not None else ""
    return Replay(event, tuple(rows), tuple(tried), operation=operation)


def _of_output(model: nn.Module, inputs: ForwardInputs) -> Event | None:
    """The event of an output that no stage is: complex numbers. None where all numbers of it are finite.

    Raises `NothingEvaluable` for an object in which no tensor is found.
    """
    output = run_replica(replica(model), inputs)
    tensors = [tensor for _, tensor in tensors_in(output)]
    if not tensors and not isinstance(output, (int, float, complex, str, type(None))):
        raise NothingEvaluable(
            f"every stage that was seen is finite, but the forward of {type(model).__name__} returns a {type(output).__name__} in which no tensor is "
            "found: whether its output is finite cannot be told"
        )
    bad = sum(int((~t.isfinite()).sum()) for t in tensors if t.is_complex() and t.layout is torch.strided)
    if not bad:
        return None
    said = f"the output holds {bad} non-finite complex numbers, behind stages that are finite"
    return Event(0, "non-finite", mode=inputs.mode, stage="output", message=said)


def _compared(fix: str, event: Event, left: Event | None) -> Tried:
    if left is None:
        return Tried(fix, "confirmed", None, "everything is finite with it")
    where = f"{left.layer or 'the model'}, stage {left.stage}"
    if (left.layer, left.call) == (event.layer, event.call):
        return Tried(fix, "no-effect", left, f"the same layer is non-finite: {where}")
    return Tried(fix, "inconclusive", left, f"another layer is non-finite instead: {where}")


def _scores(model: nn.Module, inputs: ForwardInputs) -> Signals:
    """The scores of the same forward in fp32."""
    if inputs.args and inputs.kwargs:
        raise FixError("qk-clip needs measured scores: pass scores=")
    with torch.random.fork_rng(devices=[]):
        return measured_signals(model, inputs.kwargs or inputs.args)
