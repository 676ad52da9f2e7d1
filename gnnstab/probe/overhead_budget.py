"""Which steps are recorded: the schedule, what recording costs, and what forbids to leave steps out."""

from __future__ import annotations

import time
from collections.abc import Iterable

from torch import nn

from gnnstab.probe.buffering.step_writer import Writer
from gnnstab.probe.layers.layer_recorder import LayerRecorder
from gnnstab.probe.replaying.replica import reason_against_a_copy
from gnnstab.probe.replaying.skipped_step import MOST
from gnnstab.probe.schedule import Schedule
from gnnstab.probe.state import State


class OverheadBudget:
    """Decides for every step whether it is recorded, and keeps the accounts of what that costs.

    Args:
        schedule: Chooses the steps.
        state: Gets the choice.
        layers: Their hooks are taken off for a step that is left out.
        model: What would be run again when a step that was left out goes wrong.
        writer: Is told why every step is recorded although there is a budget.
    """

    def __init__(
        self, schedule: Schedule, state: State, layers: Iterable[LayerRecorder], model: nn.Module, writer: Writer
    ) -> None:
        self.schedule = schedule
        self.hooked = True
        """False while the hooks of the layers are taken off."""

        self._state = state
        self._layers = tuple(layers)
        self._model = model
        self._writer = writer
        self._first_left_out = True
        self._account: tuple[int, bool, bool] | None = None

    def hold(self, reason: str) -> None:
        """Record every step from here on."""
        self.schedule.hold(reason)
        self._writer.meta("schedule", f"every step is recorded: {reason}")

    def check(self, forwards: int, told: bool) -> None:
        """Before steps are left out: would one that goes wrong be noticed, and could it be run again?

        ``forwards`` is the number of forward passes with gradients of the step that ends, ``told`` whether it had
        gradients or a loss.
        """
        if self._state.clock is None or self.schedule.held:
            return
        if self._state.compiled.used:
            self.hold("parts of the model run inside a compiled graph, and recording is part of that graph")
        elif forwards > MOST:
            self.hold(f"a step has more than {MOST} forward passes, and no more are kept to be run again")
        elif not forwards:
            self.hold("a step had no forward of the whole model with gradients that could be run again")
        elif not told:
            self.hold("a step had neither gradients nor a loss, by which one that goes wrong would be noticed")

    def begin(self) -> None:
        """Choose for the step that begins now."""
        state = self._state
        light, full = self.schedule.choose(state.step)
        if not light and self._first_left_out:
            self._first_left_out = False
            reason = reason_against_a_copy(self._model)
            if reason:
                self.hold(f"a step could not be run again, since {reason}")
        state.light, state.full = light or bool(self.schedule.held), full
        if state.light is not self.hooked:
            self.hooked = state.light
            for layer in self._layers:
                if self.hooked:
                    layer.resume()
                else:
                    layer.pause()

    def open_account(self) -> None:
        """The step has ended; what is still spent on it counts for it until `close_account`."""
        self._account = (self._state.step, self._state.light, self._state.full)

    def spent_since(self, begun: float) -> None:
        """Add the time since ``begun`` (`time.perf_counter`) to what recording the current step has cost."""
        if self._state.clock is not None:
            self._state.clock[0] += time.perf_counter() - begun

    def close_account(self) -> None:
        """All work for the step that has ended is done: what it has cost is known."""
        account, self._account = self._account, None
        if account is not None and self._state.clock is not None:
            self._state.error_guard.guard("the schedule", self.schedule.ended, *account)
