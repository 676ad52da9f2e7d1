"""Where the pickle and the storages of a torch file lie, in the zip format and in the one before torch 1.6."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gnnstab.archive import LARGEST_PICKLE, check_archive
from gnnstab.errors import LoadError, printable
from gnnstab.unpickling._dtypes import ITEM_SIZES
from gnnstab.unpickling._machine import Machine
from gnnstab.unpickling._values import Damaged, Make, Storage, StoredTensor

MOST_EXPANSION = 8
"""A file whose tensors declare more than this many times its size (and 64 MiB) is refused."""

NEWEST = 10
"""Version of torch's archives."""

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""First two pickles of the format before torch 1.6."""

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_UTF_8 = 0x800
"""Flag of a member whose name is not in the code page of old."""


@dataclass
class Places:
    """Where the storages of a file lie, as far as it has been read."""

    known: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Key → first byte, bytes."""

    declared: dict[str, tuple[str, int]] | None = None
    """Key → dtype and elements, gathered instead of looked up while a legacy file's places are not known yet."""

    def find(self, key: str, dtype: str, elements: int) -> Storage:
        """The storage of this key; raises `Damaged` when the file does not hold that many elements of it."""
        size = elements * ITEM_SIZES[dtype]
        if self.declared is not None:
            if self.declared.setdefault(key, (dtype, elements)) != (dtype, elements):
                raise Damaged("a storage is declared twice, in two ways")
            return Storage(key, dtype, -1, size)
        begin, available = self.known.get(key, (0, 0))
        if size > available:
            raise Damaged(f"a storage declares {size} bytes, the file has {available} of them")
        return Storage(key, dtype, begin, size, (begin, available))


@dataclass(frozen=True)
class Opened:
    """A file whose outline is known."""

    pickle: bytes
    at: int
    """Where the description of the tensors begins in `pickle`."""

    places: Places
    swapped: bool
    budget: int
    """Bytes that its tensors may declare."""

    def read(self, make: Make, records: Callable[[str], bool]) -> tuple[Any, list[Any]]:
        """The value that the file holds, and tensors that nothing in it leads to; raises `Damaged` or `NeedsCode`."""
        machine = Machine(self.pickle, self.at, self.places, make, self.budget, records)
        return machine.run(), machine.lost()


def open_torch(file: Path, kind: str, records: Callable[[str], bool]) -> Opened:
    """The outline of a ``zip`` or ``legacy`` file.

    Raises `Damaged` or `NeedsCode`, and what `check_archive` raises.
    """
    size = file.stat().st_size
    budget = max(MOST_EXPANSION * size, 64 * 2**20)
    if kind == "zip":
        pickle = check_archive(file)
        places, swapped = _in_archive(file, size)
        return Opened(pickle, 0, places, swapped, budget)
    return _legacy(file, size, budget, records)


def _in_archive(file: Path, size: int) -> tuple[Places, bool]:
    places, swapped = Places(), False
    with zipfile.ZipFile(file) as archive, file.open("rb") as stream:
        members = archive.infolist()
        top = next(m.filename for m in members if m.filename.rpartition("/")[2] == "data.pkl").rpartition("data.pkl")[0]
        for member in members:
            begin = _begin(stream, member, size)
            folder, _, name = member.filename.rpartition("/")
            if folder == top + "data":
                places.known[name] = begin, member.file_size
            elif member.filename in (top + "byteorder", top + "version"):
                stream.seek(begin)
                text = stream.read(min(member.file_size, 20))
                swapped |= name == "byteorder" and text[:3] == b"big"
                if name == "version":
                    _check_version(file, text)
    return places, swapped


def _begin(stream: BinaryIO, member: zipfile.ZipInfo, size: int) -> int:
    """First byte of a member's content; raises `Damaged` where the member that lies there is none, or another one."""
    if 0 <= member.header_offset <= size - _LOCAL_HEADER.size:
        stream.seek(member.header_offset)
        magic, name_length, extra_length = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
        name = member.orig_filename.encode("utf-8" if member.flag_bits & _UTF_8 else "cp437", "replace")
        begin: int = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if magic == b"PK\x03\x04" and begin + member.file_size <= size and stream.read(name_length) == name:
            return begin
    raise Damaged("a member of the archive does not lie where its directory says")


def _check_version(file: Path, version: bytes) -> None:
    if version.strip().isdigit() and int(version) > NEWEST:
        raise LoadError(
            f"{printable(str(file), 500)}: is in version {int(version)} of torch's file format, newer than the {NEWEST} that "
            "gnnstab reads; update gnnstab"
        )


def _legacy(file: Path, size: int, budget: int, records: Callable[[str], bool]) -> Opened:
    """Five pickles (magic number, version, system, description, keys of storages), then every storage with its length."""
    with file.open("rb") as stream:
        pickles = stream.read(LARGEST_PICKLE)
        places = Places(declared={})

        def value(at: int, make: Make = _unmade) -> tuple[Any, int]:
            machine = Machine(pickles, at, places, make, budget, records)
            return machine.run(), machine.at

        magic, at = value(0)
        version, at = value(at)
        system, begin = value(at)
        if (magic, version) != (_MAGIC, _PROTOCOL) or type(system) is not dict:
            raise Damaged("not in the format that torch wrote before 1.6")
        if system.get("little_endian") is not True:
            raise Damaged("written on a machine of the other byte order; load it with torch and save it again")
        _, at = value(begin, lambda stored: stored)
        keys, at = value(at)
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise Damaged("the list of its storages is damaged")
        known: dict[str, tuple[int, int]] = {}
        for key in keys:
            stream.seek(at)
            elements = int.from_bytes(stream.read(8), "little")
            dtype, declared = (places.declared or {}).get(key, ("", 0))
            if not dtype or key in known or elements != declared:
                raise Damaged("the list of its storages does not fit the storages")
            length = elements * ITEM_SIZES[dtype]
            at += 8
            if at + length > size:
                raise Damaged(f"a storage declares {length} bytes, the file has {max(0, size - at)} of them")
            known[key] = at, length
            at += length
    return Opened(pickles, begin, Places(known), False, budget)


def _unmade(stored: StoredTensor) -> Any:
    raise Damaged("a tensor stands where none belongs")
