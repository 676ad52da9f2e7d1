"""Ctrl-C holds, also where a callback from C code swallows the exception that Python raises for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_pressed = False


@contextmanager
def listening() -> Iterator[None]:
    """Inside, Ctrl-C raises `KeyboardInterrupt` as ever, and is remembered."""
    global _pressed
    _pressed = False
    before = signal.getsignal(signal.SIGINT)
    # Only the main thread may set a handler; one that ignores Ctrl-C, as in a background job, stays.
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def pressed() -> bool:
    """Whether Ctrl-C was pressed since `listening` began."""
    return _pressed


def obey() -> None:
    """Raise `KeyboardInterrupt` when Ctrl-C was pressed and its exception got lost: nothing more is measured or said."""
    if _pressed:
        raise KeyboardInterrupt


def _press(*_: object) -> None:
    global _pressed
    _pressed = True
    raise KeyboardInterrupt
