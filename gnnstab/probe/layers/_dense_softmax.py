"""Sees every dense softmax of a forward and decides by its use whether it is attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import TorchFunctionMode

from gnnstab.errors import let_through
from gnnstab.probe.layers._exponentials import STARTS, Exponentials, OverEdges
from gnnstab.probe.layers._linear_attention import LinearAttention
from gnnstab.probe.layers.functions import DIVIDES, MIXES, PRODUCTS, SAME, SUMS, TIMES
from gnnstab.probe.statistics.dense import MASKED
from gnnstab.torch_private import not_compiled_alone, without_torch_function

_SOFTMAX = frozenset({torch.softmax, F.softmax, Tensor.softmax})
_FUSED = F.scaled_dot_product_attention
_LOOKED_AT = _SOFTMAX | STARTS | PRODUCTS | {_FUSED, torch.einsum} | DIVIDES
"""What is looked at although nothing is followed yet."""

_PRODUCTS_KEPT = 4
"""Products of one forward that are kept, the latest: relations between pairs may be multiplied before the softmax too."""

_BIAS = 0.25
"""Share of the scores' squares that a bias beside a multiple of a product may make: what is sharp is so by the product, then."""


@dataclass(slots=True)
class Attended:
    """One softmax over keys that weighted values; alive only until the layer returns."""

    score: Tensor
    """(…) what softmax received."""

    attention: Tensor
    """(…) what it returned."""

    axis: int
    """The axis of the keys, from 0."""

    scale: float | None = None
    """c where the scores are c·q·k/√d, for entries of RMS 1, or c times cosines; None where that is not known."""

    cosines: bool = False
    """True of products of unit vectors."""


@dataclass(slots=True)
class Fused:
    """One call of torch's fused attention, whose scores nobody keeps."""

    query: Tensor
    key: Tensor
    mask: Tensor | None
    causal: bool
    scale: float | None


@dataclass(slots=True)
class _Followed:
    tensor: Tensor
    seen: Attended
    axis: int


class Attending(TorchFunctionMode):
    """Notes what is attention among the softmaxes of one forward.

    A softmax counts as attention when its result, dropout and the like behind it, is multiplied with something else and
    the product is summed along the axis of the keys: by a matrix product, an einsum, or a product with a sum after it. A
    softmax whose result is returned, compared or looked up (classes, policies, clusters that nodes are assigned to) is none.
    Exponentials over their sum are a softmax too, see `Exponentials`; ``linear``: look for `LinearAttention` as well;
    ``products``: keep the last products of two tensors, which scores are made of.
    """

    current: dict[int, list[Attending]] = {}  # noqa: RUF012  # shared on purpose: who looks, per thread, innermost last

    def __init__(self, linear: bool = True, products: bool = False) -> None:
        super().__init__()
        self._products: list[tuple[Tensor, float, bool]] | None = [] if products else None
        self.attended: list[Attended] = []
        self.fused: list[Fused] = []
        self.error: Exception | None = None
        self._followed: list[_Followed] = []
        self._weighted: list[_Followed] = []
        self.exponentials = Exponentials(self._normalised)
        self.linear = LinearAttention(linear)
        self.normalises = False
        """True once a softmax was called, whatever became of it."""

    @property
    def edges(self) -> list[OverEdges]:
        """Softmaxes over edges."""
        return self.exponentials.edges

    def __enter__(self) -> Attending:
        self.current.setdefault(get_ident(), []).append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        stack = self.current[get_ident()]
        stack.pop()
        if not stack:
            del self.current[get_ident()]
        self._followed, self._weighted = [], []
        self._products = None if self._products is None else []
        self.exponentials.clear()
        self.linear.clear()

    @not_compiled_alone
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the function; look at it if it is one of those that matter."""
        output = func(*args, **kwargs) if kwargs else func(*args)
        if is_dynamo_compiling():  # Traced into a function of the user's, which only the call above is a part of.
            return output
        follows = self._followed or self.exponentials.follows or self.linear.follows
        if self.error is None and (follows or func in _LOOKED_AT):
            # A layer within this one has a look of its own.
            if self.current[get_ident()][-1] is not self:
                return output
            try:
                with without_torch_function():
                    self._look(func, args, kwargs or {}, output)
            except Exception as error:
                let_through(error)
                self.error = error
        return output

    def _look(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        self.exponentials.look(func, args, kwargs, output)
        if self._products is not None and (func in PRODUCTS or func is torch.einsum) and _strided(args):
            self._products = [*self._products[1 - _PRODUCTS_KEPT :], (output.detach(), *_unit(func, args))]
        self.linear.look(func, args, output)
        if func in _SOFTMAX:
            self._softmax(args, kwargs, output)
        elif func is _FUSED:
            self._attention(*args, **kwargs)
        elif func in PRODUCTS:
            self._product(*(args if func is not Tensor.__rmatmul__ else args[::-1]), *kwargs.values())
        elif func is torch.einsum:
            self._einsum(*args)
        elif func in TIMES:
            self._times(args, output)
        elif func in SUMS and self._weighted:
            self._sum(args, kwargs)
        elif func in SAME and isinstance(output, Tensor):
            self._same(args, kwargs, output)
        elif func in MIXES and isinstance(output, Tensor):
            self._mixed(args, output)

    def _softmax(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        score = args[0] if args else kwargs["input"]
        axis = args[1] if len(args) > 1 else kwargs.get("dim")
        self.normalises = True
        if isinstance(axis, int) and score.dim() > 1 and not score.is_sparse and score.is_floating_point():
            axis %= score.dim()
            seen = Attended(score, output, axis, *self._over_products(score))
            self._followed.append(_Followed(output, seen, axis))

    def _over_products(self, score: Tensor) -> tuple[float | None, bool]:
        """The factor c of scores that are c·q·k/√d, or c times cosines (True), a smaller bias beside it, on every key that no mask has taken away.

        None where they are something else.
        """
        for product, unit, cosines in self._products or ():
            if product.shape != score.shape or not unit:
                continue
            kept = score.detach() > MASKED
            own, made = score.detach()[kept].double(), product[kept].double()
            size = float(made.square().sum())
            factor = float(own @ made) / size if size > 0 else 0.0
            if factor > 0 and float((own - factor * made).square().sum()) <= _BIAS * float(own.square().sum()):
                return factor * unit, cosines
        return None, False

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        **other: Any,
    ) -> None:
        if not query.is_nested and query.shape[:-2] == key.shape[:-2]:
            self.fused.append(Fused(query.detach(), key.detach(), attn_mask, is_causal, scale))

    def _found(self, tensor: Any) -> _Followed | None:
        return next((one for one in self._followed if one.tensor is tensor), None)

    def _same(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        for one in (*args[:2], *args[2:3], *kwargs.values()):
            found = self._found(one) if isinstance(one, Tensor) else None
            axis = None if found is None else _axis(found.tensor, found.axis, output)
            if found is not None and axis is not None:
                self._followed.append(_Followed(output, found.seen, axis))
                return

    def _product(self, left: Tensor, right: Tensor) -> None:
        found = self._found(left)
        if found is not None and found.axis == left.dim() - 1:
            self._keep(found.seen)
        found = self._found(right)
        if found is not None and found.axis == max(right.dim() - 2, 0):
            self._keep(found.seen)

    def _einsum(self, equation: Any, *operands: Any) -> None:
        operands = tuple(operands[0]) if len(operands) == 1 and isinstance(operands[0], (tuple, list)) else operands
        if not isinstance(equation, str) or len(operands) != 2:
            return
        terms, _, result = equation.replace(" ", "").partition("->")
        parts = terms.split(",")
        for own, other, operand in ((parts[0], parts[1], operands[0]), (parts[1], parts[0], operands[1])):
            found = self._found(operand)
            if found is not None and "." not in own and len(own) == operand.dim():
                letter = own[found.axis]
                if letter in other and letter not in result:
                    self._keep(found.seen)

    def _times(self, args: tuple[Any, ...], output: Tensor) -> None:
        for one, other in (args[:2], args[1::-1]):
            found = self._found(one)
            if found is None:
                continue
            if isinstance(other, Tensor) and other.dim() and output.shape != one.shape:
                behind = output.dim() - one.dim()
                self._weighted.append(_Followed(output, found.seen, found.axis + behind))
            elif output.shape == one.shape:
                # As many numbers as weights, or fewer, are a mask or a scale.
                self._followed.append(_Followed(output, found.seen, found.axis))

    def _mixed(self, args: tuple[Any, ...], output: Tensor) -> None:
        for one in args[:2]:
            found = self._found(one)
            if found is not None and output.shape == one.shape:
                self._followed.append(_Followed(output, found.seen, found.axis))
                return

    def _normalised(self, score: Tensor, attention: Tensor, axis: int, weighs: bool) -> None:
        """Exponentials over their sum along an axis are a softmax; ``weighs``: which has weighted values already."""
        self.normalises = True
        seen = Attended(score, attention, axis)
        if weighs:
            self._keep(seen)
        elif attention.dim() > 1:
            self._followed.append(_Followed(attention, seen, axis))

    def _sum(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        axes = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
        for one in self._weighted:
            if one.tensor is args[0]:
                given = axes if isinstance(axes, (tuple, list)) else (axes,)
                if any(isinstance(axis, int) and axis % one.tensor.dim() == one.axis for axis in given):
                    self._keep(one.seen)

    def _keep(self, seen: Attended) -> None:
        if not any(seen is one for one in self.attended):
            self.attended.append(seen)


def _strided(args: tuple[Any, ...]) -> bool:
    return all(one.layout is torch.strided for one in args if isinstance(one, Tensor))


def _unit(func: Any, args: tuple[Any, ...]) -> tuple[float, bool]:
    """√d of a product of two tensors that sums up d entries, or less where these are small; 0 where it is not known.

    Of cosines, where one side has length 1 and the other one length, it is the product of both (and True): √d belongs to vectors whose length follows
    their width, and what divides a cosine is a temperature that somebody chose.
    """
    operands, width = args[:2], int(args[0].shape[-1]) if isinstance(args[0], Tensor) else 0
    summed: list[tuple[int, ...]] = [(-1,), (-2 if operands[-1].dim() > 1 else -1,)] if width else []
    if func is torch.einsum:
        operands = args[1:] if len(args) > 2 else args[1] if len(args) > 1 else ()
        if not isinstance(args[0], str) or len(operands) != 2 or "." in args[0]:
            return 0.0, False
        terms, _, result = args[0].replace(" ", "").partition("->")
        own, other = terms.split(",")
        sizes = dict(zip(own, operands[0].shape, strict=True))
        shared = [letter for letter in own if letter in other and letter not in result]
        width = math.prod(sizes[letter] for letter in shared)
        summed = [tuple(term.index(letter) for letter in shared) for term in (own, other)]
    lengths = [_length(one, axes) for one, axes in zip(operands, summed, strict=True)] if width else [math.nan]
    if min(abs(length - 1) for length in lengths) <= _ALIKE and all(map(math.isfinite, lengths)):
        return math.prod(lengths), True
    sizes_of = [float(one.detach().double().square().mean().sqrt()) for one in operands]
    return math.sqrt(width) * min(1.0, math.prod(sizes_of)), False


def _length(vectors: Tensor, axes: tuple[int, ...]) -> float:
    """The one length that vectors have; NaN where they differ, or where none are summed."""
    if not axes or not vectors.numel():
        return math.nan
    lengths = torch.linalg.vector_norm(vectors.detach().double(), dim=axes)
    mean = float(lengths.mean())
    return mean if float((lengths - mean).abs().max()) <= _ALIKE * mean else math.nan


_ALIKE = 1e-2
"""Share by which the lengths of normalised vectors may differ: in bfloat16 they keep two digits."""


def _axis(before: Tensor, axis: int, after: Tensor) -> int | None:
    """Where the axis of the keys is after an operation that keeps or moves axes; None where it cannot be told."""
    if after.shape == before.shape and after.stride() == before.stride():
        return axis
    if after.untyped_storage().data_ptr() == before.untyped_storage().data_ptr():
        places = [
            i
            for i in range(after.dim())
            if (after.shape[i], after.stride(i)) == (before.shape[axis], before.stride(axis))
        ]
        return places[0] if len(places) == 1 else None
    last = axis == before.dim() - 1 and after.dim() and after.shape[-1] == before.shape[-1]
    if after.shape == before.shape:
        return axis
    return after.dim() - 1 if last else None
