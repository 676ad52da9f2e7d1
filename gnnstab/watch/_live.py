"""Follows a trace and redraws: the only part of the view that reads files, keys and the clock."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live

from gnnstab.errors import TraceError
from gnnstab.report.escape import sentence
from gnnstab.trace import Trace
from gnnstab.watch._frame import frame
from gnnstab.watch._snapshot import Snapshot, take

MOST_ROWS = 60
"""Rows of a frame that is printed rather than shown."""

SHARE = 4.0
"""After a read that took t seconds the view waits at least this many times t, so that it never hogs the machine."""


def watch(path: str | os.PathLike[str], *, console: Console, refresh: float = 1.0, once: bool = False) -> None:
    """Show a run, again and again until ``q`` is pressed; one frame when ``once`` or when there is no terminal.

    Raises `TraceError` when the trace cannot be read at the start. Later troubles are shown and tried again.
    """
    snapshot = read(path)
    if once or not console.is_terminal:
        console.print(frame(snapshot, console.width, MOST_ROWS, ascii_only=_ascii(console)))
        return
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        _follow(path, snapshot, live, pressed, refresh)


def read(path: str | os.PathLike[str]) -> Snapshot:
    """Open, read and let go of the trace, so that its writer is not held up."""
    with Trace.open(path) as trace:
        return take(trace)


def _follow(path: str | os.PathLike[str], snapshot: Snapshot, live: Live, pressed: Any, refresh: float) -> None:
    trouble, due = "", time.monotonic() + refresh
    while True:
        width, height = live.console.size
        # The very last cell of a terminal scrolls the screen on some, so the frame stays one column short.
        shown = frame(snapshot, width - 1, height, ascii_only=_ascii(live.console), hint=trouble or "q quits")
        live.update(shown, refresh=True)
        if pressed(0.1) == "q":
            return
        # An ended run is read again too, only less often: a training that is started anew replaces the file.
        if time.monotonic() < due:
            continue
        began = time.monotonic()
        try:
            snapshot, trouble = read(path), ""
        except TraceError as error:
            trouble = sentence(str(error))
        took = time.monotonic() - began
        due = time.monotonic() + max(refresh * (5 if snapshot.complete else 1), SHARE * took)


def _ascii(console: Console) -> bool:
    return not console.encoding.lower().startswith("utf")


@contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits so many seconds for a key and returns it, if any; the terminal is restored afterwards."""
    try:
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (ImportError, ValueError, OSError, AttributeError):
        yield time.sleep  # no keyboard here: Ctrl-C ends the view
        return
    try:
        tty.setcbreak(descriptor)
        yield lambda seconds: _key(descriptor, seconds)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _key(descriptor: int, seconds: float) -> str:
    ready, _, _ = select.select([descriptor], [], [], seconds)
    return os.read(descriptor, 1).decode("ascii", "replace").lower() if ready else ""
