"""Values that are divided by their own size where nothing else is left of them, or by a sum of their own products that passes through 0."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gnnstab.probe.places import _autograd as autograd
from gnnstab.probe.places._numbers import sampled
from gnnstab.records.vocabulary import PLACE_SIGNED_DIVISOR

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

_FEWEST = 8
"""Entries from which on values that all come out at ±1 say something."""

_SIZES = (
    "Expand",
    "Clamp",
    "Unsqueeze",
    "Squeeze",
    "View",
    "Add",
    "Sqrt",
    "Rsqrt",
    "Pow",
    "Abs",
    "Sum",
    "Mean",
    "Amax",
    "Max",
    "Reciprocal",
)
"""Beginnings of the operations that a size is computed by."""

_NORMS = ("LinalgVectorNorm", "Norm")


def rows(seen: ForwardView) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """Every quotient of values and their own size, entry by entry, that varies before and is ±1 behind."""
    parameters = {name for name, _ in seen.model.named_parameters()}
    done: set[str] = set()
    for node in autograd.walk(seen.outputs):
        result = _over_own_size(node)
        if result is None or not _is_sign(*result):
            continue
        above = node.next_functions[0][0]
        place = autograd.made_by(above, seen.calls.maker) or "output"
        if place not in parameters | done:
            done.add(place)
            yield "place.normalised_away", place, float(result[0].numel()), {"input": place in seen.batch}
    yield from _through_zero(seen)


def row_norm(output: Tensor) -> float | None:
    """The norm that all rows of an output (rows, columns) have in common; None where they differ."""
    if output.dim() != 2 or len(output) < _FEWEST or output.shape[1] < 2 or not bool(output.isfinite().all()):
        return None
    norms = sampled(output.detach()).double().norm(dim=1)
    size = float(norms.mean())
    return size if size > 0 and float(norms.std()) < 1e-4 * size else None


_OTHER_SIGN = 0.01
"""Share of the divisors from which on those of the rarer sign are no exception."""

_SUMS = ("Sum", "Mean", "IndexAdd", "ScatterAdd", "Bmm", "SegmentReduce")

_MOST_OPERATIONS = 60
"""Operations of a divisor behind the layers that it comes from, at most."""


def _through_zero(seen: ForwardView) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """Every divisor of rows that is a sum over what the rows hold as well, and takes both signs: its median size over its smallest."""
    for node in autograd.walk(seen.outputs):
        divisor = autograd.saved(node, "_saved_other") if type(node).__name__.startswith("DivBackward") else None
        above, below = (one for one, _ in (*node.next_functions, (None, 0), (None, 0))[:2])
        if divisor is None or divisor.numel() < 2 * _FEWEST or None in (above, below):
            continue
        own = sampled(divisor.detach()).flatten()
        rarer = min(float((own > 0).double().mean()), float((own < 0).double().mean()))
        if rarer < _OTHER_SIGN or not bool(own.isfinite().all()) or not _summed_from(below, above):
            continue
        smallest = float(own.abs().min())
        place = autograd.made_by(node, seen.calls.maker).removesuffix(".aggr_module") or "output"
        yield PLACE_SIGNED_DIVISOR, place, float(own.abs().median()) / max(smallest, 1e-30), {"rarer": rarer}


def _summed_from(divisor: Any, values: Any) -> bool:
    """True for a sum over results of layers that the values are computed from, too."""
    layers, summed, waiting, known = set(), False, [divisor], {divisor}
    while waiting:
        node = waiting.pop()
        if len(known) > _MOST_OPERATIONS:
            return False
        if _of_weights(node):
            layers.add(node)
            continue
        summed |= type(node).__name__.startswith(_SUMS)
        more = [one for one, _ in node.next_functions if one is not None and one not in known]
        known.update(more)
        waiting += more
    return summed and bool(layers) and all(autograd.reaches(values, layer) for layer in layers)


def _of_weights(node: Any) -> bool:
    """True for an operation that is given a parameter, turned or not, and for an input."""
    given = [one for one, _ in node.next_functions if one is not None]
    given += [above for one in given if type(one).__name__.startswith("TBackward") for above, _ in one.next_functions]
    return not given or any(type(one).__name__ == "AccumulateGrad" for one in given)


def _over_own_size(node: Any) -> tuple[Tensor, Tensor] | None:
    """(values, values over their size) of a division by, or product with the reciprocal of, what was computed from the same values."""
    kind = type(node).__name__
    if not kind.startswith(("DivBackward", "MulBackward")):
        return None
    try:
        values, size = node._saved_self, node._saved_other
    except (RuntimeError, AttributeError):  # Freed, or nothing of it is needed.
        return None
    (above, _), (other, _) = node.next_functions[:2]
    if values is None or size is None or above is None or values.numel() < _FEWEST or not _is_size_of(other, above):
        return None
    values, size = values.detach(), size.detach()
    return values, values / size if kind.startswith("Div") else values * size


def _is_size_of(node: Any, values: Any) -> bool:
    """True where a chain of operations that compute a size leads from the values to a node."""
    for _ in range(8):
        if node is None or node is values:
            return node is values
        if not type(node).__name__.startswith((*_SIZES, *_NORMS)):
            return False
        node = node.next_functions[0][0]
    return False


def _is_sign(values: Tensor, result: Tensor) -> bool:
    present = values != 0
    sizes, left = values[present].abs().double(), result[present].abs().double()
    if sizes.numel() < _FEWEST or not bool(torch.isfinite(left).all()):
        return False
    return float(sizes.std()) > 0.05 * float(sizes.mean()) and float((left - 1).abs().max()) < 1e-3
