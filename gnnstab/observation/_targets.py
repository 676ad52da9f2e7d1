"""What kind of target it is, and the road to its signals."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from gnnstab.errors import LoadError, UsageError
from gnnstab.observation._files import observe_checkpoint
from gnnstab.observation._folders import listed, observe_folder, passed_over
from gnnstab.observation._models import at_hand, observe_model
from gnnstab.observation._references import build
from gnnstab.observation._request import Live, Observed, Request
from gnnstab.records import Target
from gnnstab.signals import from_trace, parsed
from gnnstab.trace import Trace, rank_files


def observe(target: Any, request: Request) -> Observed:
    """The signals of a path (checkpoint, trace, folder of either) or of an ``nn.Module``.

    Raises `LoadError` for a file that cannot be read and `UsageError` for arguments that ask for something impossible.
    """
    if not isinstance(target, (str, os.PathLike)):
        return observe_model(target, request)
    from gnnstab.checkpoint import files_in

    if not os.fspath(target):
        raise UsageError("the target is empty; the current folder is '.'")
    path = Path(target)
    folder = os.path.isdir(path)  # Unlike `Path.is_dir` it asks no leave.
    try:
        if folder and not any(name.endswith(".gnnstab") for name in os.listdir(path)):
            return observe_folder(path, request)
        trace_file = folder or is_trace(path)
    except PermissionError as error:
        raise LoadError(f"{error.filename or path}: cannot be read: {error.strerror}") from error
    if trace_file:
        with Trace.open(path) as trace:
            signals, notes, beside = from_trace(trace), trace.notes, []
            if folder:
                found = files_in(path)
                beside = [*(file.name for file in found.checkpoints), *found.others]
            if beside:
                files = listed(beside, 2)
                signals = replace(signals, context={**signals.context, **passed_over(beside)})
                notes += (
                    f"{path}: read the trace as one run, and not {files} beside it; name a checkpoint to have it judged",
                )
            return Observed(Target("trace", str(path), notes), signals, _beside(trace, request))
    return observe_checkpoint(path, request)


def _beside(trace: Trace, request: Request) -> Live | None:
    """The model that a run was of, where it was passed with a batch, and an optimizer as that of the run; a trace holds no model and no batch."""
    if request.model is None or request.batch is None:
        return None
    from gnnstab.probe.optimizer.kept_settings import SETTINGS, made_of

    rates, model = trace.step_arrays()["lr"], build(request.model)
    known = rates[rates > 0]
    training: dict[str, Any] = {"lr": float(known[0])} if len(known) else {}
    made = made_of(trace.meta.get("optimizer", ""), parsed(trace.meta.get(SETTINGS, ""), list), model)
    return at_hand(model, request, training if made is None else {**training, "optimizer": made})


def is_trace(path: Path) -> bool:
    """True for a file that is, or claims to be, a trace, and for the stem of the traces of a distributed run."""
    if path.suffix == ".gnnstab":
        return True
    if not os.path.isfile(path):
        return not os.path.lexists(path) and bool(rank_files(path))
    with path.open("rb") as stream:
        return stream.read(16) == b"SQLite format 3\x00"
