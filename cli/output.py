"""Writing: reports to files, all or nothing, and text to standard output in whatever encoding it has."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gnnstab.errors import UsageError

from . import interrupt

if TYPE_CHECKING:
    from gnnstab.records import Diagnosis


def parse(given: Sequence[str]) -> list[tuple[str, Path]]:
    """(format, path) of every ``FORMAT=PATH``, checked before the work begins; raises `UsageError`."""
    from gnnstab.report import format_names

    outputs = []
    for text in given:
        format, separator, path = text.partition("=")
        if not (format and separator and path):
            meant = _BY_SUFFIX.get(Path(text).suffix.lower())
            write = f"; write --output {meant}={text}" if meant else ""
            raise UsageError(f"--output {text!r} is not of the form FORMAT=PATH{write}")
        if format not in format_names():
            raise UsageError(f"--output {text!r}: unknown format {format!r}; choose from {', '.join(format_names())}")
        check_writable(Path(path))
        outputs.append((format, Path(path)))
    return outputs


_BY_SUFFIX = {".html": "html", ".htm": "html", ".json": "json", ".sarif": "sarif", ".md": "markdown", ".xml": "junit",
              ".txt": "text"}  # fmt: skip
"""Suffix of a report → the format that it is probably meant to have."""


def check_writable(path: Path) -> None:
    """Raise `UsageError` when a file can clearly not be written there."""
    from gnnstab.report.saving import refuse_special

    refuse_special(path)
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: the folder {path.parent} does not exist")


def refuse_inputs(outputs: Sequence[Path], inputs: Sequence[str]) -> None:
    """Raise `UsageError` for a path that is written twice, that is read, or that holds a checkpoint or a trace."""
    written: set[str] = set()
    for path in outputs:
        real = os.path.realpath(path)
        if real in written and not real.startswith("/dev/"):
            raise UsageError(f"{path} is written twice: give every report a file of its own")
        written.add(real)
        if any(os.path.realpath(one) == real or _same(path, one) for one in inputs):
            raise UsageError(f"cannot write {path}: it is read as well; name another file")
        if path.name.lower().endswith(STORED) and os.path.lexists(path):
            raise UsageError(
                f"cannot write {path}: it is there and named as a checkpoint, a trace, code or a project's settings; name another file"
            )


STORED = (
    *(".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".index.json", "pyproject.toml", "setup.cfg", "gnnstab.toml"),
    *(".py", ".ipynb"),
    *(f".gnnstab{end}" for end in ("", "-wal", "-shm", "-journal", "-lock")),
)
"""Ends of the names of files that no report replaces."""


def _same(path: Path, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):
        return False


def write(path: Path, text: str) -> None:
    """Write a file: afterwards it holds all of the text, or what it held before; raises `UsageError`."""
    from gnnstab.report.saving import write as whole

    interrupt.obey()
    whole(path, text)


def show(text: str, format: str = "text") -> None:
    """Print to standard output; formats for programs are UTF-8 whatever the terminal speaks."""
    from gnnstab.report.escape import printed

    interrupt.obey()
    stream = sys.stdout
    if format == "text":
        text = printed(text)
    encoding = "utf-8" if format not in ("text", "markdown") else (stream.encoding or "utf-8")
    stream.flush()
    try:
        buffer = stream.buffer
    except AttributeError:  # replaced by something that takes text only
        stream.write(text)
        return
    try:
        buffer.write(text.encode(encoding, errors="backslashreplace"))
        buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"cannot write to standard output: {error.strerror or error}") from error


def terminal() -> dict[str, Any]:
    """Width and colours of standard output: NO_COLOR, FORCE_COLOR, COLUMNS and pipes as people expect."""
    from rich.console import Console

    console = Console(file=sys.stdout)
    color = console.color_system if not console.no_color else None
    if console.color_system == "windows":
        color = "standard"
    return {"width": shutil.get_terminal_size((80, 24)).columns, "color": color}


def complain(text: str, kind: str = "warning") -> None:
    """One line on standard error."""
    told(f"{kind}: {text}")


def complain_of_unread(diagnoses: Sequence[Diagnosis]) -> bool:
    """One line for each file of a folder or run that could not be read; True where there is one."""
    unread = [note for d in diagnoses for note in d.context.get("left_out", ())]
    for note in unread:
        complain(note, "error")
    return bool(unread)


def told(text: str) -> None:
    """One line on standard error that says what was done, safe for a terminal."""
    from gnnstab.report.escape import sentence

    click.echo(f"gnnstab: {sentence(text, 200, 2000)}", err=True)
