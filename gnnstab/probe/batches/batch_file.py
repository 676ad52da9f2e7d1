"""Reads a file of tensors in plain containers without running code from it, within bounds of time and memory."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from gnnstab import unpickling
from gnnstab.archive import check_legacy, newer_version
from gnnstab.errors import LoadError, UnsafeFileError, printable
from gnnstab.probe.batches._containers import container, is_container
from gnnstab.unpickling import Named, Record

_CODE = (
    "holds objects that can only be read by running code from the file (it imports {}); save a dict of tensors or a PyG Data "
    "instead, or pass --unsafe-load if you trust it (dangerous)"
)

_PLAIN = (Tensor, str, bytes, bytearray, int, float, complex, set, frozenset, slice, type(None))
"""Kinds of what stands in a batch beside containers; a bool is an int."""

DEEPEST = 50
"""Levels of lists, tuples and dicts within each other."""

MOST_EXPANSION, SMALLEST_EXPANSION = 8, 2**20
"""Times the file's size, or bytes, that tensors which repeat their entries may declare."""

MOST_ITEMS = 1_000_000
"""Things in a batch."""


def load_batch(path: str | Path, *, unsafe: bool = False) -> Any:
    """Read a batch file: a dict or tuple of tensors, or a PyG ``Data``, saved with ``torch.save``.

    Raises:
        LoadError: The file is missing, damaged, no torch file, or beyond the limits of docs/security.md.
        UnsafeFileError: Reading it would run code from the file and ``unsafe`` is off.
    """
    batch = load_plain(Path(path), "batch", unsafe=unsafe)
    if _weights(batch) or (isinstance(batch, dict) and any(map(_weights, batch.values()))):
        raise LoadError(
            f"batch {printable(str(path), 500)}: is a checkpoint, since it holds the weights of a model; pass it as the target"
        )
    return batch


def _weights(value: Any) -> bool:
    """True for a state dict: tensors under names such as ``conv1.weight``."""
    return isinstance(value, dict) and any(str(key).endswith((".weight", ".bias")) for key in value)


def load_plain(path: Path, what: str, *, unsafe: bool = False) -> Any:
    """What `load_batch` does, for a file that errors call ``what``."""
    shown = f"{what} {printable(str(path), 500)}"
    kind = _kind(path, shown)
    if unsafe:
        return _read_everything(path, shown)
    if kind == "legacy":
        check_legacy(path, shown)
    most = max(MOST_EXPANSION * path.stat().st_size, SMALLEST_EXPANSION)
    return _filled(unpickling.read(path, kind, shown, is_container, _CODE), shown, most)


def _kind(path: Path, shown: str) -> str:
    """``zip`` or ``legacy``; whatever else is refused unread."""
    try:
        if not path.is_file():
            raise LoadError(f"{shown}: no such file" if not path.exists() else f"{shown}: is not a regular file")
        with path.open("rb") as stream:
            start = stream.read(2)
    except (OSError, ValueError) as error:
        raise LoadError(f"{shown}: cannot be read ({_gist(error)})") from None
    if start == b"PK":
        return "zip"
    if start[:1] != b"\x80":
        raise LoadError(f"{shown}: not a file written by torch.save")
    return "legacy"


def _read_everything(path: Path, shown: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=False)
    except MemoryError:
        raise LoadError(f"{shown}: asks for more memory than there is") from None
    except Exception as error:
        newer = newer_version(error)
        raise LoadError(f"{shown}: {newer or f'not a file written by torch.save ({_gist(error)})'}") from None


@dataclass
class _Found:
    """What a batch holds so far."""

    most: int
    """Bytes that its expanded tensors may declare: a model computes with every entry, also where the file holds one number for all."""

    things: int = 0
    expanded: set[int] = field(default_factory=set)
    """Ids of tensors with more entries than their storage has."""

    declared: int = 0
    """Bytes that those declare."""


def _filled(value: Any, shown: str, most: int) -> Any:
    """The value with PyG's containers in the place of their records.

    Raises `LoadError` for nesting or numbers beyond the limits, `UnsafeFileError` for an object of any other class.
    """
    try:
        return _fill(value, shown, _Found(most), 0)
    except LoadError:
        raise
    except Exception as error:
        # Attributes of a container that its own class would never have set.
        kind = printable(value.kind if isinstance(value, Record) else type(value).__name__, 60)
        raise LoadError(f"{shown}: holds a damaged {kind} ({_gist(error)})") from None


def _fill(value: Any, shown: str, count: _Found, depth: int) -> Any:
    count.things += 1
    if depth > DEEPEST:
        raise LoadError(f"{shown}: is nested deeper than {DEEPEST} levels")
    if count.things > MOST_ITEMS:
        raise LoadError(f"{shown}: holds more than {MOST_ITEMS} things")
    if isinstance(value, (list, tuple)):
        return type(value)(_fill(item, shown, count, depth + 1) for item in value)
    if isinstance(value, dict):
        return type(value)((_key(key, shown), _fill(item, shown, count, depth + 1)) for key, item in value.items())
    if isinstance(value, Record):
        if not is_container(value.name):
            raise UnsafeFileError(f"{shown}: {_CODE.format(printable(value.name, 80))}")
        return container(value, lambda item: _fill(item, shown, count, depth + 1))
    if isinstance(value, (UninitializedParameter, UninitializedBuffer)) or (
        isinstance(value, Tensor) and value.is_meta
    ):
        raise LoadError(
            f"{shown}: a tensor without numbers (on the meta device, or not initialised) stands in it; save it from a device "
            "that holds them"
        )
    if isinstance(value, Tensor) and (value.is_quantized or value.is_nested):
        raise LoadError(f"{shown}: holds a quantized or nested tensor, which belongs in no batch")
    if isinstance(value, Tensor) and value.layout is torch.strided and value.nbytes > value.untyped_storage().nbytes():
        count.declared += value.nbytes if id(value) not in count.expanded else 0
        count.expanded.add(id(value))
        if count.declared > count.most:
            raise LoadError(
                f"{shown}: tensors that repeat their entries (expand) declare {count.declared} bytes, more than {MOST_EXPANSION} times the file; "
                "save them with .contiguous()"
            )
    if isinstance(value, _PLAIN):
        return value
    name = value.name if isinstance(value, Named) else type(value).__name__
    raise LoadError(f"{shown}: holds {printable(name, 80)}, which belongs in no batch")


def _key(key: Any, shown: str) -> Any:
    """The key of a dict, which may be a text, a number or a tuple of those, as in a `HeteroData`."""
    for part in key if isinstance(key, tuple) else (key,):
        if not isinstance(part, (str, int, float, type(None))):
            raise LoadError(f"{shown}: a {printable(type(part).__name__, 60)} is a key, which no batch has")
    return key


def _gist(error: BaseException) -> str:
    """The first line of what a library objected to, without its general advice."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip() or type(error).__name__
    return printable(text.splitlines()[0], 160)
