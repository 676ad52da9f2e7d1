"""The JSON-lines file in which a sweep keeps its results; whoever names one may name any file."""

from __future__ import annotations

import json
import types
from collections.abc import Container, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from gnnstab.errors import UsageError

T = TypeVar("T")

_BEGINNING = b'{"key": "'
"""Of every line that `store_one` writes."""

LARGEST = 64 * 2**20
"""Bytes; a result needs a few hundred."""


def stored(store: Path | None, keys: Container[str], kind: type[T]) -> dict[str, T]:
    """The results of dataclass ``kind`` under these keys; what is damaged is left out, so that it is measured again.

    Raises `UsageError` for what is no file, or holds nothing that was stored by `store_one`: it belongs to somebody else.
    """
    if store is None or not store.exists():
        return {}
    if not store.is_file():  # Opening a pipe would wait for ever.
        raise UsageError(f"{store}: is not a regular file; give --store the path of a new file, or of one it wrote")
    if store.stat().st_size > LARGEST:
        raise UsageError(f"{store}: larger than {LARGEST >> 20} MiB, which no file of --store is")
    lines = store.read_bytes().split(b"\n")
    rows = [row for row in map(_row, lines) if row is not None]
    # A run that was killed while writing its first result leaves half a line and nothing else.
    if not rows and (len(lines) > 1 or not _is_half_a_line(lines[0])):
        raise UsageError(
            f"{store}: holds no results of gnnstab; give --store the path of a new file, or of one it wrote"
        )
    made = ((key, _made(result, kind)) for key, result in rows if key in keys)
    return {key: result for key, result in made if result is not None}


def store_one(store: Path | None, key: str, result: Any) -> None:
    """Append one result, on a line of its own."""
    if store is None:
        return
    line = json.dumps({"key": key, "result": asdict(result)}).encode() + b"\n"
    with store.open("ab+") as stream:
        size = stream.tell()
        stream.seek(max(0, size - 1))
        if stream.read(1) not in (b"", b"\n"):  # Half a line of a run that was killed.
            line = b"\n" + line
        stream.write(line)


def _row(line: bytes) -> tuple[str, dict[str, Any]] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    key, result = (row.get("key"), row.get("result")) if isinstance(row, dict) else (None, None)
    return (key, result) if isinstance(key, str) and isinstance(result, dict) else None


def _is_half_a_line(line: bytes) -> bool:
    """What is left when `store_one` was cut off; a whole JSON value without its line break was written by another program."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return line.startswith(_BEGINNING[: len(line)])
    return False


def _made(result: dict[str, Any], kind: type[T]) -> T | None:
    try:
        return kind(**{name: _fitting(result[name], hint) for name, hint in get_type_hints(kind).items()})
    except (KeyError, ValueError, OverflowError):
        return None


def _fitting(value: Any, hint: Any) -> Any:
    """The value as the annotation of its field says; raises `ValueError` when it is something else."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _fitting(value, parts[0])
    if origin is tuple and type(value) is list:
        return tuple(_fitting(item, parts[0]) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping) and type(value) is dict:
        return {key: _fitting(item, parts[1]) for key, item in value.items()}
    if hint is float and type(value) in (int, float):
        return float(value)
    if type(value) is not hint:
        raise ValueError
    return value
