"""The calls with which torch rebuilds tensors: each becomes a `StoredTensor` whose entries all lie in its storage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gnnstab.errors import printable
from gnnstab.unpickling._dtypes import COMPLEX, ITEM_SIZES, NEGATED, PACKED, QUANTIZED, STORAGES
from gnnstab.unpickling._values import Damaged, Named, NeedsCode, Record, Storage, StoredTensor

if TYPE_CHECKING:
    from gnnstab.unpickling._machine import Machine

MOST_DIMENSIONS = 64
"""As many as torch's own operations take."""

PIECE, ENTRY = 1000, 100
"""Paid for one piece of a nested tensor, and for an entry of the tables that say where its pieces lie."""

LAYOUTS = ("torch.sparse_coo", "torch.sparse_csr", "torch.sparse_csc", "torch.sparse_bsr", "torch.sparse_bsc")


def reference(machine: Machine, identifier: Any) -> Any:
    """``("storage", type, key, device, elements[, view])``, or a class with its source in the format before torch 1.6."""
    what, size = (identifier[:1], len(identifier)) if type(identifier) is tuple else ((), 0)
    if what == ("module",) and size == 4 and type(identifier[1]) is Named:
        return identifier[1]
    if what != ("storage",) or size not in (5, 6):
        raise Damaged("a reference to the file is none that torch writes")
    kind, key, _, elements = identifier[1:5]
    dtype = (
        STORAGES.get(kind.name.rpartition(".")[2]) if type(kind) is Named and kind.name.startswith("torch.") else None
    )
    if dtype is None or type(key) is not str or type(elements) is not int or not 0 <= elements < 2**60:
        raise Damaged("a storage is none that torch writes")
    storage = machine.storages.find(key, dtype, elements)
    view = identifier[5] if size == 6 else None
    return storage if view is None else _part(storage, view)


def _part(storage: Storage, view: Any) -> Storage:
    if type(view) is not tuple or len(view) != 3 or any(type(n) is not int or n < 0 for n in view[1:]):
        raise Damaged("a view of a storage is none that torch writes")
    item, (_, offset, size) = ITEM_SIZES[storage.dtype], view
    if (offset + size) * item > storage.nbytes:
        raise Damaged("a view reaches beyond its storage")
    begin = storage.begin + offset * item if storage.begin >= 0 else -1
    return Storage(storage.key, storage.dtype, begin, size * item, storage.member)


def sizes(given: Any) -> tuple[int, ...]:
    """A shape or strides; raises `Damaged` for anything but few, plain, non-negative integers."""
    if type(given) not in (tuple, list) or len(given) > MOST_DIMENSIONS:
        raise Damaged("a tensor has no proper shape")
    if any(type(size) is not int or not 0 <= size < 2**60 for size in given):
        raise Damaged("a tensor has a shape or a stride that none can have")
    return tuple(given)


def _view(machine: Machine, kind: str, dtype: str, storage: Any, place: tuple[Any, ...], **more: Any) -> Any:
    if type(storage) is not Storage:
        raise Damaged(f"a {printable(type(storage).__name__, 40)} stands where the storage of a tensor belongs")
    (offset,), shape, stride = sizes(place[:1]), sizes(place[1]), sizes(place[2])
    if len(shape) != len(stride):
        raise Damaged("a tensor has not as many strides as sizes")
    item = ITEM_SIZES[dtype]
    empty = 0 in shape
    last = 0 if empty else offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1
    needed = -(-last * item // PACKED.get(dtype, 1))
    if needed > storage.nbytes:
        raise Damaged(
            f"a tensor of shape {shape!r:.60} needs {needed} bytes, its storage has {storage.nbytes} in the file"
        )
    return machine.tensor(StoredTensor(kind, dtype, shape, stride, 0 if empty else offset, storage, **more))


def strided(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """``(storage, offset, size, stride[, requires_grad, hooks[, metadata]])``."""
    storage, *place = arguments
    dtype = storage.dtype if type(storage) is Storage else "float32"
    return _plain(machine, dtype, storage, place[:3], place[5:6])


def typed(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """``(storage, offset, size, stride, requires_grad, hooks, dtype[, metadata])``: types without a storage of their own."""
    return _plain(machine, _dtype(arguments[6]), arguments[0], arguments[1:4], arguments[7:8])


def _plain(machine: Machine, dtype: str, storage: Any, place: Sequence[Any], metadata: Sequence[Any]) -> Any:
    """A view that is conjugated or negated where ``metadata`` says so; torch's kernels take both only of some element types."""
    if dtype in QUANTIZED:
        raise Damaged(f"a tensor of {dtype} has no scale, which torch always writes")
    known = metadata[0] if metadata and type(metadata[0]) is dict else {}
    flags = {"conjugate": known.get("conj") is True, "negative": known.get("neg") is True}
    if (flags["conjugate"] and dtype not in COMPLEX) or (flags["negative"] and dtype not in NEGATED):
        raise Damaged(f"a tensor of {dtype} is a conjugated or negated view, which torch makes of none")
    return _view(machine, "strided", dtype, storage, tuple(place), **flags)


def _dtype(value: Any) -> str:
    name = value.name.removeprefix("torch.") if type(value) is Named else ""
    if name not in ITEM_SIZES:
        raise Damaged(f"element type {printable(name or value, 40)} is not known")
    return name


def first(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """The tensor inside a parameter; its gradient flag, hooks and attributes are left out."""
    machine.described(arguments[0])
    machine.dropped.append(arguments[1:])
    return arguments[0]


def meta(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """``(dtype, size, stride, requires_grad)``: declared, not stored."""
    shape, stride = sizes(arguments[1]), sizes(arguments[2])
    return machine.tensor(StoredTensor("meta", _dtype(arguments[0]), shape, stride))


def wrapper(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """``(class, dtype, size, …)``: a tensor of a class that keeps its entries elsewhere; only the shape is told."""
    shape = sizes(arguments[2])
    return machine.tensor(StoredTensor("meta", _dtype(arguments[1]), shape, _contiguous(shape)))


def uninitialised(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """A parameter that was saved before it had a shape."""
    return machine.tensor(StoredTensor("uninitialised"))


def sparse(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """``(layout, (indices…, values, size[, coalesced]))``."""
    layout, parts = arguments
    name = layout.name if type(layout) is Named else f"torch.{layout}" if type(layout) is str else ""
    name = name.replace("torch.torch.", "torch.")
    if name not in LAYOUTS or type(parts) is not tuple or not 3 <= len(parts) <= 4:
        raise Damaged("a sparse tensor is none that torch writes")
    count = 2 if name == "torch.sparse_coo" else 3
    values = machine.described(parts[count - 1])
    if len(parts) <= count or any(machine.described(part).kind != "strided" for part in parts[:count]):
        raise Damaged("a sparse tensor is none that torch writes")
    shape = sizes(parts[count])
    return machine.tensor(StoredTensor("sparse", values.dtype, shape, parts=(name, *parts[:count], parts[-1] is True)))


def quantized(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """``(storage, offset, size, stride, quantizer, …)``."""
    storage, quantizer = arguments[0], arguments[4]
    dtype = storage.dtype if type(storage) is Storage else ""
    if dtype not in QUANTIZED or type(quantizer) is not tuple or type(quantizer[0]) is not Named:
        raise Damaged("a quantized tensor is none that torch writes")
    scheme, *numbers = quantizer
    if not _fitting(machine, scheme.name, numbers, sizes(arguments[2])):
        raise Damaged("a quantized tensor is none that torch writes")
    return _view(machine, "quantized", dtype, storage, arguments[1:4], parts=(scheme.name, *numbers))


def _fitting(machine: Machine, scheme: str, numbers: list[Any], shape: tuple[int, ...]) -> bool:
    """True when scale and zero point are as many as the shape asks for, which not every torch checks."""
    if scheme == "torch.per_tensor_affine":
        return len(numbers) == 2 and type(numbers[0]) in (float, int) and type(numbers[1]) is int
    if len(numbers) != 3 or type(numbers[2]) is not int or not 0 <= numbers[2] < len(shape):
        return False
    *each, axis = numbers
    if all(type(part) is list for part in each):
        return all(len(part) == shape[axis] and all(type(n) in (int, float) for n in part) for part in each)
    return all(machine.described(part).shape == (shape[axis],) for part in each)


def nested(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """``(buffer, sizes, strides, offsets)``."""
    if len(arguments) != 4:
        raise Damaged("a nested tensor is none that torch writes")
    parts = [machine.described(part) for part in arguments]
    if any(part.kind != "strided" or not part.shape for part in parts):
        raise Damaged("a nested tensor is none that torch writes")
    # A piece is a tensor of its own, and a table of empty rows has as many as it likes; entries of tables become Python's.
    machine.spend(PIECE * max(part.shape[0] for part in parts[1:]))
    machine.spend(ENTRY * sum(math.prod(part.shape) for part in parts[1:]))
    return machine.tensor(StoredTensor("nested", machine.described(arguments[0]).dtype, parts=arguments))


def from_type(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """``(function, class, arguments, state)``: what the function builds, without the class and the attributes.

    A file may give a tensor attributes that stand before its methods; nothing may ever read its size from there.
    """
    from gnnstab.unpickling._calls import CALLS

    function, inner = arguments[0], arguments[2]
    name = function.name if type(function) is Named else ""
    if not name.startswith("torch._utils._rebuild_") or name not in CALLS or type(inner) is not tuple:
        raise NeedsCode(name or "a function without a name")
    made = CALLS[name](machine, inner)
    if not isinstance(made, Record):
        machine.described(made)
    machine.dropped.append(arguments[3:])
    return made


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(max(1, size) for size in shape[place + 1 :]) for place in range(len(shape)))
