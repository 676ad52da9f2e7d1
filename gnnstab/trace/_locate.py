"""From what the user names (a file, a folder, a stem, a list) to the opened files of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gnnstab.errors import TraceError
from gnnstab.trace._connection import MOST_ROWS, Connection
from gnnstab.trace._opening import LARGEST_FILE, bytes_of, check_file, open_trace
from gnnstab.trace._paths import SUFFIX, rank_files, rank_of, runs_in

Name = str | os.PathLike[str]


LEFT_OUT = "left out "
"""How a note about a file begins that could not be read."""

MOST_MISSING = 1000
"""Ranks that can be called missing: a number in a file's name is nobody's measurement."""

_COUNTED = [
    f"SELECT count(*) FROM (SELECT 1 FROM {table} LIMIT {MOST_ROWS + 1})" for table in ("statistic", "step", "measure")
]
_TOO_MUCH = "not read, a run of several files may hold "


@dataclass(frozen=True)
class Part:
    """The file of one process."""

    connection: Connection
    rank: int
    """Rank of the process; -1 outside a distributed run."""


def open_parts(path: Name | Sequence[Name]) -> tuple[str, list[Part], list[str], tuple[int, ...]]:
    """The path as given, the opened files in order of rank, notes on those that could not be opened, and missing ranks."""
    if isinstance(path, (str, os.PathLike)):
        shown = os.fsdecode(path)
        names = _find(shown)
    else:
        names = [os.fsdecode(name) for name in path]
        shown = ", ".join(names)
        if not names:
            raise TraceError("an empty list of traces was given; name at least one file")
    parts, notes = ([_Run().opened(names[0])], []) if len(names) == 1 else _open_all(names)
    # Who names one file, or a list, chose; who names a run expects all of it.
    whole = isinstance(path, (str, os.PathLike)) and names != [shown]
    return shown, parts, notes, _missing(parts, names) if whole else ()


def _missing(parts: Sequence[Part], names: Sequence[str]) -> tuple[int, ...]:
    """Ranks below the highest one known, by the names of the files and the number of processes that a trace holds."""
    taken = {part.rank for part in parts}
    if -1 in taken:
        return ()
    world = max(_number(part.connection, "world_size") or 0 for part in parts)
    known = max(world, 1 + max(*taken, *(rank for name in names if (rank := rank_of(name)) is not None), 0))
    return tuple(rank for rank in range(min(known, MOST_MISSING)) if rank not in taken)


def _find(path: str) -> list[str]:
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        return _find_in_folder(path)
    ranks = [str(rank) for rank in rank_files(path)]
    if not os.path.lexists(path) and os.path.isfile(path + SUFFIX):
        if ranks:
            raise TraceError(
                f"{path}: {path}{SUFFIX} and {ranks[0]} are of two runs; name one of them, or move one away"
            )
        return [path + SUFFIX]
    if ranks:
        return ranks
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
    run = _Run()
    for name in names:
        try:
            parts.append(run.opened(name))
        except TraceError as error:
            notes.append(f"{LEFT_OUT}{error}")
    if not parts:
        raise TraceError(notes[0].removeprefix(LEFT_OUT))
    taken = [part.rank for part in parts]
    if len(set(taken)) < len(taken):
        parts = [Part(part.connection, position) for position, part in enumerate(parts)]
        notes.append("several traces name the same rank, or none; ranks are counted in the order of the files")
    return sorted(parts, key=lambda part: part.rank), notes


class _Run:
    """What the files of a run hold together, so that many of them take no more memory than one may."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, int], str] = {}
        self._held = 0
        self._rows = 0

    def opened(self, name: str) -> Part:
        """The next file; raises `TraceError` for one that cannot be read, is here already, or is too much for this run."""
        check_file(name)
        state = os.stat(name)
        if (same := self._files.get((state.st_dev, state.st_ino))) is not None:
            raise TraceError(f"{name}: the same file as {same}")
        if self._held + bytes_of(name) > LARGEST_FILE:
            raise TraceError(f"{name}: {_TOO_MUCH}{LARGEST_FILE} bytes, those of all ranks together; read it alone")
        part = _part(name)
        try:
            own = sum(int(part.connection.rows(query)[0][0]) for query in _COUNTED)
            if own > MOST_ROWS:
                raise TraceError(f"{name}: damaged trace, it holds more rows than gnnstab writes ({MOST_ROWS})")
            if self._rows + own > MOST_ROWS:
                raise TraceError(f"{name}: {_TOO_MUCH}{MOST_ROWS} rows, those of all ranks together; read it alone")
        except TraceError:
            part.connection.close()
            raise
        self._files[state.st_dev, state.st_ino] = name
        self._rows += own
        self._held += bytes_of(name)
        return part


def _part(name: str) -> Part:
    connection = open_trace(name)
    try:
        rank = _number(connection, "rank")
    except TraceError:
        connection.close()
        raise
    if rank is None:
        rank = rank_of(name)
    return Part(connection, -1 if rank is None else rank)


def _number(connection: Connection, key: str) -> int | None:
    """A small whole number among the metadata."""
    rows = connection.rows("SELECT key, value FROM meta")
    text = next((str(value) for name, value in rows if name == key), "")
    return int(text) if text.isdecimal() and len(text) < 7 else None
