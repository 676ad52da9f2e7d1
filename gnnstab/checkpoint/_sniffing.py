"""What kind of file a path holds, told by its content and compared with its name."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

from gnnstab.checkpoint._naming import printable
from gnnstab.errors import LoadError, hint

LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
"""Start of a file that torch wrote before version 1.6: the pickled long 0x1950a86a20f9469cfc6c."""

TORCH_SUFFIXES = frozenset({".pt", ".pth", ".ckpt"})

_FOREIGN = (
    (b"SQLite format 3", "an SQLite database; a gnnstab trace has the suffix .gnnstab"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run: git lfs pull"),
    (b"\x89HDF", "an HDF5 file (Keras?)"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\xfd7zXZ", "an xz archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it first"),
)


def regular_file(path: str | os.PathLike[str]) -> Path:
    """The path, when it leads (through symbolic links or not) to a regular, non-empty file.

    Raises `LoadError` for anything else: opening a FIFO or a device could block for ever.
    """
    file = Path(path)
    shown = printable(str(path), 500)
    try:
        state = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(file):
            raise LoadError(f"{shown}: is a link to nothing") from None
        near = hint(file.name, (other.name for other in file.parent.glob("*"))) if file.parent.is_dir() else ""
        raise LoadError(f"{shown}: no such file{f'; {near}' if near else ''}") from None
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{shown}: cannot be read: {printable(getattr(error, 'strerror', None) or str(error))}"
        ) from None
    if stat.S_ISDIR(state.st_mode):
        raise LoadError(f"{shown}: is a directory; name a checkpoint file in it")
    if not stat.S_ISREG(state.st_mode):
        raise LoadError(f"{shown}: is not a regular file")
    if state.st_size == 0:
        raise LoadError(f"{shown}: is empty")
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise LoadError(f"{shown}: has a name that is not UTF-8, which torch cannot open; rename it") from None
    return file


def holds_checkpoint(path: Path) -> bool:
    """True for a regular file that torch or safetensors wrote, under whatever name, as far as its first bytes tell."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            return False
        with path.open("rb") as stream:
            head = stream.read(512)
    except (OSError, ValueError):
        return False
    sign = {"zip": b"/data.pkl", "pickle": b"_rebuild_tensor"}.get(kind := _kind(head, state.st_size) or "", b"")
    return bool(kind) and sign in head


def _stored(descriptor: int, size: int) -> int:
    """Bytes outside of holes, with which a stranger's small file would take as long as a large one; all where nobody tells."""
    if size < SMALLEST_WITH_HOLES or not hasattr(os, "SEEK_DATA"):
        return size
    stored = end = 0
    for _ in range(MOST_PIECES):
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        except OSError:  # Nothing but a hole is left, or the file system knows none.
            return stored if end else size
        stored += end - begin
    return size


SMALLEST_WITH_HOLES = 256 * 2**20
"""Bytes of a file from which it is asked for its holes."""

LARGEST_RATIO = 8
"""How many times what is stored a large file may have in all, as tensors may declare of a file."""

MOST_PIECES = 100_000
"""Pieces between holes that are counted; a file of more has stored them all."""


def sniff(file: Path) -> str:
    """``zip`` (torch.save), ``legacy`` (torch.save before 1.6), ``pickle`` or ``safetensors``.

    Raises `LoadError` when the content is something else, when the name claims the other family, or when the file is large and hardly
    anything of it is stored.
    """
    shown = printable(str(file), 500)
    try:
        with file.open("rb") as stream:
            head = stream.read(512)
            size = os.fstat(stream.fileno()).st_size
            stored = _stored(stream.fileno(), size)
    except OSError as error:
        raise LoadError(f"{shown}: cannot be read: {printable(error.strerror or str(error))}") from None
    if stored * LARGEST_RATIO < size:
        raise LoadError(
            f"{shown}: only {stored} of its {size} bytes are stored, the rest are holes, which read as zeros; whoever saves a checkpoint "
            "writes all of it; if it is yours, cp --sparse=never makes a copy that can be read"
        )
    kind = _kind(head, size)
    suffix = file.suffix.lower()
    if kind is None:
        raise LoadError(f"{shown}: {_what_else(head, suffix)}")
    if suffix == ".safetensors" and kind != "safetensors":
        raise LoadError(
            f"{shown}: is named .safetensors but holds a torch archive or a pickle; rename it to .pt if that is what it is"
        )
    if suffix in TORCH_SUFFIXES and kind == "safetensors":
        raise LoadError(f"{shown}: is named {suffix} but holds safetensors data; rename it to {file.stem}.safetensors")
    return kind


def _kind(head: bytes, size: int) -> str | None:
    if head.startswith(b"PK"):
        return "zip"
    if head[:1] == b"\x80" and 2 <= (head[1] if len(head) > 1 else 0) <= 5:
        return "legacy" if LEGACY_MAGIC in head[:32] else "pickle"
    header = int.from_bytes(head[:8], "little")
    if len(head) > 8 and head[8:9] == b"{" and 2 <= header <= size - 8:
        return "safetensors"
    return None


def _what_else(head: bytes, suffix: str) -> str:
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            return f"is {what}"
    if head[257:262] == b"ustar":
        return "is a tar archive (unpack it first; torch's own tar format of 2016 is not read)"
    if suffix == ".safetensors":
        return "is named .safetensors but has no valid safetensors header (truncated, or another format)"
    if _is_text(head):
        return "is a text file, not a checkpoint"
    return "is neither a torch checkpoint nor a safetensors file"


def _is_text(head: bytes) -> bool:
    try:
        # Incremental, since the head may end within a character.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\t\n\r\x0c\x1b" for character in text)
