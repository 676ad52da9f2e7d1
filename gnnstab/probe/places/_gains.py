"""Weights that no initialisation in use has drawn: far too wide, or all units alike."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gnnstab.probe.places._autograd import leaves
from gnnstab.probe.places._calls import Call
from gnnstab.probe.places._inputs import before, normalised_next

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

WIDE = 2.0
"""Gain from which on a weight is listed; the largest initialisation in use has 5/3, a table of embeddings 1."""

FLAT = 0.5
"""Share of the stable rank of independent entries from which on a matrix looks drawn; training makes few directions large."""

EVEN = 1.8
"""Largest entry over RMS up to which entries fill an interval evenly (√3); among as many normal ones the largest lies above 2."""

_PRODUCTS, _TURNS = ("MmBackward", "AddmmBackward"), ("TBackward", "TransposeBackward", "PermuteBackward")
"""Nodes of products with a matrix, and of what turns one."""

ENTRIES = 16

ALIKE = 1e-4
"""Difference of the rows of a weight, and of its gradient, over the largest entry, below which its units are copies."""


def rows(seen: ForwardView) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """Numbers of every weight (out, in) that was used in the forward, after its backward."""
    done: set[int] = set()
    heads = {id(weight) for weight in _multiplied(seen)}
    for call in (*seen.calls.all, *_read_in_place(seen)):
        weight = getattr(call.module, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.dim() != 2 or not weight.numel() or id(weight) in done:
            continue
        done.add(id(weight))
        if not bool(weight.isfinite().all()) or _made_elsewhere(weight, call):
            continue
        table = isinstance(call.module, (nn.Embedding, nn.EmbeddingBag))
        if table and id(weight) in heads:
            # What it is looked up for suits entries of 1; as a map of the output it has a gain of √d then.
            if _gain(weight) > WIDE:
                detail = {"table": False, "tied": True, "drawn": _looks_drawn(weight.detach())}
                yield "place.gain", call.name, _gain(weight), detail
            continue
        gain = _gain(weight) / (math.sqrt(weight.shape[1]) if table else 1.0)
        if gain > WIDE and not normalised_next(seen, call) and not _undone_next(seen, call, gain):
            detail = {"table": table, "drawn": _looks_drawn(weight.detach()), "last": id(weight) in heads}
            yield "place.gain", call.name, gain, detail
        if not table and _copies(weight):
            yield "place.copied_units", call.name, float(len(weight)), {}


def _multiplied(seen: ForwardView) -> Iterator[Tensor]:
    """What the last product before the outputs multiplies by, transposed, and trains."""
    for output in seen.outputs:
        node = before(output.grad_fn)
        for factor, _ in getattr(node, "next_functions", ()) if type(node).__name__.startswith(_PRODUCTS) else ():
            source: Any = factor.next_functions[0][0] if type(factor).__name__.startswith(_TURNS) else None
            if hasattr(source, "variable"):
                yield source.variable


def _made_elsewhere(weight: Tensor, call: Call) -> bool:
    """True of a frozen weight behind nothing that trains, as in a teacher: this run has not drawn it, and no step starts from it."""
    return not weight.requires_grad and not any(isinstance(leaf, nn.Parameter) for leaf in leaves(call.leaving))


def _undone_next(seen: ForwardView, call: Call, gain: float) -> bool:
    """True where every map that takes what this one returns, at most a ReLU between, is as small as this one is large."""
    left = {t.grad_fn for t in call.leaving if t.grad_fn is not None}
    takers = [c for c in seen.calls.all if c.computes and any(before(t.grad_fn) in left for t in c.entering)]
    weights = [w for w in (getattr(c.module, "weight", None) for c in takers) if isinstance(w, Tensor) and w.dim() == 2]
    return bool(weights) and all(gain * _gain(weight) < WIDE for weight in weights)


def _gain(weight: Tensor) -> float:
    return float(weight.detach().double().square().mean().sqrt()) * math.sqrt(weight.shape[1])


def _read_in_place(seen: ForwardView) -> Iterator[Call]:
    """Tables of embeddings that the forward reads as they are, without calling their module: those that got a gradient."""
    for name, module in seen.model.named_modules():
        table = isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and name not in seen.calls.called
        if table and module.weight.grad is not None:
            yield Call(name, module, [], [module.weight])


def _looks_drawn(weight: Tensor) -> bool:
    """True where ‖W‖_F²/‖W‖² is about mn/(√m + √n)², as for independent entries.

    Of few rows or columns it says nothing; there entries that fill an interval evenly are those that torch has drawn.
    """
    m, n = weight.shape
    flat = weight.double()
    if min(m, n) < 3:
        return m * n >= ENTRIES and bool(flat.abs().max() <= EVEN * flat.square().mean().sqrt())
    top = float(torch.linalg.matrix_norm(flat, 2))
    return float(flat.square().sum()) / top**2 >= FLAT * m * n / (math.sqrt(m) + math.sqrt(n)) ** 2


def _copies(weight: nn.Parameter) -> bool:
    """True where all rows are the same and so are their gradients: no step can tell the units apart."""
    own, gradient = weight.detach(), weight.grad
    if len(own) < 4 or gradient is None:
        return False
    return all(bool((t - t[0]).abs().max() <= ALIKE * t.abs().max()) and bool(t.any()) for t in (own, gradient))
