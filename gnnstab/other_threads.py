"""Threads beside this one that may draw from the generators of the process: one that prefetches batches, another training."""

from __future__ import annotations

import sys
import threading
from types import FrameType

_INSTALLED = ("site-packages", "dist-packages")
"""Folders of installed packages, whose threads like those of the standard library log, wait, draw windows or send messages.

A package that prefetches draws in the code of a user's dataset, and looks quiet only while it waits.
"""

_QUIET = frozenset({*sys.stdlib_module_names, "gnnstab"}) - {"__main__"}


def may_draw() -> str:
    """The name of another thread in which code runs that is of no installed package; empty where there is none.

    One that waits for a thread to end does not count.
    """
    if threading.active_count() == 1:
        return ""
    frames = sys._current_frames()
    del frames[threading.get_ident()]  # It is this frame, and would hold itself.
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return next((names.get(i) or "unnamed" for i, f in frames.items() if _runs(f)), "")


def _runs(innermost: FrameType) -> bool:
    frame: FrameType | None = innermost
    joins = {"join", "_wait_for_tstate_lock"}
    if innermost.f_globals.get("__name__") == "threading" and innermost.f_code.co_name in joins:
        return False
    while frame is not None:
        name, file = str(frame.f_globals.get("__name__")).partition(".")[0], frame.f_code.co_filename
        if name not in _QUIET and not any(folder in file for folder in _INSTALLED):
            return True
        frame = frame.f_back
    return False
