"""Recognises attention that is written as exponentials over their sum: over edges by an index, or along an axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gnnstab.probe.layers.functions import DIVIDES, PRODUCTS, SAME, SUMS, TIMES, above_and_below
from gnnstab.probe.layers.group_sums import GROUP_SUMS, group_sum
from gnnstab.probe.statistics.dense import MASKED

_EXP = frozenset({torch.exp, Tensor.exp, Tensor.exp_, torch.exp_})
_MINUS = frozenset({torch.sub, Tensor.sub, Tensor.__sub__, torch.subtract, Tensor.subtract, Tensor.sub_})
_SPARSE = torch.sparse_coo_tensor
_SPARSE_SUM = torch.sparse.sum
_SPARSE_SOFTMAX = torch.sparse.softmax
STARTS = _EXP | _MINUS | {_SPARSE_SOFTMAX}
"""Functions that are looked at although nothing is followed yet."""

_KEEPS = frozenset(
    {
        *(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__, Tensor.to_dense),
        *(torch.clamp, Tensor.clamp, Tensor.clamp_, torch.clamp_min, Tensor.clamp_min, torch.maximum),
        *(torch.index_select, Tensor.index_select, torch.gather, Tensor.gather, torch.Tensor.coalesce),
        *(Tensor.repeat_interleave, torch.repeat_interleave, Tensor.expand_as, torch.broadcast_to),
    }
)
"""What a sum may pass through on its way below the fraction line, besides what keeps its numbers."""

Role = Literal["weight", "weighted", "sum", "total", "inverse", "sparse"]


@dataclass(slots=True, eq=False)
class Exponential:
    """One exponential; alive only until the layer returns."""

    score: Tensor
    """(…) what it received, before a maximum was subtracted."""

    weight: Tensor
    """(…) what was summed to the denominator."""

    given: Tensor
    """(…) what the exponential gave, before any mask."""

    axis: int = 0
    """The axis of edges or keys."""

    index: Tensor | None = None
    """(E,) the group of every edge; None where everything along ``axis`` is one group."""

    size: int = 0
    """How many groups there are."""

    def attention(self) -> Tensor:
        """(…) weight over the sum of its group."""
        weight = self.weight.detach()
        if self.index is None:
            return weight / weight.sum(self.axis, keepdim=True)
        weight = weight.movedim(self.axis, 0)
        sums = weight.new_zeros(self.size, *weight.shape[1:]).index_add_(0, self.index, weight)
        # Where all of a group are 0 they stay so: what the code adds to the denominator is not known.
        return weight / sums.where(sums != 0, torch.ones_like(sums)).index_select(0, self.index)

    def vanished(self) -> Tensor | None:
        """Share of the groups in which every exponential is 0 although one of its scores is none that masks; None along an axis."""
        if self.index is None:
            return None
        given, score = (
            t.detach().movedim(self.axis, 0).flatten(1) if t.dim() > 1 else t.detach()[:, None]
            for t in (self.given, self.score)
        )
        if len(given) != len(self.index) or given.shape != score.shape:
            return None
        index = self.index[:, None].expand_as(given)
        largest = given.new_full((self.size, given.shape[1]), -torch.inf)
        scores = largest.scatter_reduce(0, index, score, "amax")
        there = scores > MASKED
        return ((largest.scatter_reduce(0, index, given, "amax") == 0) & there).sum() / there.sum()


@dataclass(slots=True)
class OverEdges:
    """A softmax over edges that no function of its own stands for."""

    score: Tensor
    """(E, …) what it received."""

    attention: Tensor
    """(E, …) what it gave."""

    index: Tensor
    """(E,) the group of every edge."""

    size: int
    exponential: Exponential | None = None
    quotient: Tensor | None = None
    """What the division returned."""


@dataclass(slots=True)
class _Part:
    tensor: Tensor
    seen: Exponential
    role: Role


class Exponentials:
    """Follows every exponential of a forward to a division by its own sum.

    Counts as attention: the exponential over its sum within groups, and a sum of values that it weights over that sum. A
    kernel of distances, a variance from its logarithm, a partition function whose logarithm is taken are none of them.

    Args:
        dense: Told (score, quotient, axis, weights already) of exponentials that were normalised along an axis.
    """

    def __init__(self, dense: Callable[[Tensor, Tensor, int, bool], None]) -> None:
        self.edges: list[OverEdges] = []
        self._dense = dense
        self._parts: list[_Part] = []
        self._difference: tuple[Tensor, Tensor] | None = None
        self._done: list[Exponential] = []

    @property
    def follows(self) -> bool:
        """True while there is an exponential to follow."""
        return bool(self._parts)

    def clear(self) -> None:
        """Let every tensor go that was followed."""
        self._parts, self._done, self._difference = [], [], None

    def seen_elsewhere(self, score: Tensor, attention: Tensor) -> None:
        """Leave out a softmax that a layer within the one that is looked at has recorded."""
        self.edges = [
            one
            for one in self.edges
            if one.quotient is not attention and (one.exponential is None or one.exponential.score is not score)
        ]

    def look(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """One call of one of torch's functions that has just returned."""
        if func is _SPARSE_SOFTMAX:
            self._sparse_softmax(*args, *kwargs.values(), output=output)
        elif not isinstance(output, Tensor):
            return
        elif func in _MINUS:
            self._difference = (output, args[0]) if isinstance(args[0], Tensor) else None
        elif func in _EXP:
            self._exponential(args[0] if args else kwargs["input"], output)
        elif self._parts:
            self._follow(func, args, kwargs, output)

    def _exponential(self, score: Tensor, weight: Tensor) -> None:
        if not weight.is_floating_point() or not weight.dim() or weight.layout is not torch.strided:
            return
        if score is weight:  # In place: what it received is gone.
            score = weight.detach().log()
        elif self._difference is not None and self._difference[0] is score:
            minuend = self._difference[1]
            score = minuend if minuend.shape == score.shape else score
        self._parts.append(_Part(weight, Exponential(score, weight, weight), "weight"))

    def _follow(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        if func in GROUP_SUMS:
            done = group_sum(func, args, kwargs, output)
            for part in self._of(None if done is None else done.values):
                if done is not None:
                    self._summed(part, output, done.axis, done.groups, done.size)
        elif func is _SPARSE:
            for part in self._of(args[1] if len(args) > 1 else kwargs.get("values")):
                part.seen.index, part.seen.size = output._indices()[0], output.shape[0]
                self._add([part], output, "sparse" if part.role == "weight" else part.role)
        elif func is _SPARSE_SUM:
            for part in self._of(args[0]):
                if (args[1] if len(args) > 1 else kwargs.get("dim")) in (1, -1, [1], (1,)):
                    self._summed(part, output, 0, part.seen.index, part.seen.size)
        elif func in DIVIDES:
            self._divide(*above_and_below(func, args), output)
        elif func in TIMES:
            self._times(args, output)
        elif func in PRODUCTS or func is torch.sparse.mm:
            self._product(args[0], args[1], output)
        elif func is torch.einsum:
            for operand in args[1:] if len(args) > 2 else args[1]:
                self._add(self._of(operand, "weight"), output, "total")
        elif func in SUMS:
            self._sum(args, kwargs, output)
        elif func in SAME or func in _KEEPS:
            self._same(args, kwargs, output)

    def _of(self, tensor: Any, *roles: Role) -> list[_Part]:
        return [p for p in self._parts if p.tensor is tensor and (not roles or p.role in roles)]

    def _add(self, parts: list[_Part], output: Tensor, role: Role | None = None) -> None:
        self._parts += [_Part(output, part.seen, role or part.role) for part in parts]

    def _same(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        for one in (*args[:3], *kwargs.values()):
            if isinstance(one, Tensor):
                self._add(self._of(one), output)

    def _times(self, args: tuple[Any, ...], output: Tensor) -> None:
        for one, other in (args[:2], args[1::-1]):
            for part in self._of(one):
                if part.role == "inverse":
                    self._normalised(self._of(other), [part], output)
                elif part.role == "weight":
                    # One value per edge may be a mask, and what is masked is still summed to the denominator.
                    self._add([part], output, "weighted")
                    if output.shape == part.tensor.shape:
                        self._add([part], output)
                elif not isinstance(other, Tensor) or part.role == "total":
                    self._add([part], output)

    def _summed(self, part: _Part, output: Tensor, axis: int, index: Tensor | None, size: int) -> None:
        if part.role in ("weight", "sparse"):
            seen = part.seen
            if index is not None and part.role == "weight" and part.tensor.shape[axis] != len(index):
                return
            if part.role == "weight":
                seen.weight, seen.axis = part.tensor, axis
            seen.index, seen.size = index, size
            self._add([part], output, "sum")
        if part.role == "weighted" or (part.role == "weight" and index is not None):
            self._add([part], output, "total")

    def _sum(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        axes = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
        axes = axes if isinstance(axes, (tuple, list)) else (axes,)
        if len(axes) == 1 and isinstance(axes[0], int):
            for part in self._of(args[0], "weight", "weighted"):
                self._summed(part, output, axes[0] % part.tensor.dim(), None, 0)

    def _product(self, left: Tensor, right: Tensor, output: Tensor) -> None:
        for part in self._of(left, "sparse"):
            # Of a product with a vector or a single column the column may be ones, as the denominator's is.
            narrow = right.dim() == 1 or right.shape[-1] == 1
            self._add([part], output, "total")
            if narrow:
                self._add([part], output, "sum")
        for operand in (left, right):
            self._add(self._of(operand, "weight"), output, "total")

    def _divide(self, above: Any, below: Any, output: Tensor) -> None:
        sums = self._of(below, "sum") if isinstance(below, Tensor) else []
        if not sums:
            self._add(self._of(above, "weight", "sum", "total"), output)
        elif isinstance(above, Tensor) and above.dim() and (parts := self._of(above)):
            self._normalised(parts, sums, output)
        else:
            self._add(sums, output, "inverse")

    def _normalised(self, above: list[_Part], below: list[_Part], output: Tensor) -> None:
        for seen in {id(part.seen): part.seen for part in _shared(above, below)}.values():
            parts = [part for part in above if part.seen is seen and part.role in ("weight", "weighted", "total")]
            if not parts or any(seen is one for one in self._done):
                continue
            if seen.index is None:
                weighs = all(part.role != "weight" for part in parts)
                attention = seen.attention() if weighs else output
                self._dense(seen.score, attention, seen.axis, weighs)
            else:
                self._keep(seen, output)
            self._done.append(seen)

    def _keep(self, seen: Exponential, output: Tensor) -> None:
        if seen.index is not None and seen.score.numel() == seen.weight.numel():
            score = seen.score.detach().reshape(seen.weight.shape).movedim(seen.axis, 0)
            self.edges.append(OverEdges(score, seen.attention(), seen.index, seen.size, seen, output))

    def _sparse_softmax(self, matrix: Tensor, axis: int, *more: Any, output: Tensor) -> None:
        if matrix.sparse_dim() == 2:
            given, got = matrix.detach().coalesce(), output.detach().coalesce()
            groups = 1 - axis % 2
            self.edges.append(OverEdges(given.values(), got.values(), given.indices()[groups], given.shape[groups]))


def _shared(above: list[_Part], below: list[_Part]) -> Iterator[_Part]:
    sums = {id(part.seen) for part in below}
    return (part for part in above if id(part.seen) in sums)
