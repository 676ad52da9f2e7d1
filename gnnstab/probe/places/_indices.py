"""Numbers of the batch that are cast to whole ones and looked up: those that fall together, by the cast or by the format that held them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnstab.probe.operations.source_lines import Modules, Place, caller_place
from gnnstab.probe.places import _autograd as autograd
from gnnstab.probe.places._numbers import sampled

_TO_WHOLE = frozenset({Tensor.to, Tensor.type, Tensor.long, Tensor.int, Tensor.short, Tensor.char, Tensor.byte})
_TO_FLOATING = frozenset({Tensor.to, Tensor.type, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.double})
_TABLES = frozenset({F.embedding, F.embedding_bag, F.one_hot})
_PICKS = frozenset({Tensor.__getitem__, Tensor.index_select, torch.index_select})

_BLANK = 4
"""Columns of zeros that are no chance: a flag or two may be unset in a whole batch."""

_KEEPS = frozenset(
    {"clamp", "clip", "add", "__add__", "__radd__", "sub", "__sub__", "to", "long", "int", "clone", "contiguous", "reshape", "flatten"}
)  # fmt: skip
"""Functions behind which an entry stands where it stood, and different whole numbers stay different but at a limit."""

_MOVES = (*autograd.SHAPES, "SelectBackward", "SliceBackward", "IndexBackward", "TransposeBackward", "TBackward", "ToCopyBackward", "CloneBackward")  # fmt: skip
"""Nodes of operations that leave the numbers as they are."""

_ROWS = 16
"""Fewer say little of a column."""

_LEFT = 3
"""Whole numbers that are left of values that were scaled to [-1, 1], or to mean 0 and deviation 1; bins that are meant are more."""


class _Cast(NamedTuple):
    """A tensor of whole numbers, and what they were before the cast."""

    whole: Tensor
    """Kept, so that nothing else gets its memory."""

    before: Tensor
    """(entries of the memory of ``whole``,) in float64."""

    leaf: Tensor
    name: str
    format: torch.dtype
    line: Place


class Indices:
    """Follows the tensors of a batch that a forward casts to whole numbers to where these are looked up or given on as numbers.

    Args:
        model: The model that runs, for the line of the user's code.
        leaves: What a backward gives a gradient of the batch's tensors, by the start of its memory, with their names.
        named: The tensors of the batch by name.
    """

    def __init__(self, model: nn.Module, leaves: Mapping[int, tuple[str, Tensor]], named: Mapping[str, Tensor]) -> None:
        self._modules, self._leaves = Modules(model), leaves
        self._tables = {_memory(t): n for n, t in named.items() if _is_table(t)}
        self._blank: dict[int, tuple[Tensor, str]] = {}
        self._unread: dict[str, dict[str, Any]] = {}
        self._casts: dict[int, _Cast] = {}
        self._judged: set[tuple[int, int, bool]] = set()
        self._found: list[tuple[_Cast, Tensor, float, dict[str, Any]]] = []

    def wants(self, func: Any) -> bool:
        """True for a function that is to be seen."""
        return (
            bool(self._casts)
            or func in _TO_WHOLE
            or (bool(self._tables) and (func in _TO_FLOATING or func is F.linear))
        )

    def see(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """Look at a function that has run."""
        if func in _TO_WHOLE and isinstance(output, Tensor) and isinstance(args[0], Tensor):
            self._cast(args[0], output)
        if self._tables:
            self._look_for_zeros(func, args[0], output)
        if not self._casts:
            return
        given = [*(args[1:] if func is Tensor.__getitem__ else args), *kwargs.values()]
        parts = [p for one in given for p in (one if isinstance(one, (tuple, list)) else (one,))]
        known = [(t, c) for t in parts if isinstance(t, Tensor) and (c := self._casts.get(_memory(t))) is not None]
        for tensor, cast in known:
            if func in _TABLES or (func in _PICKS and args[0].requires_grad):
                self._read(tensor, cast, index=True)
            elif func in _TO_FLOATING and isinstance(output, Tensor) and output.is_floating_point():
                self._read(tensor, cast, index=False)
            elif getattr(func, "__name__", "") in _KEEPS and isinstance(output, Tensor):
                self._keep(output, _before(tensor, cast), cast)

    def rows(self) -> Iterator[tuple[str, float, dict[str, Any]]]:
        """Name, share and detail of every tensor whose numbers have fallen together; behind a backward.

        None for scaled numbers whose gradient shows that they are read as they were, too.
        """
        for cast, before, lost, detail in self._found:
            if detail["how"] == "spaced" or not _also_read(cast.leaf, before):
                yield cast.name, lost, detail
        for name, detail in self._unread.items():
            yield name, 1.0, detail

    def _look_for_zeros(self, func: Any, given: Any, output: Any) -> None:
        """A weight is given columns of whole numbers, all 0, of a tensor of the batch that holds other numbers elsewhere."""
        if not isinstance(given, Tensor) or not isinstance(output, Tensor):
            return
        if func is F.linear and (held := self._blank.get(_memory(given))) is not None:
            module = caller_place(self._modules, "model")[0].module
            detail = {"how": "zeros", "before": given.shape[0], "columns": given.shape[1], "module": module}
            self._unread.setdefault(held[1], detail)
        elif func in _TO_FLOATING and output.is_floating_point() and (name := self._tables.get(_memory(given))):
            wide = given.dim() == 2 and len(given) >= _ROWS and given.shape[1] >= _BLANK
            if wide and not bool(given.any()):
                self._blank[_memory(output)] = output, name

    def _cast(self, before: Tensor, after: Tensor) -> None:
        if not before.is_floating_point() or after.is_floating_point() or after.is_complex() or not after.numel():
            return
        leaf, held = _origin(before)
        name, own = self._leaves.get(_memory(leaf), ("", leaf)) if leaf is not None else ("", None)
        if name and own is not None:
            line = caller_place(self._modules, "model")[0]
            self._keep(after, before.detach().double(), _Cast(after, before, own, name, held, line))

    def _keep(self, whole: Tensor, before: Tensor, cast: _Cast) -> None:
        memory = _memory(whole)
        if not memory or memory in self._casts or whole.is_floating_point() or whole.numel() != before.numel():
            return
        entries = whole.untyped_storage().nbytes() // whole.itemsize
        flat = torch.zeros(entries, dtype=torch.float64, device=whole.device)
        flat.as_strided(whole.shape, whole.stride(), whole.storage_offset()).copy_(before.reshape(whole.shape))
        self._casts[memory] = cast._replace(whole=whole, before=flat)

    def _read(self, tensor: Tensor, cast: _Cast, *, index: bool) -> None:
        key = (_memory(tensor), int(tensor.storage_offset()), index)
        if key in self._judged:
            return
        self._judged.add(key)
        before = sampled(_before(tensor, cast))
        columns = before.reshape(-1, before.shape[-1]) if before.dim() > 1 else before.reshape(-1, 1)
        told = {"format": str(cast.format).removeprefix("torch."), "line": cast.line.words, "text": cast.line.text}
        for column in columns.unbind(1):
            found = _scaled(column) or (_spaced(column, cast.format) if index else None)
            if found is not None:
                self._found.append((cast, column, found[0], {**found[1], **told, "looked_up": index}))


def _scaled(before: Tensor) -> tuple[float, dict[str, Any]] | None:
    """Share of the distinct values of (rows,) that a cast to whole numbers makes one with others, where they are scaled; None where that is not plain."""
    if (
        len(before) < _ROWS
        or not bool(before.isfinite().all())
        or float((before != before.round()).double().mean()) < 0.5
    ):
        return None
    mean, spread, largest = float(before.mean()), float(before.std(correction=0)), float(before.abs().max())
    standard = abs(mean) < 0.1 and 0.8 < spread < 1.25 and float(before.min()) < 0
    distinct, left = len(torch.unique(before)), len(torch.unique(before.trunc()))
    if not (largest <= 1 or standard) or left > _LEFT or 2 * left > distinct:
        return None
    zeros = float((before.trunc() == 0).double().mean())
    detail = {"how": "scaled", "before": distinct, "after": left, "largest": largest, "zeros": zeros}
    return 1 - left / distinct, detail


def _spaced(before: Tensor, held: torch.dtype) -> tuple[float, dict[str, Any]] | None:
    """Share of the whole numbers around (rows,) that their format cannot hold; None where most of them lie where it holds all, or no two fall together."""
    if len(before) < _ROWS or not bool((before == before.round()).all()) or not bool(before.isfinite().all()):
        return None
    distinct = torch.unique(before)
    units = torch.finfo(held).eps * 2.0 ** (torch.frexp(distinct).exponent - 1).double()
    beyond = units > 1
    if not 1 < len(distinct) < len(before) or float(beyond.double().mean()) <= 0.5:
        return None
    unit, largest = float(units.max()), float(distinct.abs().max())
    detail = {"how": "spaced", "before": len(before), "after": len(distinct), "largest": largest, "unit": unit}
    return float((1 - 1 / units.clamp(min=1)).mean()), detail


def _also_read(leaf: Tensor, before: Tensor) -> bool:
    """True where a gradient arrives at the column of a leaf that holds these numbers (rows,), or where that cannot be told."""
    if leaf.grad is None:
        return False
    values, gradients = (t.detach().reshape(-1, t.shape[-1] if t.dim() > 1 else 1) for t in (leaf, leaf.grad))
    same = (values.double() == before[:, None]).all(0) if len(values) == len(before) else None
    return same is None or not bool(same.any()) or bool(gradients[:, same].any())


def _origin(tensor: Tensor) -> tuple[Tensor | None, torch.dtype]:
    """The leaf whose numbers these are, unchanged but for their format, and the narrowest format on the way; None where there is no such leaf."""
    node, held = tensor.grad_fn, tensor.dtype
    while node is not None and not hasattr(node, "variable"):
        if not type(node).__name__.startswith(_MOVES) or not node.next_functions:
            return None, held
        meta = getattr(node, "_input_metadata", None)
        if meta and torch.finfo(meta[0].dtype).eps > torch.finfo(held).eps:
            held = meta[0].dtype
        node = node.next_functions[0][0]
    leaf = getattr(node, "variable", None)
    if leaf is not None and torch.finfo(leaf.dtype).eps > torch.finfo(held).eps:
        held = leaf.dtype
    return leaf, held


def _is_table(tensor: Tensor) -> bool:
    """True for (rows, columns) of whole numbers, not all of them 0."""
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)
    return tensor.layout is torch.strided and whole and tensor.dim() == 2 and bool(tensor.any())


def _before(tensor: Tensor, cast: _Cast) -> Tensor:
    """What the entries of a view of a cast's result were."""
    return cast.before.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _memory(tensor: Tensor) -> int:
    """Where the memory of a tensor begins; 0 for one without a memory of its own, as within ``torch.vmap``."""
    try:
        return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0
    except (RuntimeError, NotImplementedError):
        return 0
