"""Traces and checkpoints → named numbers; free of torch, except that a checkpoint's facts come from reading it."""

from typing import TYPE_CHECKING

from gnnstab.plugins import on_first_use
from gnnstab.signals._joining import join as join
from gnnstab.signals._joining import renamed as renamed
from gnnstab.signals._measures import parsed as parsed
from gnnstab.signals._recorded import from_trace as from_trace
from gnnstab.signals._trends import Trajectory as Trajectory
from gnnstab.signals._trends import Trend as Trend

if TYPE_CHECKING:
    from gnnstab.signals.weights import from_checkpoint as from_checkpoint

# The facts of a checkpoint live beside its torch code; a trace must stay readable without torch.
__getattr__ = on_first_use(__name__, weights="from_checkpoint")
