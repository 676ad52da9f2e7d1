"""What an output has not learned of targets far from where it began: the share of their variance that it leaves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from gnnstab.probe.batches.roles import columns, is_target
from gnnstab.probe.places import _numbers as numbers
from gnnstab.probe.places._passes import Row
from gnnstab.probe.replaying.recovered_loss import is_absolute_error_of, is_squared_error_of
from gnnstab.records.vocabulary import PLACE_TARGETS_LEFT

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView


def rows(seen: ForwardView, answer: Tensor, gradient: Tensor, loss: float) -> Iterator[Row]:
    """Mean square of the error over the variance of the targets within their columns, of every target that the loss compares as it is.

    Args:
        seen: The forward and its batch.
        answer: The one output that the loss was taken of, since when the weights may have moved.
        gradient: What came back to it, same shape.
        loss: Its value; a squared or an absolute error, or nothing is told.
    """
    for name, target in seen.batch.items():
        compared = is_target(name) and target.is_floating_point() and target.numel() == answer.numel()
        if not compared or not any(
            is_error(target, answer, gradient, loss) for is_error in (is_squared_error_of, is_absolute_error_of)
        ):
            continue
        meant = target.detach().double()
        now = seen.outputs[0].detach().double()
        apart = now.flatten() - meant.flatten()
        variance = float(columns(meant).var(0, correction=0).mean())
        left = float(apart.square().mean()) / variance if variance > 0 else math.nan
        if math.isfinite(left):
            detail = {"rms": numbers.rms(meant), "output_rms": numbers.rms(now)}
            yield PLACE_TARGETS_LEFT, name, left, detail
