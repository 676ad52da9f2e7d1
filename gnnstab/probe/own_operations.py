"""Whether an operation that a dispatch mode sees is one of gnnstab's own, which looks at the run and is no part of it."""

from __future__ import annotations

import sys
from types import FrameType

_MODE = ("__torch_dispatch__", "__torch_function__")
"""Modes lie between an operation and whoever asked for it."""

ENGINE = "_engine_run_backward"
"""The function of torch below which a backward runs: frames above it only say who called ``backward``."""


def is_own(depth: int = 1) -> bool:
    """True for an operation of a recorder, False for one of the user's, of their model and of the backward.

    ``depth`` says how many frames above this one the mode's own function is.
    """
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and frame.f_code.co_name != ENGINE:
        name = str(frame.f_globals.get("__name__", ""))
        if name.partition(".")[0] != "torch" and name != __name__ and frame.f_code.co_name not in _MODE:
            return name.startswith("gnnstab.probe.") and not name.startswith("gnnstab.probe.operations.")
        frame = frame.f_back
    return False
