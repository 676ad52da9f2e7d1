"""File → Python object, without running code from the file."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from gnnstab import unpickling
from gnnstab.archive import LARGEST_PICKLE, check_archive, check_legacy, imports_of, newer_version
from gnnstab.checkpoint._naming import listed, printable
from gnnstab.errors import GnnstabError, LoadError, MissingExtra, UnsafeFileError
from gnnstab.unpickling import LARGEST_READ
from gnnstab.unpickling.guard import look_first

MOST_ENTRIES = 200_000
"""Tensors of a safetensors file, as many as the pickle of a torch file can describe."""

_ADVICE = (
    "save the weights alone with torch.save(model.state_dict(), …), or, only if you trust where the file comes from, "
    "pass --unsafe-load (dangerous: it runs the file's code)"
)


def read_torch(file: Path, kind: str, *, unsafe: bool, mapped: bool = False, lost: list[Any] | None = None) -> Any:
    """What torch.save wrote: plain values, records, and tensors that look into the file; with ``unsafe`` real objects.

    ``mapped``: map a small file as well, since it is one of many. ``lost`` takes tensors that are attributes of tensors, or keys.

    Raises `UnsafeFileError` when the file needs code to run, `LoadError` when it cannot be read.
    """
    shown = printable(str(file), 500)
    if kind != "zip":
        check_legacy(file, shown)
    if unsafe:
        if kind == "zip":
            check_archive(file)
        return _read_everything(file, kind, shown)
    if kind == "pickle":
        raise UnsafeFileError(f"{shown}: is a plain pickle{_needs(_first_bytes(file, LARGEST_PICKLE))}; {_ADVICE}")
    return unpickling.read(
        file,
        kind,
        shown,
        unpickling.any_class,
        f"reading it would run code: it imports {{}}; {_ADVICE}",
        mapped=mapped,
        lost=lost,
    )


def read_safetensors(file: Path, *, mapped: bool = False) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file; a large one, and with ``mapped`` each, is memory-mapped.

    Raises `MissingExtra` without the package, `LoadError` for a damaged file.
    """
    try:
        from safetensors import safe_open
        from safetensors.torch import load as load_bytes
    except ImportError:
        raise MissingExtra("safetensors", "safetensors") from None
    shown = printable(str(file), 500)
    size = int.from_bytes(_first_bytes(file, 8), "little")
    if size > LARGEST_PICKLE:
        raise LoadError(
            f"{shown}: its header has {size >> 20} MiB, more than the {LARGEST_PICKLE >> 20} MiB that gnnstab reads; save the "
            "state_dict alone"
        )
    look_first(shown, size, lambda: _check_header(shown, file, size))
    _check_header(shown, file, size)  # Where no child can be made, nobody has looked yet.
    try:
        if not mapped and file.stat().st_size <= LARGEST_READ:
            # One reading of all of it: where it changes meanwhile, the package's own reading of a file ends the process.
            tensors: dict[str, torch.Tensor] = load_bytes(file.read_bytes())
            return tensors
        with safe_open(str(file), framework="pt", device="cpu") as archive:
            return {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 - not a mapping
    except GnnstabError:
        raise
    except Exception as error:
        raise LoadError(f"{shown}: damaged safetensors file ({printable(str(error), 120)})") from None


def _first_bytes(file: Path, size: int) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(size)
    except OSError as error:
        raise LoadError(f"{printable(str(file), 500)}: cannot be read ({printable(error.strerror)})") from None


def _check_header(shown: str, file: Path, size: int) -> None:
    """Raise `LoadError` for a header that is none, or has more entries than can be told of in a bounded time."""
    try:
        entries = json.loads(_first_bytes(file, 8 + size)[8:])
    except (ValueError, RecursionError):
        raise LoadError(f"{shown}: damaged safetensors file (its header is no JSON)") from None
    if not isinstance(entries, dict) or len(entries) > MOST_ENTRIES:
        raise LoadError(f"{shown}: damaged safetensors file, or one of more than {MOST_ENTRIES} tensors")


def _read_everything(file: Path, kind: str, shown: str) -> Any:
    """What Python and torch make of the file; whatever goes wrong becomes one line."""
    try:
        with warnings.catch_warnings(), file.open("rb") as stream:
            warnings.simplefilter("ignore")
            if kind == "pickle":
                return pickle.load(stream)
            return torch.load(str(file), map_location="cpu", weights_only=False, mmap=kind == "zip")
    except ModuleNotFoundError as error:
        missing = printable(error.name or "?")
        raise LoadError(f"{shown}: needs the module {missing}, which cannot be imported from here") from None
    except MemoryError:
        raise LoadError(f"{shown}: asks for more memory than there is") from None
    except RecursionError:
        raise LoadError(f"{shown}: is nested too deeply") from None
    except Exception as error:
        gist = printable(str(error).partition("\n")[0], 120) or type(error).__name__
        why = newer_version(error) or f"truncated or damaged ({type(error).__name__}: {gist})"
        raise LoadError(f"{shown}: {why}") from None


def _needs(description: bytes) -> str:
    """``: it imports posix.system, …`` with the names that are not torch's or Python's own data types."""
    plain = ("torch.", "collections.", "builtins.", "__builtin__.", "_codecs.")
    names = [name for name in imports_of(description) if not name.startswith(plain)]
    return f": it imports {listed([printable(n, 80) for n in names], 5, ' and {} more')}" if names else ""
