"""Runs without an update that anybody told of: whether the weights moved all the same."""

from __future__ import annotations

import json

from torch import Tensor
from torch.nn.parameter import is_lazy

from gnnstab.probe.optimizer.standing import bits_of
from gnnstab.probe.recorder import Recorder


class UntoldUpdates:
    """Counts the updates of a run, and compares its weights with those that it began with where there is none.

    Args:
        recorder: Of the run.
        optimizer: True where the monitor was given one, whose steps are its updates.
    """

    def __init__(self, recorder: Recorder, *, optimizer: bool) -> None:
        self._recorder, self._optimizer = recorder, optimizer
        self._updates = self._before = 0
        self._names: frozenset[str] = frozenset()
        self._bits: Tensor | None = None

    def begin(self) -> None:
        """Sum up the bits of the weights; on a device nothing waits for them."""
        held = self._weights()
        self._names, self._bits = frozenset(held), bits_of(list(held.values()))

    def update(self) -> None:
        """An update is about to be made, or was skipped by a scaler."""
        self._updates += 1
        if self._updates == 1:
            self._before = self._passes()

    def at_end(self) -> None:
        """Let the trace keep what a run without an update has done, or one whose only update came after all of its losses."""
        state = self._recorder.state
        if self._updates > 1 or not (state.backward or state.step) or self._bits is None:
            return
        if self._updates:
            if state.losses == self._before:  # Without losses nothing tells a rollout from passes that are thrown away.
                self._tell(self._before, True)
            return
        bits, self._bits = self._bits, None
        held = {name: weight for name, weight in self._weights().items() if name in self._names}
        now = bits_of(list(held.values())) if len(held) == len(self._names) else None
        if now is not None:
            self._tell(self._passes(), bool(now != bits))

    def _tell(self, passes: int, moved: bool) -> None:
        told = {"passes": passes, "updates": self._updates, "moved": moved, "optimizer": self._optimizer}
        self._recorder.writer.meta("untold", json.dumps(told))

    def _passes(self) -> int:
        """Losses so far, else forwards."""
        return self._recorder.state.losses or self._recorder.state.epoch

    def _weights(self) -> dict[str, Tensor]:
        named = self._recorder.model.named_parameters()
        return {name: p.detach() for name, p in named if p.requires_grad and not is_lazy(p)}
