"""Whether a deep stack keeps a model from being trained: the same steps on two copies, one of them with the stack's fault undone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from gnnstab.errors import UsageError, let_through
from gnnstab.probe.optimizer._copies import twins
from gnnstab.probe.optimizer._stacks import Stack, stacks
from gnnstab.probe.replaying.replica import forked_rng
from gnnstab.records import Signal
from gnnstab.records.vocabulary import OPTIMIZER_STACK_SHARE

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench

STEPS = 30
"""Steps of one trial: stacks with identity paths learn one batch by heart in them."""

LEARNS = 1.0
"""Fall of the loss, as ln(first / smallest), from which on a model learns, whatever stands in its way."""

FASTER = 4.0
"""Times its own progress that a stack's undoing may reach until a trial ends: three quarters are then the stack's share."""


def learning_signals(bench: Bench) -> Iterator[Signal]:
    """Share of the progress, in ln(loss), that each stack of the model takes from the first steps; 0, with ``learns``, where the model learns.

    Raises:
        UsageError: As `Bench.trial`.
    """
    found = _stacks(bench)
    if not found:
        return
    as_is = bench.trial(STEPS, until=lambda losses: _progress(losses[0], losses) >= LEARNS).losses
    first, own = as_is[0], _progress(as_is[0], as_is)
    if math.isnan(own):
        return
    if own >= LEARNS:
        names = [name for stack in found for name in stack.names]
        detail = {"learns": True, "names": names[:40], "first": first, "best": min(as_is), "steps": len(as_is) - 1}
        yield Signal(OPTIMIZER_STACK_SHARE, 0.0, source="steps", detail=detail)
        return
    enough = max(LEARNS, FASTER * own)
    for stack in found:
        try:
            losses = bench.trial(STEPS, edit=stack.undo, until=lambda seen: _progress(first, seen) >= enough).losses
        except UsageError:  # The change does not fit the model: another kind of stack than it looks like.
            continue
        with_it = _progress(first, losses)
        if with_it >= LEARNS:
            detail = {
                "cause": stack.cause, "names": list(stack.names[:40]), "count": len(stack.names), "words": stack.words,
                "suspect": stack.suspect, "first": first, "best": min(as_is), "undone": min(losses), "steps": len(losses) - 1,
            }  # fmt: skip
            # Progress that the change alone makes, out of what it makes in all.
            yield Signal(OPTIMIZER_STACK_SHARE, 1 - max(own, 0.0) / with_it, source="steps", detail=detail)


def _stacks(bench: Bench) -> list[Stack]:
    model, _ = twins(bench.model, bench.optimizer)
    with forked_rng(), torch.enable_grad():
        try:
            return stacks(model, lambda: bench.forward(model, 0)[0])
        except Exception as error:
            let_through(error)
            raise UsageError(f"the forward failed on a copy: {type(error).__name__}: {error}") from error


def _progress(first: float, losses: Sequence[float]) -> float:
    """ln(first / smallest); NaN without a positive loss."""
    best = min(losses)
    return math.log(first / best) if 0 < best < math.inf and 0 < first < math.inf else math.nan
