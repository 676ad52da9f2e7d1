"""Names of trace files: numbered older runs, and the files of the ranks of a distributed run."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gnnstab.trace._companions import COMPANIONS

SUFFIX = ".gnnstab"
_FILES = ("", *COMPANIONS)
"""A trace and what SQLite keeps beside it."""

_RANK = re.compile(r"^(?P<stem>.+)\.rank(?P<rank>\d{1,6})$")
_NUMBERED = re.compile(r"^(?P<stem>.+)\.(?P<number>\d{1,6})$")


def rank_path(path: str | os.PathLike[str], rank: int) -> Path:
    """Path of one rank's trace: ``run.gnnstab`` → ``run.rank3.gnnstab``."""
    whole = Path(path)
    return whole.with_name(f"{whole.name.removesuffix(SUFFIX)}.rank{rank}{SUFFIX}")


def rank_of(path: str) -> int | None:
    """The rank in a file's name, or None."""
    match = _RANK.match(os.path.basename(path).removesuffix(SUFFIX))
    return int(match["rank"]) if match else None


def free_numbered(path: str) -> str:
    """First free name for an older run: ``run.gnnstab`` → ``run.1.gnnstab``, ``run.rank0.gnnstab`` → ``run.1.rank0.gnnstab``."""
    folder, name = os.path.split(path)
    suffix = SUFFIX if name.endswith(SUFFIX) else os.path.splitext(name)[1]
    stem = name[: len(name) - len(suffix)] if suffix else name
    match = _RANK.match(stem)
    stem, tail = (match["stem"], f".rank{match['rank']}") if match else (stem, "")
    number = 1
    while any(os.path.lexists(os.path.join(folder, f"{stem}.{number}{tail}{suffix}{end}")) for end in _FILES):
        number += 1
    return os.path.join(folder, f"{stem}.{number}{tail}{suffix}")


def move_trace(path: str) -> str:
    """Rename a trace and what belongs to it to its next free number; return the new path."""
    target = free_numbered(path)
    for companion in _FILES:
        if os.path.lexists(path + companion):
            os.replace(path + companion, target + companion)
    return target


def remove_trace(path: str) -> None:
    """Remove a trace and what belongs to it, where it exists."""
    for companion in _FILES:
        if os.path.lexists(path + companion):
            os.unlink(path + companion)


def rank_files(stem: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The files ``<stem>.rank<r>.gnnstab`` in order of rank; empty when there are none."""
    whole = Path(stem)
    wanted = whole.name.removesuffix(SUFFIX)
    matches = ((path, _RANK.match(path.name.removesuffix(SUFFIX))) for path in _traces_in(whole.parent))
    return tuple(path for path, match in matches if match and match["stem"] == wanted)


def runs_in(folder: str | os.PathLike[str]) -> dict[str, tuple[Path, ...]]:
    """The runs of a folder by stem, each with its files; older numbered runs only where the newest is missing."""
    runs: dict[str, list[Path]] = {}
    for path in _traces_in(Path(folder)):
        stem = path.name.removesuffix(SUFFIX)
        match = _RANK.match(stem)
        key = match["stem"] if match else stem
        runs.setdefault(key, []).append(path)
    return {
        stem: tuple(paths) for stem, paths in runs.items() if not ((m := _NUMBERED.match(stem)) and m["stem"] in runs)
    }


def _traces_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: (rank_of(path.name) or 0, path.name))
