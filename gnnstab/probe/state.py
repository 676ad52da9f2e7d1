"""What all watches of one recorder share."""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.hooks import RemovableHandle

from gnnstab.probe.attaching.identity_path import Mark
from gnnstab.probe.attaching.norms import Norms
from gnnstab.probe.buffering.compiled import CompiledCells
from gnnstab.probe.buffering.series_ids import SeriesIds
from gnnstab.probe.buffering.stats_buffer import PendingStats, StatsBuffer
from gnnstab.probe.error_guard import ErrorGuard
from gnnstab.records import Blind
from gnnstab.torch_private import graph_task

if TYPE_CHECKING:
    from gnnstab.probe.operations.format_watch import FormatWatch


class Queued(NamedTuple):
    """A full-tier number on its way to the host."""

    layer: str
    mode: str
    call: int
    name: str
    head: int
    """-1 for the aggregate, -2 for a tensor (H,) with one entry per head."""

    value: Tensor
    spread: Tensor | None = None
    """See `gnnstab.probe.statistics.Measured`."""


_LINEAR = "linear attention has no softmax and so no scores that could saturate; its denominator is not looked at"


class State:
    """Shared by the watches of a recorder; what belongs to a step is reset at its end."""

    __slots__ = (
        "answer",
        "backward",
        "batch",
        "blind",
        "buffer",
        "clock",
        "compiled",
        "empty",
        "epoch",
        "error_guard",
        "fired",
        "formats",
        "full",
        "handles",
        "inside",
        "keys",
        "layer_trace",
        "light",
        "losses",
        "measures",
        "normalising",
        "norms",
        "ran_with",
        "recorded",
        "step",
        "thread",
    )

    def __init__(self, clock: list[float] | None = None) -> None:
        self.answer: Any = None
        """What the latest forward that is kept returned, an `Answer` of the forward tracker."""

        self.clock = clock
        """See `Schedule.clock`."""

        self.thread = get_ident()
        """The thread that trains: the one whose forwards a backward follows, else the one that ended the last step."""

        self.error_guard = ErrorGuard()
        self.keys = SeriesIds()
        self.buffer = StatsBuffer(self._refuse)
        self.compiled = CompiledCells(self.keys)
        """Where layers inside compiled graphs write."""

        self.blind: dict[tuple[str, str], str] = {}
        """(layer, site) → why it is not seen."""

        self.normalising: dict[str, None] = {}
        """Modules that called a softmax whose result weighted nothing that was summed."""

        self.fired: dict[str, int] = {}
        """Layer → position, in the order of first calls."""

        self.ran_with: dict[str, int] = {}
        """Name of a parameter → id of what stood there in the latest forward of the full tier."""

        self.formats: FormatWatch | None = None
        """Follows, in few steps, what heads for the end of its number format."""

        self.empty = False
        """True when a layer was measured in this step whose graph has no edges."""

        self.step = 0
        self.epoch = 0
        """Number of outer forwards so far; a layer that meets a new one starts to count its calls anew."""

        self.losses = 0
        """Number of losses that were given so far."""

        self.inside = False
        """True within the forward of the recorded model."""

        self.light = True
        """False in a step whose activations are left out, to keep within a budget."""

        self.full = False
        """True in a step of the full tier."""

        self.recorded = False
        """True when a layer fired in this step."""

        self.backward = False
        """True when a gradient arrived in this step."""

        self.handles: list[RemovableHandle] = []
        """Hooks on leaf tensors: others end with their graph, a leaf would keep them for ever."""

        self.measures: list[Queued] = []
        self.batch: Tensor | None = None
        """(N,) graph of every node, where the model was given it; full tier only."""

        self.layer_trace: list[Mark] | None = None
        """Input and output of every layer in the first training forward, to find the paths around them."""

        self.norms: Norms | None = None
        """Hears of every layer while the normalisations beside them are watched; only ever set along with `layer_trace`."""

    def foreign(self) -> bool:
        """True of a call that is no part of the step: in another thread than the one that trains, or carrying tangents.

        Within a backward pass any thread is right: on a device it has threads of its own. Forward-mode differentiation
        (`torch.autograd.forward_ad`, `torch.func.jvp`) evaluates the model beside the training; few operations take its tensors.
        """
        return (get_ident() != self.thread and graph_task() == -1 and self._beside()) or forward_ad._current_level >= 0

    def _beside(self) -> bool:
        self.unseen("", "other threads", "what the model is asked there, beside the training, is not looked at")
        return True

    def gradient_arrived(self) -> None:
        """A backward has reached the model."""
        self.backward = True

    def send(self) -> PendingStats:
        """Everything of the light tier since the last call, from eager and from compiled layers."""
        eager = self.buffer.send()
        if not self.compiled.written:
            return eager
        self.compiled.used = True
        for layer in self.compiled.layers():
            self.fired.setdefault(layer, len(self.fired))
        return eager.along_with(self.compiled.take())

    @property
    def open(self) -> bool:
        """True when something was recorded in this step."""
        return self.recorded or self.backward or self.compiled.written

    def end_step(self) -> None:
        """Release everything that belongs to the step."""
        self.recorded = self.backward = self.empty = False
        self.batch = None
        self.measures = []
        if self.handles:
            for handle in self.handles:
                handle.remove()
            self.handles.clear()

    def unseen(self, layer: str, site: str, reason: str) -> None:
        """Note why a site is not seen; the first reason stays."""
        self.blind.setdefault((layer, site), reason)

    def linear_attention(self, layer: str, kind: str) -> None:
        """Note a layer of linear attention."""
        note = Blind.other_attention(layer, kind, _LINEAR)
        self.unseen(note.layer, note.site, note.reason)

    def blinds(self) -> list[Blind]:
        """All notes."""
        return [Blind(layer, site, reason) for (layer, site), reason in self.blind.items()]

    def queue(self, layer: str, mode: str, call: int, measured: dict[str, Any]) -> None:
        """Queue the numbers of one call until the step's end."""
        for name, value in measured.items():
            if value.total is not None:
                self.measures.append(Queued(layer, mode, call, name, -1, value.total))
            if value.per_head is not None:
                self.measures.append(Queued(layer, mode, call, name, -2, value.per_head, value.spread))

    def _refuse(self, slot: int, reason: str) -> None:
        key = self.keys.all[slot]
        self.unseen(key.layer, key.site, reason)
