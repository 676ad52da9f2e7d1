"""From what the user names (a file, a folder, a stem, a list) to the opened files of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gnnstab.errors import TraceError
from gnnstab.trace._connection import Connection
from gnnstab.trace._opening import open_trace
from gnnstab.trace._paths import SUFFIX, rank_files, rank_of, runs_in

Name = str | os.PathLike[str]


@dataclass(frozen=True)
class Part:
    """The file of one process."""

    connection: Connection
    rank: int
    """Rank of the process; -1 outside a distributed run."""


def open_parts(path: Name | Sequence[Name]) -> tuple[str, list[Part], list[str]]:
    """The path as given, the opened files in order of rank, and notes on those that could not be opened."""
    if isinstance(path, (str, os.PathLike)):
        shown = os.fsdecode(path)
        names = _find(shown)
    else:
        names = [os.fsdecode(name) for name in path]
        shown = ", ".join(names)
        if not names:
            raise TraceError("an empty list of traces was given; name at least one file")
    if len(names) == 1:
        return shown, [_part(names[0])], []
    return shown, *_open_all(names)


def _find(path: str) -> list[str]:
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        return _find_in_folder(path)
    ranks = rank_files(path)
    if ranks:
        return [str(rank) for rank in ranks]
    if not os.path.lexists(path) and os.path.isfile(path + SUFFIX):
        return [path + SUFFIX]
    return [path]


def _find_in_folder(path: str) -> list[str]:
    runs = runs_in(path)
    if not runs:
        raise TraceError(f"{path}: a folder without any {SUFFIX} file; name the trace itself")
    if len(runs) > 1:
        stems = ", ".join(str(Path(path) / stem) for stem in list(runs)[:5])
        raise TraceError(
            f"{path}: a folder with {len(runs)} runs; name one of them: {stems}{', …' if len(runs) > 5 else ''}"
        )
    return [str(file) for file in next(iter(runs.values()))]


def _open_all(names: Sequence[str]) -> tuple[list[Part], list[str]]:
    parts: list[Part] = []
    notes: list[str] = []
    for name in names:
        try:
            parts.append(_part(name))
        except TraceError as error:
            notes.append(f"left out: {error}")
    if not parts:
        raise TraceError(notes[0].removeprefix("left out: "))
    taken = [part.rank for part in parts]
    if len(set(taken)) < len(taken):
        parts = [Part(part.connection, position) for position, part in enumerate(parts)]
        notes.append("several traces name the same rank, or none; ranks are counted in the order of the files")
    return sorted(parts, key=lambda part: part.rank), notes


def _part(name: str) -> Part:
    connection = open_trace(name)
    try:
        row = connection.rows("SELECT value FROM meta WHERE key = 'rank'")
    except TraceError:
        connection.close()
        raise
    text = str(row[0][0]) if row else ""
    if text.isdecimal() and len(text) < 7:
        return Part(connection, int(text))
    named = rank_of(name)
    return Part(connection, -1 if named is None else named)
