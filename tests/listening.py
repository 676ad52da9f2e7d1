"""A listener of a tap."""

from __future__ import annotations

from torch import Tensor

from gnnstab.probe.attaching.softmax_tap import SoftmaxCall


class Listener:
    """Keeps what a tap shows."""

    def __init__(self) -> None:
        self.seen: list[SoftmaxCall] = []
        self.messages: list[Tensor] = []

    def saw(self, seen: SoftmaxCall) -> None:
        self.seen.append(seen)

    def returned(self, message: Tensor) -> None:
        self.messages.append(message)

    def failed(self, error: Exception) -> None:
        raise error

    def saw_compiled(self, score: Tensor, attention: Tensor | None) -> None:
        raise AssertionError("nothing is compiled here")
