"""Formats that cannot hold the differences of the batch's tensors: as these are stored, cast, subtracted, given to a sine, or looked up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gnnstab.errors import let_through
from gnnstab.probe.places import _autograd as autograd
from gnnstab.probe.places._indices import Indices
from gnnstab.probe.places._numbers import sampled
from gnnstab.torch_private import without_torch_function

_CASTS = frozenset({Tensor.to, Tensor.half, Tensor.bfloat16, Tensor.float, Tensor.double, Tensor.type, Tensor.type_as})
_MULTIPLIES = frozenset({F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, torch.addmm})
"""What autocast gives its operands in another format."""

_SUBTRACTS = frozenset({torch.sub, Tensor.sub, Tensor.__sub__})
_TURNS = frozenset({torch.cos, torch.sin, Tensor.cos, Tensor.sin})

_GATHERS = frozenset({Tensor.__getitem__, torch.index_select, Tensor.index_select})
_SCALES = _MULTIPLIES | {
    torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.div, Tensor.div, Tensor.__truediv__,
    torch.outer, Tensor.outer, torch.einsum,
}  # fmt: skip
"""What makes angles of positions and a table of frequencies."""

_LOOKED_AT = _CASTS | _MULTIPLIES | _SUBTRACTS | _TURNS | _GATHERS | _SCALES

_WHOLE = 1e-3
"""Rounding over the spread up to which a cast is not worth a row."""


_COARSE = 0.25
"""Distance of neighbouring numbers from which on a format is coarse; below it values that are meant to be one number differ by rounding."""

_ROWS = 16
"""Fewer say little of a column."""


class Casts(TorchFunctionMode):
    """Compares every tensor of a batch, and views of it, with what a cast within the block makes of it.

    Args:
        named: The tensors of the batch by name.
        model: The model that runs.
    """

    def __init__(self, named: Mapping[str, Tensor], model: nn.Module) -> None:
        super().__init__()
        self._names = {t.untyped_storage().data_ptr(): n for n, t in named.items() if _plain(t) and t.numel()}
        leaves = [(leaf, n) for n, t in named.items() for leaf in autograd.leaves([t])]
        self._leaves = {leaf.untyped_storage().data_ptr(): n for leaf, n in leaves}
        with without_torch_function():
            self._indices = Indices(model, {leaf.untyped_storage().data_ptr(): (n, leaf) for leaf, n in leaves}, named)
        # What is gathered and cast from whole numbers has no graph; it is kept, so that no other tensor gets its memory.
        self._gathered: dict[int, tuple[str, Tensor]] = {}
        # Buffers, and what was made of numbers that no weight has gone into.
        self._made = {
            b.untyped_storage().data_ptr(): (n, b) for n, b in model.named_buffers() if _plain(b) and b.numel()
        }
        self._buffers = frozenset(name for name, _ in self._made.values())
        self._worst: dict[str, tuple[float, dict[str, Any]]] = {}
        self._error: Exception | None = None
        with without_torch_function(), torch.no_grad():
            for name, tensor in named.items():
                if _plain(tensor) and (found := _stored(tensor)) is not None:
                    self._worst[name] = found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the function; look at it if it casts, or reads what a cast has made."""
        output = func(*args, **(kwargs or {}))
        if args and self._error is None and (func in _LOOKED_AT or self._indices.wants(func)):
            try:
                with without_torch_function(), torch.no_grad():
                    self._indices.see(func, args, kwargs or {}, output)
                    if func not in _LOOKED_AT:
                        return output
                    if func in _SUBTRACTS or func in _TURNS:
                        self._computed(func, args, output)
                    if func in _CASTS or func in _GATHERS:
                        self._follow(args[0], output)
                    elif func in _SCALES:
                        self._follow_product(args, output)
                    for before in args[:2] if func in _CASTS or func in _MULTIPLIES else ():
                        self._look(before, _cast(func, before, output))
            except Exception as error:  # It is none of the forward that runs here.
                let_through(error)
                self._error = error
        return output

    def rows(self) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
        """For every tensor the cast that takes most away, behind a backward; raises what went wrong while the forward ran."""
        if self._error is not None:
            raise self._error
        for name, share, told in self._indices.rows():
            if share > self._worst.get(name, (0.0,))[0]:
                self._worst[name] = share, told
        for name, (lost, detail) in self._worst.items():
            yield "place.lost_digits", name, lost, detail

    def _computed(self, func: Any, args: tuple[Any, ...], output: Any) -> None:
        """A difference of two tensors of the batch, or a sine of what is made of one, that rounding has taken."""
        operands = [t for t in args[:2] if isinstance(t, Tensor) and t.is_floating_point() and t.dim() and t.numel()]
        if len(operands) != 2 - (func in _TURNS) or not isinstance(output, Tensor) or not output.numel():
            return
        found = _difference(operands, output) if func in _SUBTRACTS else _phase(operands[0], func.__name__)
        if found is None or found[0] <= _WHOLE:
            return
        exact = 2 / torch.finfo(output.dtype).eps
        if func in _SUBTRACTS and all(self._whole(t) and float(t.abs().max()) <= exact for t in operands):
            return
        leaves = [self._leaves.get(leaf.untyped_storage().data_ptr(), "") for leaf in autograd.leaves(operands)]
        leaves += [name for name in map(self._whole, operands) if name]
        if func in _TURNS and not operands[0].requires_grad:
            leaves.append(self._source(operands[0]))
        # What a weight has gone into may be learned to be as small as it likes.
        if not leaves or (func in _SUBTRACTS and "" in leaves):
            return
        name = next((name for name in leaves if name), "")
        if name and found[0] > self._worst.get(name, (0.0,))[0]:
            self._worst[name] = found

    def _follow(self, source: Any, output: Any) -> None:
        """Keep the name of whole numbers of the batch that are gathered or cast."""
        if not _plain(source) or source.is_floating_point() or not isinstance(output, Tensor):
            return
        name = self._names.get(source.untyped_storage().data_ptr(), self._whole(source))
        if name:
            self._gathered[output.untyped_storage().data_ptr()] = name, output

    def _follow_product(self, operands: tuple[Any, ...], output: Any) -> None:
        """Keep the name of what a product without a weight is made of: a tensor of the batch before a buffer of the model."""
        if not isinstance(output, Tensor) or output.requires_grad or not output.is_floating_point():
            return
        if any(isinstance(t, nn.Parameter) for t in operands):
            return  # One that is frozen, as all of a model may be.
        named = [name for t in operands if _plain(t) and (name := self._source(t))]
        # The model's own table says where, the batch's positions say of what.
        if name := min(named, key=self._buffers.__contains__, default=""):
            self._made[output.untyped_storage().data_ptr()] = name, output

    def _source(self, tensor: Tensor) -> str:
        """Name of the tensor of the batch, or of the buffer, that a tensor without a graph is made of, or ``""``."""
        memory = tensor.untyped_storage().data_ptr()
        return self._names.get(memory) or self._whole(tensor) or self._made.get(memory, ("",))[0]

    def _whole(self, tensor: Tensor) -> str:
        """Name of the whole numbers of the batch that a tensor was gathered or cast from, or ``""``."""
        return self._gathered.get(tensor.untyped_storage().data_ptr(), ("",))[0]

    def _look(self, before: Any, after: Tensor | None) -> None:
        if after is None or after.shape != before.shape or not before.numel():
            return
        name = self._names.get(before.untyped_storage().data_ptr())
        if name is not None:
            found = lost_digits(before, after)
            if found is not None and found[0] > max(_WHOLE, self._worst.get(name, (0.0,))[0]):
                self._worst[name] = found


def _plain(value: Any) -> bool:
    """True for a tensor with a memory of its own to be known by: no subclass, not sparse."""
    return type(value) is Tensor and value.layout is torch.strided


def _cast(func: Any, before: Any, output: Any) -> Tensor | None:
    """What a tensor has become by a call; None where it stayed in its format."""
    if not _plain(before) or before.is_complex():
        return None
    if func in _CASTS:
        after = output
    elif before.is_floating_point() and torch.is_autocast_enabled(before.device.type):
        after = before.to(torch.get_autocast_dtype(before.device.type))
    else:
        return None
    changed = isinstance(after, Tensor) and after.is_floating_point() and after.dtype != before.dtype
    return after if changed else None


def lost_digits(before: Tensor, after: Tensor) -> tuple[float, dict[str, Any]] | None:
    """RMS rounding of a cast over the spread of a column, of the column (last axis) that loses most; None without a spread.

    The detail says the format, and how many distinct values the column has before and after.
    """
    one, other = (_columns(t) for t in (before, after))
    spread = one.std(0, correction=0)
    error = (one - other).square().mean(0).sqrt() / spread
    error = error.masked_fill(~(spread > 0) | ~error.isfinite(), 0.0)
    if not error.numel():
        return None
    worst = int(error.argmax())
    distinct = [len(set(t[:, worst].tolist())) for t in (one, other)]
    return float(error[worst]), {
        "format": _format(after), "column": worst, "before": distinct[0], "after": distinct[1],
        "largest": float(one[:, worst].abs().max()), "spread": float(spread[worst]),
    }  # fmt: skip


def _stored(tensor: Tensor) -> tuple[float, dict[str, Any]] | None:
    """RMS of what the format of (rows, columns) has rounded away over the spread of the column that it takes most from; None where that is next to nothing.

    Of columns whose neighbouring numbers lie at least `_COARSE` apart, and not of whole numbers that the format holds exactly. A column of 16 bits that
    is one number beyond all whole ones counts as lost.
    """
    if tensor.dim() != 2 or not tensor.is_floating_point() or len(tensor) < _ROWS or len(tensor) == tensor.shape[1]:
        return None
    columns = _columns(tensor)
    largest, spread = columns.abs().amax(0), columns.std(0, correction=0)
    unit = torch.finfo(tensor.dtype).eps * 2.0 ** (torch.frexp(largest).exponent - 1).double()
    coarse = (unit >= _COARSE) & largest.isfinite() & ((unit > 1) | (columns != columns.round()).any(0))
    same = (columns[0] > 0) & (columns == columns[0]).all(0) & (unit > 1) & (tensor.dtype.itemsize == 2)
    lost = torch.where(same, 1.0, unit / math.sqrt(12) / spread).masked_fill(~coarse | ~(same | (spread > 0)), 0.0)
    if not lost.numel() or not float(lost.max()) > _WHOLE:
        return None
    worst = int(lost.argmax())
    detail = {
        "how": "stored", "format": _format(tensor), "column": worst, "largest": float(largest[worst]), "spread": float(spread[worst]),
        "unit": float(unit[worst]), "after": len(set(columns[:, worst].tolist())), "before": len(columns),
    }  # fmt: skip
    return min(1.0, float(lost[worst])), detail


def _rounding(tensor: Tensor) -> Tensor:
    """RMS of what the format has rounded away of every entry: a uniform error of one unit in the last place."""
    exponents = torch.frexp(tensor.detach().double()).exponent
    units = torch.finfo(tensor.dtype).eps * 2.0 ** (exponents - 1).double()
    return units / math.sqrt(12)


def _difference(operands: list[Tensor], output: Tensor) -> tuple[float, dict[str, Any]] | None:
    """RMS rounding of the operands over the spread of their difference; None where that has none, or came out exactly 0."""
    one, other = (sampled(t.expand_as(output)) for t in operands)
    made = sampled(output).double()
    spread = float(made.std(correction=0))
    error = math.sqrt(float((_rounding(one) ** 2 + _rounding(other) ** 2).mean()))
    if not spread > 0 or not math.isfinite(error / spread):
        return None
    detail = {
        "how": "difference", "format": _format(output), "largest": float(one.double().abs().max()), "spread": spread,
        "after": len(set(made.flatten().tolist())), "before": made.numel(),
    }  # fmt: skip
    return error / spread, detail


def _phase(angle: Tensor, name: str) -> tuple[float, dict[str, Any]] | None:
    """Median over the columns of the RMS rounding of an angle over the deviation of a sine, at most 1."""
    error = _columns_of(_rounding(sampled(angle))).square().mean(0).sqrt().median()
    largest = float(sampled(angle).detach().double().abs().max())
    if not math.isfinite(largest):
        return None
    lost = min(1.0, float(error) * math.sqrt(2))
    return lost, {"how": name, "format": _format(angle), "largest": largest, "spread": float(error)}


def _format(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _columns(tensor: Tensor) -> Tensor:
    return _columns_of(sampled(tensor.detach()).double())


def _columns_of(flat: Tensor) -> Tensor:
    return flat.reshape(-1, flat.shape[-1]) if flat.dim() > 1 else flat.reshape(-1, 1)
