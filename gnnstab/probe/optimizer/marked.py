"""A number among the targets that stands for missing values (at rows that a mask of the batch tells, or as a label below 0), and the same steps without these rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from gnnstab.errors import UsageError, let_through
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.batches.roles import is_target
from gnnstab.probe.optimizer._halved import halved
from gnnstab.probe.optimizer._zeros import of_constants, of_zeros
from gnnstab.probe.optimizer.learning import LEARNS, MARGIN, at_any_rate, on_its_way
from gnnstab.probe.optimizer.softening import STEPS
from gnnstab.probe.optimizer.unseen import AROUND
from gnnstab.probe.replaying.marks import LEAST
from gnnstab.probe.replaying.replica import forked_rng
from gnnstab.records import Signal
from gnnstab.records.vocabulary import LOSS_MARKED_TARGETS

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench

MOST = 0.9
"""Share of the rows below 0, and of those of a class, at which the gradient asks for that class from which on they are taken for it."""

CERTAIN = 20.0
"""Logit of the class that is asked for, and with the other sign of the others, at which a row costs nothing."""

APART = 3.0
"""Distance of a mark from the mean of the other targets, in their deviations, where a mask tells exactly the entries that hold it."""


class _Known(NamedTuple):
    """Of a batch, entries of the output that cost nothing, and which of them stand for marks."""

    right: Tensor
    marks: Tensor


def marked_signals(bench: Bench) -> Iterator[Signal]:
    """The distance of a mark that the loss compares with the output, or the share of labels below 0 that it takes for a class, where steps that leave them out bring the loss of the others further down."""
    with suppress(UsageError):
        for (target, mask), distance in told_by_masks(_named(bench, 0)).items():
            known = [_known(bench, number, target, mask) for number in range(len(bench.batches))]
            if (told := _tried(bench, known)) is not None:
                yield Signal(
                    LOSS_MARKED_TARGETS, distance, source="steps", detail=told | {"mask": mask, "target": target}
                )
                return
        for name, labels in _named(bench, 0).items():
            if (merged := _merged(bench, name, labels)) is not None and (
                told := _tried(bench, merged.known)
            ) is not None:
                below = int((labels < 0).sum())
                detail = told | {"mark": merged.label, "taken_for": merged.taken_for, "target": name}
                detail |= {"count": below, "of": len(labels)}
                yield Signal(LOSS_MARKED_TARGETS, below / len(labels), source="steps", detail=detail)
                return


class _Merged(NamedTuple):
    """A label below 0 that the loss takes for a class."""

    label: int
    taken_for: int
    known: list[_Known]


def labels_below_zero(labels: Tensor) -> bool:
    """True for (nodes,) whole numbers that hold one label below 0 beside two or more classes."""
    if labels.dtype not in (torch.int64, torch.int32) or labels.dim() != 1 or len(labels) < 4 * LEAST:
        return False
    found = torch.unique(labels)
    return int((found < 0).sum()) == 1 and len(found) > 2


def _merged(bench: Bench, name: str, labels: Tensor) -> _Merged | None:
    """What ``labels`` hold below 0, and the class that the gradient asks for there as it does where the label is that class.

    A loss over labels from −1 on, to which 1 is added, asks for another class at each of them.
    """
    if not is_target(name) or not labels_below_zero(labels):
        return None
    gradient, label = _returned(bench), int(labels.min())
    if gradient is None or gradient.dim() != 2 or len(gradient) != len(labels) or gradient.shape[1] < 2:
        return None
    below, read = labels < 0, (gradient != 0).any(-1)
    asked = gradient.argmin(-1)
    if int((below & read).sum()) < LEAST or not bool((below & read)[below].double().mean() > MOST):
        return None
    taken_for = int(torch.mode(asked[below & read]).values)
    beside = read & (labels == taken_for)
    same = [(asked[rows] == taken_for).double().mean() > MOST for rows in (below & read, beside)]
    if not bool(beside.any()) or not all(map(bool, same)):
        return None
    known = []
    for number in range(len(bench.batches)):
        others = _named(bench, number).get(name)
        if others is None or others.dim() != 1:
            return None
        certain = torch.full((len(others), gradient.shape[1]), -CERTAIN, device=gradient.device)
        certain[:, taken_for] = CERTAIN
        known.append(_Known(certain, (others < 0)[:, None].expand_as(certain)))
    return _Merged(label, taken_for, known)


def _named(bench: Bench, number: int) -> dict[str, Tensor]:
    """What batch ``number`` holds for the loss and for the forward."""
    batch = bench.batches[number]
    beside = named_tensors(batch if isinstance(batch, tuple) else (batch,))
    return {**named_tensors(*bench.calls[number], bench.model), **beside}


def may_hold_marks(named: Mapping[str, Tensor]) -> bool:
    """True where a mask of the batch tells marks among the targets, or labels lie below 0."""
    below = any(is_target(name) and labels_below_zero(labels) for name, labels in named.items())
    return below or bool(told_by_masks(named))


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


def _tried(bench: Bench, known: list[_Known]) -> dict[str, Any] | None:
    """What the loss of the other entries comes to with and without the marks; None where the loss does not read them, or is no worse for it.

    Raises:
        UsageError: As `Bench.trial`.
    """
    if not _compared(bench, known[0]):
        return None
    of_batch = {id(batch): one for batch, one in zip(bench.batches, known, strict=True)}

    def others(output: Any, batch: Any) -> Tensor:
        right, marks = of_batch[id(batch)]
        if not isinstance(output, Tensor) or output.numel() != right.numel():
            raise UsageError("the output has another shape than the targets")
        # What is right costs nothing.
        return bench.loss(torch.where(marks.view_as(output), right.view_as(output).to(output), output), batch)

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
    right, marks = known[0]
    return {
        "mark": float(right[marks][0]), "count": int(marks.sum()), "of": right.numel(),
        "first": start, "best": first * math.exp(-own), "undone": first * math.exp(-reached), "steps": STEPS,
    }  # fmt: skip


def _known(bench: Bench, number: int, target: str, mask: str) -> _Known:
    named = _named(bench, number)
    targets, tells = named.get(target), named.get(mask)
    marks = None if targets is None or tells is None else _marks(targets, tells)
    if targets is None or marks is None:
        raise UsageError("another batch holds no such targets")
    return _Known(targets, marks)


def _compared(bench: Bench, known: _Known) -> bool:
    """True where a gradient comes back to most outputs whose targets are marks."""
    gradient = _returned(bench)
    return gradient is not None and float((gradient.view_as(known.marks)[known.marks] != 0).double().mean()) > 0.5


def _returned(bench: Bench) -> Tensor | None:
    """The gradient that the loss of the first batch gives the output; None where it gives none, or the output is no tensor."""
    model = bench.twin()
    try:
        with forked_rng(), torch.enable_grad():
            output = bench.forward(model, 0)[0].detach().requires_grad_()
            bench.loss(output, bench.batches[0]).backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        let_through(error)
        return None
    gradient: Tensor | None = output.grad
    return gradient
