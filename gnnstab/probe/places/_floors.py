"""An output that a ReLU keeps from the targets below zero."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from gnnstab.probe.places import _autograd as autograd
from gnnstab.probe.places._alone import Row
from gnnstab.probe.replaying.recovered_loss import squared_targets
from gnnstab.records.vocabulary import PLACE_UNREACHED_TARGETS

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView


def rows(seen: ForwardView, gradient: Tensor | None, loss: float, returned: Tensor | None = None) -> Iterator[Row]:
    """Share of the targets' variance that no output of zero or more can explain, where a ReLU ends the model and the loss is a squared error.

    ``gradient`` is that of the ``loss`` at the one output, as far as it is known; that was ``returned``, where it is not the one seen.
    """
    if len(seen.outputs) != 1 or gradient is None or not math.isfinite(loss):
        return
    (output,) = seen.outputs
    node = output.grad_fn
    while node is not None and type(node).__name__.startswith(autograd.SHAPES):
        node = node.next_functions[0][0]
    if node is None or not type(node).__name__.startswith("ReluBackward"):
        return
    targets = squared_targets(output if returned is None else returned, gradient, loss)
    if targets is None or not float(targets.var(correction=0)) > 0:
        return
    below = targets.clamp(max=0).square().mean() / targets.var(correction=0)
    yield PLACE_UNREACHED_TARGETS, "output", float(below), {"below": float((targets < 0).double().mean())}
