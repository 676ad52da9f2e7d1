"""Limits that a file must keep before torch is asked to open it: a checkpoint or a batch may come from anybody.

torch stores every member of its zip archives uncompressed. A member that is compressed, or members that together are
larger than the file, can only come from elsewhere, and are how a small file is made to fill the memory.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gnnstab.errors import LoadError, UnsafeFileError, printable

LARGEST_PICKLE = 16 * 2**20
"""Bytes of the pickle that describes the tensors; about 180 000 tensors, which torch reads in about a minute."""

LARGEST_LEGACY = 256 * 2**20
"""Bytes of a file of the format before torch 1.6, which cannot be memory-mapped."""

MOST_MEMBERS = 500_000

LONGEST_PART = 200
"""Characters kept of each half of a name that a pickle imports; operations of one byte may repeat it."""

_NEWER = re.compile(r"PyTorch file with version (\d+)")


def newer_version(error: Exception) -> str:
    """What to tell when torch refused a file because a later torch wrote it; empty when that was not why."""
    found = _NEWER.search(str(error))
    if found is None:
        return ""
    return f"is in version {found[1]} of torch's file format, newer than the installed torch reads; update torch"


def check_legacy(file: Path, shown: str) -> None:
    """Raise `LoadError` for a file, other than a zip archive, that is larger than `LARGEST_LEGACY`."""
    size = file.stat().st_size
    if size > LARGEST_LEGACY:
        raise LoadError(
            f"{shown}: {size >> 20} MiB in a format that cannot be memory-mapped, more than the "
            f"{LARGEST_LEGACY >> 20} MiB that gnnstab reads; load it with torch and save it again"
        )


def check_archive(file: Path) -> bytes:
    """The archive's pickle, once the archive is known to keep the limits and to hold one member of every name.

    Raises `LoadError` for a damaged, compressed, overlapping or over-large archive, and `UnsafeFileError` for a
    TorchScript program.
    """
    shown = printable(str(file), 500)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_members(shown, members, file.stat().st_size)
            description = next(m for m in members if m.filename.rpartition("/")[2] == "data.pkl")
            return archive.read(description)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError) as error:
        raise LoadError(f"{shown}: the archive is truncated or damaged ({printable(str(error), 80)})") from None


def _check_members(shown: str, members: list[zipfile.ZipInfo], size: int) -> None:
    names = {m.filename.rpartition("/")[2] for m in members}
    if "constants.pkl" in names:
        raise UnsafeFileError(
            f"{shown}: is a TorchScript program, which is code; save its weights with torch.save(model.state_dict(), …)"
        )
    if "data.pkl" not in names:
        raise LoadError(f"{shown}: is a zip archive, but none that torch.save wrote (no data.pkl in it)")
    if len(members) > MOST_MEMBERS:
        raise LoadError(f"{shown}: has {len(members)} members, more than the {MOST_MEMBERS} that gnnstab reads")
    # Two readers would take different ones of them; some look names up without regard to case.
    if len({m.filename.casefold() for m in members}) < len(members):
        raise LoadError(f"{shown}: has two members of one name, which torch never writes")
    if sum(m.filename.rpartition("/")[2] == "data.pkl" for m in members) > 1:
        raise LoadError(f"{shown}: has two descriptions of its tensors (data.pkl), which torch never writes")
    squeezed = next(
        (m for m in members if m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size), None
    )
    if squeezed is not None:
        raise LoadError(
            f"{shown}: member {printable(squeezed.filename, 60)} is compressed ({squeezed.compress_size} → "
            f"{squeezed.file_size} bytes), which torch never does; refused as a possible zip bomb"
        )
    if sum(m.file_size for m in members) > size:
        raise LoadError(f"{shown}: its members claim more bytes than the file has; refused as a possible zip bomb")
    check_pickle_size(shown, max(m.file_size for m in members if m.filename.endswith("data.pkl")))


def check_pickle_size(shown: str, size: int) -> None:
    """Raise `LoadError` when the pickle would take too long to read."""
    if size > LARGEST_PICKLE:
        raise LoadError(
            f"{shown}: its table of contents has {size >> 20} MiB, more than the {LARGEST_PICKLE >> 20} MiB that gnnstab reads; "
            "save the state_dict alone"
        )


def imports_of(pickles: bytes, most_operations: int = 200_000) -> list[str]:
    """The global names that one or several pickles in a row would import, in order, found without running them."""
    names: dict[str, None] = {}
    stream = io.BytesIO(pickles)
    # A file of the format before torch 1.6 holds five pickles, then raw data.
    for _ in range(5):
        try:
            for count, name in enumerate(_imports(stream)):
                if name:
                    names[name] = None
                if count > most_operations:
                    return list(names)
        except Exception:
            # A damaged pickle: what was found up to here is still worth telling.
            return list(names)
    return list(names)


def _imports(stream: io.BytesIO) -> Iterator[str]:
    """Of every operation of one pickle the global name that it imports, or ``""``."""
    strings: list[str] = []
    memo: dict[Any, str] = {}
    last = ""
    for operation, argument, _ in pickletools.genops(stream):
        name, pushed = "", ""
        if operation.name in ("GLOBAL", "INST") and isinstance(argument, str):
            name = argument[: 2 * LONGEST_PART].replace(" ", ".", 1)
        elif operation.name == "STACK_GLOBAL" and len(strings) >= 2:
            name = ".".join(strings[-2:])
        elif operation.name == "MEMOIZE":
            memo[len(memo)] = pushed = last
        elif operation.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = pushed = last
        else:
            # A module that is named a second time is only fetched from the memo.
            text = argument[:LONGEST_PART] if isinstance(argument, str) else ""
            pushed = text or (memo.get(argument, "") if "GET" in operation.name else "")
            strings = [*strings[-1:], pushed] if pushed else strings
        last = pushed
        yield name
