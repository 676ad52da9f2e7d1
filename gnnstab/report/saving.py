"""A report into a file: the format from its ending, the file all or nothing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from gnnstab.errors import UsageError, hint
from gnnstab.records import Diagnosis
from gnnstab.report._rendering import format_names, render

ENDINGS = {
    ".html": "html",
    ".htm": "html",
    ".json": "json",
    ".md": "markdown",
    ".txt": "text",
    ".sarif": "sarif",
    ".xml": "junit",
}
"""Ending of a file → the format that it asks for."""


def save(diagnosis: Diagnosis, path: str | os.PathLike[str], format: str | None = None, **options: Any) -> Path:
    """Write the report of a diagnosis to ``path`` and return it.

    Args:
        diagnosis: What to report.
        path: The file; its ending names the format (`ENDINGS`).
        format: A format of `gnnstab.report.FORMATS`, where the ending does not say it.
        options: Options of the format, e.g. ``verbose=True`` of ``text``.

    Raises:
        UsageError: The ending or format is unknown, or the file cannot be written.
    """
    target = Path(path)
    chosen = ENDINGS.get(target.suffix.lower()) if format is None else format
    if chosen is None:
        near = hint(target.suffix.lower(), ENDINGS, f"endings that say it: {' '.join(ENDINGS)}")
        raise UsageError(f"{target}: the ending does not say which format; {near} Or pass format=")
    if chosen not in format_names():
        raise UsageError(f"unknown format {chosen!r}; {hint(chosen, format_names(), ', '.join(format_names()))}")
    write(target, render(diagnosis, chosen, **options))
    return target


def write(path: Path, text: str) -> None:
    """Write a file: afterwards it holds all of the text, or what it held before.

    Raises `UsageError` naming the file and the reason.
    """
    data = text.encode("utf-8")
    try:
        if path.exists() and not path.is_file():  # a pipe or a device has nothing to preserve
            with path.open("wb") as stream:
                stream.write(data)
            return
        target = path.resolve()  # a link stays a link
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            os.chmod(name, _mode(target))
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def _mode(path: Path) -> int:
    """Permissions of the file that is replaced, or those of a new one."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
