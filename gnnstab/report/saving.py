"""A report into a file: the format from its ending, the file all or nothing."""

from __future__ import annotations

import os
import re
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


def write(path: Path, content: str | bytes) -> None:
    """Write a file: afterwards it holds all of the content, or what it held before; a link is replaced, not followed.

    Raises `UsageError` naming the file and the reason, e.g. that it is a pipe or a folder.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    refuse_special(path)
    try:
        if _is_stream(path):
            path.write_bytes(data)
            return
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            os.chmod(name, _mode(path))
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def refuse_special(path: Path) -> None:
    """Raise `UsageError` for a folder, a pipe or a device, which could wait for ever; ``/dev/stdout`` and the like may be meant."""
    if path.is_dir() and not path.is_symlink():
        raise UsageError(f"cannot write {path}: it is a folder")
    if os.path.lexists(path) and not (path.is_file() or path.is_symlink() or _is_stream(path)):
        raise UsageError(f"cannot write {path}: it is not a regular file")


def _is_stream(path: Path) -> bool:
    """True for /dev/stdout, /dev/fd/63 and devices below /dev, which the system alone makes; anybody may put a link into /dev/shm."""
    name = os.path.abspath(path)
    if name.startswith("/dev/") and not path.is_symlink():
        return path.is_char_device()
    return re.fullmatch(r"/dev/(stdout|stderr|fd/\d+)|/proc/self/fd/\d+", name) is not None


def _mode(path: Path) -> int:
    """Permissions of the file that is replaced, or those of a new one."""
    if path.is_file() and not path.is_symlink():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
