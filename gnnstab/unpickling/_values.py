"""What a pickle of a stranger is made of once it is read: plain values, tensors that lie in the file, inert records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol


class Damaged(Exception):
    """The pickle is no pickle, or asks for something that no checkpoint needs; the text says what."""


class NeedsCode(Exception):
    """Reading on would have to call something out of the file; the text is the name of what it would call."""


@dataclass(frozen=True, slots=True)
class Named:
    """A class or function that the file only names; it is neither imported nor called."""

    name: str
    """Module and name, e.g. ``torch.float32``."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes of the file that tensors are views of."""

    key: str
    dtype: str
    """Of one element, without ``torch.``."""

    begin: int
    """Place in the file of the first byte; -1 while it is not known."""

    nbytes: int
    member: tuple[int, int] = (-1, 0)
    """First byte and bytes of what the file stores as one piece, of which this is the whole, the start or a view."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor as the file describes it; every entry is known to lie within its storage. Hashed by identity, as torch's are."""

    kind: str
    """``strided``, ``sparse``, ``quantized``, ``nested``, ``meta`` or ``uninitialised``."""

    dtype: str = "float32"
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    offset: int = 0
    """Elements of the storage before the first entry."""

    storage: Storage | None = None
    parts: tuple[Any, ...] = ()
    """What a sparse, quantized or nested tensor is made of besides."""

    conjugate: bool = False
    negative: bool = False


@dataclass(slots=True, eq=False)
class Record:
    """An object of any class: its name and what the file gives it. None of the class' code runs."""

    name: str
    arguments: tuple[Any, ...] = ()
    attributes: dict[Any, Any] = field(default_factory=dict)
    state: Any = None
    """What its class would have made of itself when it is no dictionary."""

    mapping: dict[Any, Any] = field(default_factory=dict)
    """Items of a class derived from ``dict``."""

    sequence: list[Any] = field(default_factory=list)
    """Items of a class derived from ``list``."""

    @property
    def kind(self) -> str:
        """Name of the class without its module."""
        return self.name.rpartition(".")[2]


class Storages(Protocol):
    """Knows where the storages of a file lie."""

    def find(self, key: str, dtype: str, elements: int) -> Storage:
        """The storage of this key; raises `Damaged` when the file does not hold that many elements of it."""


Make = Callable[[StoredTensor], Any]
"""Turns the description of a tensor into what the caller wants in its place."""
