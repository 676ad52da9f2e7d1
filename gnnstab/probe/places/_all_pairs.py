"""Targets that a loss compares with every row of the output in place of their own: (N, 1) less (N,) is (N, N)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from gnnstab.probe.batches.roles import is_target
from gnnstab.probe.places._passes import Row
from gnnstab.probe.replaying.recovered_loss import CLOSE
from gnnstab.records.vocabulary import PLACE_BROADCAST_TARGETS

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

_MOST = 1024
"""Rows of which all pairs are taken; of a squared error any number."""

_FEWEST = 3
"""Rows that a target is compared with, from which on gradient and value are not those of a few by chance."""

_Error = Callable[[Tensor], Tensor]
"""Distances of the output from the targets → what each adds to the loss, or its derivative."""

_ERRORS: tuple[tuple[_Error, _Error], ...] = (
    (torch.abs, torch.sign),
    (lambda apart: F.huber_loss(apart, torch.zeros_like(apart), reduction="none"), lambda apart: apart.clamp(-1, 1)),
)


def rows(seen: ForwardView, answer: Tensor, gradient: Tensor, loss: float) -> Iterator[Row]:
    """How many rows each target is compared with, of targets whose loss is the squared, absolute or Huber's error of all pairs of output and target.

    Args:
        seen: The forward and its batch.
        answer: The one output that the loss was taken of, since when the weights may have moved.
        gradient: What came back to it, same shape.
        loss: Its value.
    """
    if answer.shape != gradient.shape or not 0 < loss < math.inf:
        return
    own, output = gradient.detach().double().flatten(), answer.detach().double().flatten()
    if not bool(own.isfinite().all()):
        return
    # Half of the targets above a row, and half below it, give an absolute error of all pairs no slope there.
    given, whole = own != 0, torch.ones_like(own, dtype=torch.bool)
    for name, tensor in seen.batch.items():
        if is_target(name) and tensor.is_floating_point() and tensor.numel() == len(own) and tensor.dim():
            target = tensor.detach().double().flatten()
            for read in (given, whole):
                part = output[read], target[read], own[read]
                if len(part[0]) >= _FEWEST and not _of_own(*part) and _of_all(*part, loss):
                    yield PLACE_BROADCAST_TARGETS, name, float(len(part[0])), {}
                    return


def _of_own(output: Tensor, target: Tensor, gradient: Tensor) -> bool:
    """True where the gradient may be that of each row's own target: of an absolute error whose targets all lie on one side it is that of all pairs, too."""
    apart = output - target
    return any(_along(gradient, made) is not None for made in (apart, *(slope(apart) for _, slope in _ERRORS)))


def _of_all(output: Tensor, target: Tensor, gradient: Tensor, loss: float) -> bool:
    count = len(target)
    # Of squares the mean of the targets tells the gradient, and their spread what is left of the loss.
    asked, spread = output - target.mean(), (target - target.mean()).square().sum()
    if (factor := _along(gradient, 2 * count * asked)) is not None:
        return _near(loss, factor * float(count * (asked.square().sum() + spread)))
    if count > _MOST:
        return False
    apart = output[:, None] - target
    for error, slope in _ERRORS:
        if (factor := _along(gradient, slope(apart).sum(1))) is not None and _near(
            loss, factor * float(error(apart).sum())
        ):
            return True
    return False


def _along(gradient: Tensor, made: Tensor) -> float | None:
    """The factor by which one is the other; None where they point elsewhere."""
    product = float(gradient @ made)
    alike = product >= (1 - CLOSE**2) * float(gradient.norm() * made.norm()) > 0
    return product / float(made @ made) if alike else None


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= CLOSE * abs(one)
