"""An output that its last operation, a ReLU, sigmoid, tanh or clamp, keeps from a part of the targets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from gnnstab.probe.batches.roles import is_target
from gnnstab.probe.places import _autograd as autograd
from gnnstab.probe.places._passes import Row
from gnnstab.probe.replaying.recovered_loss import is_absolute_error_of, squared_targets
from gnnstab.records.vocabulary import PLACE_UNREACHED_TARGETS

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

_ENDS = {
    "ReluBackward": ("ReLU", 0.0, math.inf),
    "SigmoidBackward": ("sigmoid", 0.0, 1.0),
    "TanhBackward": ("tanh", -1.0, 1.0),
}
"""Beginning of a node's class name → the function, its lower and its upper limit."""

CLAMP = "clamp"

_CLAMPS = ("ClampBackward", "ClampMinBackward", "ClampMaxBackward", "HardtanhBackward")

_SUMS = ("MulBackward", "DivBackward", "AddBackward", "SubBackward", "RsubBackward", "NegBackward")
"""Nodes that may shift and scale it afterwards, by numbers."""

_EXACT = 1e-5
"""Largest deviation from one factor and one shift for all entries, over the range: rounding leaves less."""

_EDGE = 1e-3
"""Share of the range, on each side, within which a target counts as inside: labels may stand on the limit."""


class End(NamedTuple):
    """What an output ends in."""

    operation: str
    low: float
    high: float
    """The limits of the output, a factor and a shift included."""


def rows(
    seen: ForwardView, end: End | None, gradient: Tensor | None, loss: float, returned: Tensor | None = None
) -> Iterator[Row]:
    """Share of the targets' variance that no output can explain which its last operation allows, where the loss is a squared or an absolute error.

    ``end`` is that of the one output, see `end_of`; ``gradient`` is that of the ``loss`` at the one output, as far as it is known; that was ``returned``, where it is not the one seen.
    """
    if end is None or gradient is None or not math.isfinite(loss):
        return
    output = seen.outputs[0] if returned is None else returned
    beside = [t for n, t in seen.batch.items() if is_target(n) and is_absolute_error_of(t, output, gradient, loss)]
    targets = beside[0].detach().double() if beside else squared_targets(output, gradient, loss)
    if targets is None or not float(targets.var(correction=0)) > 0:
        return
    _, low, high = end
    edge = _EDGE * (high - low) if math.isfinite(high - low) else 0.0
    outside = float(((targets < low - edge) | (targets > high + edge)).double().mean())
    beyond = (targets - targets.clamp(low, high)).square().mean() / targets.var(correction=0)
    limits = {key: limit for key, limit in (("low", low), ("high", high)) if math.isfinite(limit)}
    reach = {"smallest": float(targets.min()), "largest": float(targets.max())}
    detail = {"operation": end.operation, "outside": outside, **limits, **reach}
    yield PLACE_UNREACHED_TARGETS, "output", float(beyond), detail


def end_of(outputs: Sequence[Tensor]) -> End | None:
    """The function that the one output ends in, up to a fixed factor and shift; None for another. Before a backward, which frees what tells."""
    if len(outputs) != 1:
        return None
    (output,) = outputs
    node, moved = output.grad_fn, False
    while node is not None and type(node).__name__.startswith((*autograd.SHAPES, *_SUMS)):
        moved = moved or type(node).__name__.startswith(_SUMS)
        above = [one for one, _ in node.next_functions if one is not None]
        node = above[0] if len(above) == 1 else None
    if type(node).__name__.startswith(_CLAMPS) and not moved:
        lower, upper = autograd.limits(node)
        return End(CLAMP, -math.inf if lower is None else lower, math.inf if upper is None else upper)
    known = next((end for beginning, end in _ENDS.items() if type(node).__name__.startswith(beginning)), None)
    if known is None:
        return None
    operation, low, high = known
    factor, shift = _line(node, output) if moved else (1.0, 0.0)
    if not factor or not math.isfinite(factor):
        return None
    ends = factor * low + shift, factor * high + shift
    return End(operation, min(ends), max(ends))


def _line(node: Any, output: Tensor) -> tuple[float, float]:
    """Factor and shift that make the output from the result of a node; NaN where one pair of them does not."""
    made = autograd.saved(node, "_saved_result")
    if made is None or made.numel() != output.numel():
        return math.nan, math.nan
    x, y = made.detach().double().flatten(), output.detach().double().flatten()
    first, last = int(x.argmin()), int(x.argmax())
    width = float(x[last] - x[first])
    if not width > 0:
        return math.nan, math.nan
    factor = float(y[last] - y[first]) / width
    shift = float(y[first] - factor * x[first])
    exact = float((y - factor * x - shift).abs().max()) <= _EXACT * max(abs(factor), abs(shift))
    return (factor, shift) if exact else (math.nan, math.nan)
