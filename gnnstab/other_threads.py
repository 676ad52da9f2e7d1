"""Threads beside this one that may draw from the generators of the process: one that prefetches batches, another training."""

from __future__ import annotations

import sys
import threading
from types import FrameType

_QUIET = frozenset(
    {*sys.stdlib_module_names, "gnnstab", "torch", "tqdm", "wandb", "mlflow", "tensorboard", "tensorboardX", "lightning"}
    | {"pytorch_lightning", "lightning_utilities", "comet_ml", "neptune", "clearml", "aim", "swanlab", "sentry_sdk", "grpc"}
    | {"IPython", "ipykernel", "tornado", "zmq", "jupyter_client", "debugpy", "pydevd", "_pydevd_bundle", "joblib", "loky"}
    | {"execnet", "xdist", "pytest_timeout", "psutil", "pynvml", "dask", "distributed", "ray"}
) - {"__main__"}  # fmt: skip
"""Packages whose threads draw nothing as long as no other code runs in them."""


def may_draw() -> str:
    """The name of another thread in which code of a user's or of an unknown package runs; empty where there is none.

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
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in _QUIET:
            return True
        frame = frame.f_back
    return False
