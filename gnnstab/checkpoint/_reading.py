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
from gnnstab.unpickling.guard import look_first

MOST_ENTRIES = 200_000
"""Tensors of a safetensors file, as many as the pickle of a torch file can describe."""

_ADVICE = (
    "save the weights alone with torch.save(model.state_dict(), …), or, only if you trust where the file comes from, "
    "pass --unsafe-load (dangerous: it runs the file's code)"
)


def read_torch(file: Path, kind: str, *, unsafe: bool) -> Any:
    """What torch.save wrote: plain values, records, and tensors that look into the file; with ``unsafe`` real objects.

    Raises `UnsafeFileError` when the file needs code to run, `LoadError` when it cannot be read.
    """
    shown = printable(str(file), 500)
    if kind != "zip":
        check_legacy(file, shown)
    if unsafe:
        description = check_archive(file) if kind == "zip" else _first_bytes(file, LARGEST_PICKLE)
        return _guarded(shown, description, lambda: _read_everything(file, kind))
    if kind == "pickle":
        raise UnsafeFileError(f"{shown}: is a plain pickle{_needs(_first_bytes(file, LARGEST_PICKLE))}; {_ADVICE}")
    return unpickling.read(
        file, kind, shown, unpickling.any_class, f"reading it would run code: it imports {{}}; {_ADVICE}"
    )


def read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, memory-mapped.

    Raises `MissingExtra` without the package, `LoadError` for a damaged file.
    """
    try:
        from safetensors import safe_open
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


def _read_everything(file: Path, kind: str) -> Any:
    if kind == "pickle":
        with file.open("rb") as stream:
            return pickle.load(stream)
    return torch.load(str(file), map_location="cpu", weights_only=False, mmap=kind == "zip")


def _guarded(shown: str, description: bytes, read: Any) -> Any:
    """Run ``read``; whatever goes wrong becomes one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except pickle.UnpicklingError as error:
        needs = _needs(description)
        if needs:
            raise UnsafeFileError(f"{shown}: reading it would run code{needs}; {_ADVICE}") from None
        raise LoadError(f"{shown}: damaged or unusual pickle ({_gist(error)}); {_ADVICE}") from None
    except ModuleNotFoundError as error:
        raise LoadError(
            f"{shown}: needs the module {printable(error.name or '?')}, which cannot be imported from here"
        ) from None
    except MemoryError:
        raise LoadError(f"{shown}: asks for more memory than there is") from None
    except RecursionError:
        raise LoadError(f"{shown}: is nested too deeply") from None
    except Exception as error:
        newer = newer_version(error)
        raise LoadError(
            f"{shown}: {newer or f'truncated or damaged ({type(error).__name__}: {_gist(error)})'}"
        ) from None


def _gist(error: Exception) -> str:
    """The first line of what torch's reader objected to, without its general advice."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    return printable(text.partition("\n")[0], 120) or type(error).__name__


def _needs(description: bytes) -> str:
    """``: it imports posix.system, …`` with the names that are not torch's or Python's own data types."""
    names = [
        n
        for n in imports_of(description)
        if not n.startswith(("torch.", "collections.", "builtins.", "__builtin__.", "_codecs."))
    ]
    return f": it imports {listed([printable(n, 80) for n in names], 5, ' and {} more')}" if names else ""
