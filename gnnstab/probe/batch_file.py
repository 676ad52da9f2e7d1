"""Reads a file of tensors in plain containers without running code from it, within bounds of time and memory."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.data.data import BaseData, DataEdgeAttr, DataTensorAttr
from torch_geometric.data.storage import BaseStorage, EdgeStorage, GlobalStorage, NodeStorage

from gnnstab.archive import LARGEST_LEGACY, check_archive, check_cost, imports_of, newer_version
from gnnstab.errors import LoadError, UnsafeFileError, printable

_PLAIN_CLASSES = [Data, HeteroData, DataEdgeAttr, DataTensorAttr, BaseStorage, GlobalStorage, NodeStorage, EdgeStorage]
"""Containers of PyG whose unpickling only fills attributes; nothing else may be constructed from a batch file."""

MOST_EXPANSION = 8
"""A file whose tensors declare more than this many times its size (and 64 MiB) is refused."""

DEEPEST = 50
"""Levels of lists, tuples and dicts within each other."""

MOST_ITEMS = 1_000_000
"""Things in a batch."""


def load_batch(path: str | Path, *, unsafe: bool = False) -> Any:
    """Read a batch file: a dict or tuple of tensors, or a PyG ``Data``, saved with ``torch.save``.

    Raises:
        LoadError: The file is missing, damaged, no torch file, or beyond the limits of docs/security.md.
        UnsafeFileError: Reading it would run code from the file and ``unsafe`` is off.
    """
    return load_plain(Path(path), "batch", unsafe=unsafe)


def load_plain(path: Path, what: str, *, unsafe: bool = False) -> Any:
    """What `load_batch` does, for a file that errors call ``what``."""
    shown = f"{what} {printable(str(path), 500)}"
    kind = _kind(path, shown)
    if unsafe:
        return _read(path, shown, b"", unsafe=True)
    description = check_archive(path) if kind == "zip" else _legacy_bytes(path, shown)
    check_cost(shown, description)
    batch = _read(path, shown, description, unsafe=False)
    try:
        _check(batch, shown, path.stat().st_size)
    except LoadError:
        raise
    except Exception as error:
        # Attributes of a container that its own class would never have set.
        raise LoadError(f"{shown}: holds a damaged {type(batch).__name__} ({_gist(error)})") from None
    return batch


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


def _legacy_bytes(path: Path, shown: str) -> bytes:
    size = path.stat().st_size
    if size > LARGEST_LEGACY:
        raise LoadError(
            f"{shown}: {size >> 20} MiB in the format before torch 1.6, more than the {LARGEST_LEGACY >> 20} MiB that "
            "gnnstab reads; load it with torch and save it again"
        )
    return path.read_bytes()


def _read(path: Path, shown: str, description: bytes, *, unsafe: bool) -> Any:
    try:
        with warnings.catch_warnings(), _plain_classes():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=not unsafe)
    except pickle.UnpicklingError as error:
        needs = [
            name
            for name in imports_of(description)
            if not name.startswith(("torch.", "collections.", "torch_geometric."))
        ]
        if not needs and "Unsupported" not in str(error):
            raise LoadError(f"{shown}: damaged ({_gist(error)})") from None
        named = f" (it imports {', '.join(printable(name, 80) for name in needs[:3])})" if needs else ""
        raise UnsafeFileError(
            f"{shown}: holds objects (a PyG Batch is one) that can only be read by running code from the file{named}; save a "
            "dict of tensors or a PyG Data instead, or pass --unsafe-load if you trust it (dangerous)"
        ) from None
    except MemoryError:
        raise LoadError(f"{shown}: asks for more memory than there is") from None
    except Exception as error:
        newer = newer_version(error)
        raise LoadError(f"{shown}: {newer or f'not a file written by torch.save ({_gist(error)})'}") from None


def _plain_classes() -> contextlib.AbstractContextManager[Any]:
    """Torch before 2.5 cannot be told of further classes, and then refuses a ``Data``."""
    allow = getattr(torch.serialization, "safe_globals", None)
    return contextlib.nullcontext() if allow is None else allow(_PLAIN_CLASSES)


def _check(batch: Any, shown: str, size: int) -> None:
    """Refuse what would cost more than the file is large: expanded tensors, endless nesting."""
    declared = 0
    for count, tensor in enumerate(_tensors(batch, shown, [0])):
        if tensor.layout is torch.strided:
            declared += tensor.numel() * tensor.element_size()
        if declared > max(MOST_EXPANSION * size, 64 * 2**20):
            raise LoadError(
                f"{shown}: its tensors declare more than {declared >> 20} MiB, the file has {size >> 10} KiB; refused "
                f"(expanded or overlapping storages; {count + 1} tensors looked at)"
            )


def _tensors(value: Any, shown: str, count: list[int], depth: int = 0) -> Iterator[Tensor]:
    count[0] += 1
    if depth > DEEPEST:
        raise LoadError(f"{shown}: is nested deeper than {DEEPEST} levels")
    if count[0] > MOST_ITEMS:
        raise LoadError(f"{shown}: holds more than {MOST_ITEMS} things")
    if isinstance(value, Tensor):
        yield value
        return
    inside: Any = ()
    if isinstance(value, BaseData):
        if not all(isinstance(store, BaseStorage) for store in value.stores):
            raise LoadError(f"{shown}: holds a damaged {type(value).__name__}")
        inside = [item for store in value.stores for item in dict(store).values()]
    elif isinstance(value, Mapping):
        inside = value.values()
    elif isinstance(value, (list, tuple, set)):
        inside = value
    for item in inside:
        yield from _tensors(item, shown, count, depth + 1)


def _gist(error: BaseException) -> str:
    """The first line of what a library objected to, without its general advice."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip() or type(error).__name__
    return printable(text.splitlines()[0], 160)
