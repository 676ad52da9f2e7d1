"""Threads beside this one that may draw from the generators of the process: one that prefetches batches, or trains too."""

from __future__ import annotations

import io
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

_INSTALLED = ("site-packages", "dist-packages")
"""Folders of installed packages, whose threads like those of the standard library log, wait, draw windows or send messages."""

_QUIET = frozenset({*sys.stdlib_module_names, "gnnstab"}) - {"__main__"}


def may_draw() -> str:
    """The name of another thread in which code runs that is of no installed package, or that was given such code or an iterator
    to go through, as threads of packages that prefetch are; empty where there is none.

    One that waits for a thread to end does not count.
    """
    if threading.active_count() == 1:
        return ""
    frames = sys._current_frames()
    del frames[threading.get_ident()]  # It is this frame, and would hold itself.
    threads = {thread.ident: thread for thread in threading.enumerate()}
    for number, frame in frames.items():
        thread = threads.get(number)
        if not _joins(frame) and (_runs(frame) or any(map(_of_the_user, _given(thread)))):
            return "unnamed" if thread is None else thread.name
    return ""


def _joins(innermost: types.FrameType) -> bool:
    joins = {"join", "_wait_for_tstate_lock"}
    return innermost.f_globals.get("__name__") == "threading" and innermost.f_code.co_name in joins


def _runs(innermost: types.FrameType) -> bool:
    frame: types.FrameType | None = innermost
    while frame is not None:
        if not _is_quiet(str(frame.f_globals.get("__name__")), frame.f_code.co_filename):
            return True
        frame = frame.f_back
    return False


def _is_quiet(module: str, file: str) -> bool:
    return module.partition(".")[0] in _QUIET or any(folder in file for folder in _INSTALLED)


def _given(thread: threading.Thread | None) -> Iterator[Any]:
    """What a thread was made with: itself, its function and arguments, and what its function is bound to."""
    if thread is not None and thread is not threading.main_thread():
        held = [thread, *vars(thread).values()]
        held += [part for value in held if isinstance(value, (tuple, dict)) for part in _items(value)]
        yield from held
        for owner in (getattr(value, "__self__", None) for value in held):
            yield from _items({} if isinstance(owner, types.ModuleType) else getattr(owner, "__dict__", {}))


def _items(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else list(value)


def _of_the_user(value: Any) -> bool:
    """True for a function, or an object of a class, of no installed package, and for what is gone through item by item."""
    if isinstance(value, types.MethodType):
        return _of_the_user(value.__func__) or _of_the_user(value.__self__)
    if isinstance(value, types.FunctionType):
        return not _is_quiet(value.__module__ or "", value.__code__.co_filename)
    if hasattr(type(value), "__next__") and not isinstance(value, io.IOBase):
        return True
    kind = value if isinstance(value, type) else type(value)
    return not _is_quiet(kind.__module__, str(getattr(sys.modules.get(kind.__module__), "__file__", "")))
