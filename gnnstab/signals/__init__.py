"""Traces and checkpoints → named numbers; free of torch, except that a checkpoint's facts come from reading it."""

from typing import TYPE_CHECKING, Any

from gnnstab.signals._joining import join as join
from gnnstab.signals._joining import renamed as renamed
from gnnstab.signals._recorded import from_trace as from_trace
from gnnstab.signals._trends import Trajectory as Trajectory
from gnnstab.signals._trends import Trend as Trend

if TYPE_CHECKING:
    from gnnstab.signals.weights import from_checkpoint as from_checkpoint


def __getattr__(name: str) -> Any:
    # The facts of a checkpoint live beside its torch code; a trace must stay readable without torch.
    if name == "from_checkpoint":
        from gnnstab.signals.weights import from_checkpoint

        return from_checkpoint
    raise AttributeError(f"module 'gnnstab.signals' has no attribute {name!r}")
