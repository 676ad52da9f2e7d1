"""What keeps a model from learning: the same steps on copies, as they are, at other rates, and with each suspect undone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gnnstab.errors import UsageError, let_through
from gnnstab.probe.optimizer._copies import twins
from gnnstab.probe.optimizer._stacks import may_have_stacks, stacks
from gnnstab.probe.optimizer._suspects import Suspect, suspects
from gnnstab.probe.optimizer.softening import STEPS as STEPS
from gnnstab.probe.replaying.replica import forked_rng
from gnnstab.records import Signal
from gnnstab.records.vocabulary import OPTIMIZER_STACK_SHARE

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench

LEARNS = 1.0
"""Fall of the loss, as ln(first / smallest), from which on no deep stack keeps a model from learning."""

LEARNS_WELL = 2.0
"""Fall from which on nothing does."""

RATES = (0.1, 1 / 3, 3.0, 10.0)
"""Factors on the rate that are tried before any suspect: what another rate brings about as well is no fault of the model."""

MARGIN = 1.0
"""Further fall of ln(loss), beyond that at any rate, from which on what was undone was in the way: a factor of e."""


def learning_signals(bench: Bench) -> Iterator[Signal]:
    """Share of the progress, in ln(loss), that what stands in the way of a model takes from the first steps; 0, with ``learns``, where a stack learns.

    Raises:
        UsageError: As `Bench.trial`.
    """
    as_is = bench.trial(STEPS, until=lambda losses: _progress(losses[0], losses) >= LEARNS_WELL).losses
    first, own = as_is[0], _progress(as_is[0], as_is)
    if math.isnan(own):
        return
    deep = _seen(bench, stacks) if may_have_stacks(bench.model) else []
    detail: dict[str, Any] = {"first": first, "best": min(as_is), "steps": len(as_is) - 1}
    if deep and own >= LEARNS:
        names = [name for stack in deep for name in stack.names]
        detail, deep = {"learns": True, "names": names[:40], **detail}, []
    hindered = None if own >= LEARNS_WELL else _worst(bench, [*deep, *_seen(bench, suspects)], as_is)
    yield hindered or Signal(OPTIMIZER_STACK_SHARE, 0.0, source="steps", detail=detail)


def _seen(bench: Bench, look: Callable[[nn.Module, Callable[[], Any]], Any]) -> list[Suspect]:
    """What a look at one forward of a copy finds."""
    model, _ = twins(bench.model, bench.optimizer)
    with forked_rng(), torch.enable_grad():
        try:
            return list(look(model, lambda: bench.forward(model, 0)[0]))
        except Exception as error:
            let_through(error)
            raise UsageError(f"the forward failed on a copy: {type(error).__name__}: {error}") from error


def _worst(bench: Bench, found: Sequence[Suspect], as_is: Sequence[float]) -> Signal | None:
    """The suspect without which the same steps get furthest, where they get further than as they are at any rate."""
    first, best = as_is[0], max(0.0, _progress(as_is[0], as_is))
    for factor in RATES if found else ():
        losses = bench.trial(
            STEPS, factor=factor, until=lambda seen: _progress(first, seen) >= LEARNS_WELL + MARGIN
        ).losses
        best = max(best, _progress(first, losses))
        if best >= LEARNS_WELL + MARGIN:
            return None
    tried: list[tuple[float, Suspect, tuple[float, ...]]] = []
    for suspect in found:
        try:
            with suspect.mode:
                losses = bench.trial(STEPS, edit=suspect.undo).losses
        except UsageError:  # The change does not fit the model: it is another kind than it looks like.
            continue
        tried.append((_progress(first, losses), suspect, losses))
    tried = [one for one in tried if one[0] >= best + MARGIN]
    if not tried:
        return None
    reached, suspect, losses = max(tried, key=lambda one: one[0])
    detail = {
        "cause": suspect.cause, "names": list(suspect.names[:40]), "count": len(suspect.names), "words": suspect.words,
        "suspect": suspect.suspect, "first": first, "best": min(as_is), "at_any_rate": first * math.exp(-best),
        "undone": min(losses), "steps": len(losses) - 1,
    }  # fmt: skip
    # Progress that the change alone makes, out of what it makes in all.
    return Signal(OPTIMIZER_STACK_SHARE, 1 - best / reached, source="steps", detail=detail)


def _progress(first: float, losses: Sequence[float]) -> float:
    """ln(first / smallest); NaN without a positive loss."""
    best = min(losses)
    return math.log(first / best) if 0 < best < math.inf and 0 < first < math.inf else math.nan
