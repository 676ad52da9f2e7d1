"""What code of the user's prints, logs and warns of on a copy is heard by nobody: the run itself says it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

from gnnstab.errors import GnnstabWarning

_lock = Lock()
_users = 0
_replaced: list[tuple[Any, Any]] = []
"""The stream that was `sys.stdout`, and what stands in its place; the method of `logging.Logger`, and that in its place; and `warnings.showwarning`."""


@contextmanager
def unheard(quiet: ContextVar[bool]) -> Iterator[None]:
    """Nothing that is printed, or logged, where ``quiet`` is true is written, and of warnings gnnstab's own alone are shown; other threads are heard."""
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _replaced[:] = [
                (sys.stdout, _Stream(sys.stdout, quiet)),
                (logging.Logger.callHandlers, _handling(quiet)),
                (warnings.showwarning, _showing(quiet)),
            ]
            sys.stdout, logging.Logger.callHandlers, warnings.showwarning = (new for _, new in _replaced)  # type: ignore[method-assign]
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                (stream, ours), (method, own), (show, shown) = _replaced
                # Whoever has put something else there since keeps it.
                sys.stdout = stream if sys.stdout is ours else sys.stdout
                warnings.showwarning = show if warnings.showwarning is shown else warnings.showwarning
                if logging.Logger.callHandlers is own:
                    logging.Logger.callHandlers = method  # type: ignore[method-assign]


class _Stream:
    """A stream that takes what it is given in silence where it is asked to, and is the other one else."""

    def __init__(self, stream: Any, quiet: ContextVar[bool]) -> None:
        self._stream, self._quiet = stream, quiet

    def write(self, text: Any) -> Any:
        """How much of it is written: all of it."""
        return len(text) if self._quiet.get() or self._stream is None else self._stream.write(text)

    def writelines(self, lines: Iterable[Any]) -> None:
        """Write each of them."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _showing(quiet: ContextVar[bool]) -> Any:
    show = warnings.showwarning

    def showing(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        if not quiet.get() or issubclass(category, GnnstabWarning):
            show(message, category, *place, **more)

    return showing


def _handling(quiet: ContextVar[bool]) -> Any:
    handle = logging.Logger.callHandlers

    def handled(self: logging.Logger, record: logging.LogRecord) -> None:
        if not quiet.get() or self.name == "py.warnings":
            handle(self, record)

    return handled
