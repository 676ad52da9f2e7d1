"""Which steps are recorded: the schedule, what recording costs, and what forbids to leave steps out."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from torch import nn

from gnnstab.errors import let_through
from gnnstab.probe.buffering.step_writer import Writer
from gnnstab.probe.layers.layer_recorder import LayerRecorder
from gnnstab.probe.replaying.replica import HOOK_TABLES, tensors_in
from gnnstab.probe.replaying.skipped_step import MOST
from gnnstab.probe.schedule import Schedule
from gnnstab.probe.state import State
from gnnstab.randomness import deep_copy


class OverheadBudget:
    """Decides for every step whether it is recorded, by what that costs.

    A ``with`` block around the work at a step's end, or after it, adds the work to what the step has cost.

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

        self.copies = False
        """True once a copy of the model has run, so that nobody need ask whether there can be one."""

        self._state = state
        self._layers = tuple(layers)
        self._model = model
        self._writer = writer
        self._first_left_out = True
        self._paying: tuple[int, bool, bool] | None = None
        self._begun = self._until = self._spent = 0.0

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

    def looks_again(self) -> bool:
        """True for a first step whose graph has no edges, where a later one will be looked at: what one such batch shows holds for no other."""
        again = self._state.step == 0 and self._state.empty and self.schedule.full_every > 1
        if again:
            self.schedule.force()
        return again

    def begin(self) -> None:
        """Choose for the step that begins now."""
        state = self._state
        light, full = self.schedule.choose(state.step)
        if not light and self._first_left_out:
            self._first_left_out = False
            reason = "" if self.copies else _reason_against_a_copy(self._model)
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

    def step_ends(self) -> None:
        """All work for the step before this one is done, so that what it has cost is known; from here on this one pays."""
        state, clock = self._state, self._state.clock
        if clock is not None:
            if self._paying is not None:
                state.error_guard.guard("the schedule", self.schedule.ended, *self._paying, self._until, self._spent)
            self._paying = (state.step, state.light, state.full)
            self._spent, clock[0] = clock[0], 0.0

    def __enter__(self) -> None:
        """The time within counts for the step that has ended last, or that ends within."""
        self._begun = time.perf_counter()

    def __exit__(self, *failure: object) -> None:
        self._until = time.perf_counter()
        self._spent += self._until - self._begun


def _reason_against_a_copy(model: nn.Module) -> str:
    """Why `replica` would fail, or nothing; tensors are shared instead of copied, so that asking costs no memory."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if (name.endswith(HOOK_TABLES) and isinstance(value, dict)) or name == "message":
                memo[id(value)] = {}
            else:
                memo.update({id(tensor): tensor for _, tensor in tensors_in(value)})
    try:
        deep_copy(model, memo)
    except Exception as error:
        let_through(error)
        return f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error})"
    return ""
