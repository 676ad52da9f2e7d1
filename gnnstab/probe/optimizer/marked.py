"""A number among the targets that stands for missing values, at the rows that a mask of the batch tells, and the same steps without these rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gnnstab.errors import UsageError, let_through
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.batches.roles import is_target
from gnnstab.probe.optimizer._copies import twins
from gnnstab.probe.optimizer._zeros import of_zeros
from gnnstab.probe.optimizer.learning import LEARNS, MARGIN, at_any_rate, on_its_way
from gnnstab.probe.optimizer.softening import STEPS
from gnnstab.probe.optimizer.unseen import AROUND, halved, of_constants
from gnnstab.probe.replaying.marks import LEAST
from gnnstab.probe.replaying.replica import forked_rng
from gnnstab.records import Signal
from gnnstab.records.vocabulary import LOSS_MARKED_TARGETS

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench

APART = 3.0
"""Distance of a mark from the mean of the other targets, in their deviations, where a mask tells exactly the entries that hold it."""


def marked_signals(bench: Bench) -> Iterator[Signal]:
    """The distance of a mark that a mask tells and the loss compares with the output, where steps that leave it out bring the loss of the others further down."""
    with suppress(UsageError):
        for (target, mask), distance in told_by_masks(_named(bench, 0)).items():
            if (told := _tried(bench, target, mask)) is not None:
                yield Signal(LOSS_MARKED_TARGETS, distance, source="steps", detail=told)
                return


def _named(bench: Bench, number: int) -> dict[str, Tensor]:
    """What batch ``number`` holds for the loss and for the forward."""
    batch = bench.batches[number]
    beside = named_tensors(batch if isinstance(batch, tuple) else (batch,))
    return {**named_tensors(*bench.calls[number], bench.model), **beside}


def told_by_masks(named: Mapping[str, Tensor]) -> dict[tuple[str, str], float]:
    """(targets, mask) of a batch → how far the one number behind the mask is from the others, in their deviations, where it is `APART` or further."""
    masks = {name: t for name, t in named.items() if t.dtype == torch.bool and bool(t.any()) and not bool(t.all())}
    return {
        (name, mask): distance
        for name, targets in (named.items() if masks else ())
        if is_target(name) and targets.is_floating_point() and targets.layout is torch.strided and targets.dim()
        for mask, tells in masks.items()
        if (marks := _marks(targets, tells)) is not None and (distance := _distance(targets, marks)) >= APART
    }


def _marks(targets: Tensor, tells: Tensor) -> Tensor | None:
    """Which entries hold one and the same number that no other holds, where a mask tells just these, either way round."""
    if tells.numel() not in (targets.numel(), len(targets)):
        return None
    shape = targets.shape if tells.numel() == targets.numel() else (len(targets), *[1] * (targets.dim() - 1))
    both = tells.to(targets.device).reshape(shape).expand_as(targets)
    for marks in (~both, both):
        mark, others = targets[marks], targets[~marks]
        if len(mark) >= LEAST and bool((mark == mark[0]).all()) and not bool((others == mark[0]).any()):
            return marks
    return None


def _distance(targets: Tensor, marks: Tensor) -> float:
    mark, others = targets[marks][0].double(), targets[~marks].double()
    spread = float(others.std()) if len(others) >= LEAST else 0.0
    return float((mark - others.mean()).abs()) / spread if 0 < spread < math.inf else 0.0


def _tried(bench: Bench, target: str, mask: str) -> dict[str, Any] | None:
    """What the loss of the other entries comes to with and without the marks; None where the loss does not read them, or is no worse for it.

    Raises:
        UsageError: As `Bench.trial`.
    """
    known = [_known(bench, number, target, mask) for number in range(len(bench.batches))]
    if not _compared(bench, *known[0]):
        return None
    of_batch = {id(batch): one for batch, one in zip(bench.batches, known, strict=True)}

    def others(output: Any, batch: Any) -> Tensor:
        targets, marks = of_batch[id(batch)]
        if not isinstance(output, Tensor) or output.numel() != targets.numel():
            raise UsageError("the output has another shape than the targets")
        # What is equal to its target costs nothing.
        return bench.loss(torch.where(marks.view_as(output), targets.view_as(output).to(output), output), batch)

    def both(output: Any, batch: Any) -> Tensor:
        own, whole = others(output, batch), bench.loss(output, batch)
        return own.detach() + whole - whole.detach()

    without, as_is = halved(replace(bench, loss=others)), halved(replace(bench, loss=both))
    if without is None or as_is is None:
        return None
    start = without.trial(0).losses[0]
    first = min(start, of_zeros(without), of_constants(without))
    own, reached = (at_any_rate(one, first, 0.0, AROUND)[0] for one in (as_is, without))
    # Marks that the input foretells are learned, if slowly.
    if not reached >= max(LEARNS, own + MARGIN) or on_its_way(as_is, first):
        return None
    targets, marks = known[0]
    return {
        "mark": float(targets[marks][0]), "count": int(marks.sum()), "of": targets.numel(), "mask": mask, "target": target,
        "first": start, "best": first * math.exp(-own), "undone": first * math.exp(-reached), "steps": STEPS,
    }  # fmt: skip


def _known(bench: Bench, number: int, target: str, mask: str) -> tuple[Tensor, Tensor]:
    named = _named(bench, number)
    targets, tells = named.get(target), named.get(mask)
    marks = None if targets is None or tells is None else _marks(targets, tells)
    if targets is None or marks is None:
        raise UsageError("another batch holds no such targets")
    return targets, marks


def _compared(bench: Bench, targets: Tensor, marks: Tensor) -> bool:
    """True where a gradient comes back to most outputs whose targets are marks."""
    model, _ = twins(bench.model, bench.optimizer)
    try:
        with forked_rng(), torch.enable_grad():
            output = bench.forward(model, 0)[0].detach().requires_grad_()
            bench.loss(output, bench.batches[0]).backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        let_through(error)
        return False
    gradient = output.grad
    return gradient is not None and float((gradient.view_as(marks)[marks] != 0).double().mean()) > 0.5
