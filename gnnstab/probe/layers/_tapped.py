"""What the recorders share that look where softmax is called: the tap, put in, taken off and put back."""

from __future__ import annotations

from threading import get_ident

from torch import Tensor

from gnnstab.layers import Layer
from gnnstab.probe.attaching.softmax_tap import SoftmaxCall, Tap, Untappable
from gnnstab.probe.layers._dense_softmax import Attending
from gnnstab.probe.layers.layer_recorder import LayerRecorder


class TappedRecorder(LayerRecorder):
    """A layer whose softmax is over edges, kept from there until the layer returns."""

    attention = True
    sites = ("input", "output", "score", "attention")
    compiled_sites: tuple[str, ...] = ("output", "input", "score", "attention")
    kind: Layer
    _tap: Tap | None = None
    _silent = False
    _seen: list[SoftmaxCall]

    def attach(self) -> None:
        """Begin to record: a tap where softmax is called, and a hook on the layer."""
        try:
            self._tap = Tap.attach(self.module, self, kind=self.kind)
        except Untappable as reason:
            for site in ("score", "attention"):
                self.state.unseen(self.name, site, str(reason))
        super().attach()

    def pause(self) -> None:
        """Take tap and hooks off until `resume`."""
        if self._tap is not None:
            self._tap.detach(self)
        super().pause()

    def resume(self) -> None:
        """Put tap and hooks back."""
        if self._tap is not None and not self._silent:
            self._tap = Tap.attach(self.module, self, self._tap, self.kind)
        super().resume()

    def detach(self) -> None:
        """Leave the layer as it was found."""
        if self._tap is not None:
            self._tap.detach(self)
        super().detach()

    def saw(self, seen: SoftmaxCall) -> None:
        """Keep one softmax until the layer returns."""
        for look in Attending.current.get(get_ident(), ()):
            look.exponentials.seen_elsewhere(seen.score, seen.attention)
        # A checkpointed segment that is run again in the backward stops as soon as it has what the gradients need: the
        # layer may then never return.
        if not self.repeats() and not self.state.foreign():
            self._seen.append(seen)

    def saw_compiled(self, score: Tensor, attention: Tensor | None) -> None:
        """Record one softmax inside a compiled graph."""
        self.note("score", score)
        self.note("attention", attention)

    def returned(self, message: Tensor) -> None:
        """Messages of a class that nobody described are not read."""

    def failed(self, error: Exception) -> None:
        """The tap could not hand something over."""
        self._silent = True
        self.state.error_guard.note(f"the scores of {self.name}", error)

    def forget(self) -> None:
        """Drop what an interrupted call left behind."""
        self._seen = []
