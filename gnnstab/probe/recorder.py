"""`Recorder`: watches a model and hands what it sees to a trace, step by step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.probe.attaching.discovery import find_layers
from gnnstab.probe.attaching.forward_tracker import ForwardInputs, ForwardTracker
from gnnstab.probe.attaching.norms import Norms
from gnnstab.probe.buffering.pending_step import Number, PendingStep, kept_of, uneventful
from gnnstab.probe.buffering.stats_buffer import NO_STATS, PendingStats
from gnnstab.probe.buffering.step_writer import EMPTY, StepRows, StepWriter, Writer
from gnnstab.probe.events.dropped_update import DroppedUpdates
from gnnstab.probe.events.non_finite_detector import NonFiniteDetector
from gnnstab.probe.layer_notes import LayerNotes
from gnnstab.probe.layers.parameters import Parameters
from gnnstab.probe.operations.explaining import Explainer
from gnnstab.probe.operations.repeat import Objective
from gnnstab.probe.overhead_budget import OverheadBudget
from gnnstab.probe.places.surveys import Surveys
from gnnstab.probe.replaying.replica import unwrap
from gnnstab.probe.replaying.skipped_step import SkippedForward, look_again, run_again
from gnnstab.probe.schedule import Schedule
from gnnstab.probe.state import State
from gnnstab.records import Coverage, Event, Measure, StepRow
from gnnstab.torch_private import set_grad_enabled

_EVENTS = 1000
"""Events that are kept in memory; the trace has its own limit."""


class Recorder:
    """Records one model into one trace.

    Nothing that the run computes changes, and a failure inside it is noted instead of raised. Nothing waits for a device but full
    steps, at their end: what one has reduced is handed over at the next step's end, or by `settle`.

    Args:
        model: The model; wrappers of ``torch.compile`` and data parallelism are looked through.
        writer: Where the rows go; it stays open.
        full_every: Steps between two full-tier measurements, beginning with the first step; 0 for none.
        budget: Largest share of the run's time that recording may take, see `Schedule`. Of a step that is left out only the loss and
            the norm of the gradients are looked at; when they are not finite, it is run again on a copy and recorded in full.
        beginning: Steps before the budget counts, see `Schedule`.
        replay: Keep the inputs of the latest forward until the step ends, so that a non-finite value can be located.
        bundles: Path of the trace, beside which a bundle is written for a non-finite value; None for none.
        norm_forwards: How many forwards with gradients are watched for the normalisations beside the layers.
        places: In the 1st, 2nd, 4th, 8th, … step of the full tier, look at every place on a copy, see `gnnstab.probe.places`.
        on_event: Called at the step's end with every event.
        objective: The loss of the run, to repeat a step that went wrong with it.
        batch: The batch as the loss sees it, where it is not what the model is called with.
    """

    def __init__(
        self,
        model: nn.Module,
        writer: Writer,
        *,
        full_every: int = 50,
        budget: float | None = None,
        beginning: int = 0,
        replay: bool = True,
        bundles: Path | None = None,
        norm_forwards: float = 1,
        places: bool = False,
        on_event: Callable[[Event], None] | None = None,
        objective: Objective | None = None,
        batch: Any = None,
    ) -> None:
        self._called = model
        self.model, _ = unwrap(model)
        self.writer, schedule = writer, Schedule(full_every, budget, beginning)
        self.state = State(schedule.clock)
        self.layers = find_layers(self.model, self.state)
        self.state.compiled.allocate()
        self.events: list[Event] = []
        """Every event of the run so far, bounded."""

        self.sent = EMPTY
        """The light tier of the step that was handed over last."""

        self.row: StepRow | None = None
        """The step that was handed over last: the one that has ended last, on a device the one before it."""

        self.update: dict[str, tuple[float, float]] = {}
        """Parameter → (RMS, RMS of its change) in that step, when it was one of the full tier."""

        self.norms = Norms(self.model, {w.name: w.module for w in self.layers if w.attention}, norm_forwards)
        """What normalises beside the layers."""

        self.budget = OverheadBudget(schedule, self.state, self.layers, self.model, writer)
        """Which steps are recorded, and why."""
        self._forwards = ForwardTracker(self.state, self.layers, self.norms, keep=replay)
        self.notes = LayerNotes(model, self.model, self.state, self.layers, self.norms, self._forwards.ways)
        """What is known of the layers."""
        self.parameters = Parameters(self.model, self.state.keys)
        self._step_writer = StepWriter(writer, self.state.keys)
        self.explainer = Explainer(model, objective, batch)
        """Names the operation behind an event."""
        self._forwards.keep_before = objective is not None
        self.detector = NonFiniteDetector(
            self.model, self.state, self._forwards, self.parameters, self.notes.facts, bundles, self.explainer
        )
        self.dropped = DroppedUpdates(self, self._forwards, self.emit, _full)
        self.places = Surveys(self.model, writer, places, patient=budget is not None)
        """Looks at every place."""
        self._weights, self._start, self._attached, self._on_event = EMPTY, time.monotonic(), False, on_event
        self.told: Number = None
        self._late: PendingStep | None = None
        if budget is not None and not replay:
            self.budget.hold("the inputs of a step are not kept, so that it could not be run again")

    def attach(self) -> Recorder:
        """Hook the model; a layer that cannot be hooked is named as blind."""
        run = self.state.error_guard.run
        if not self._attached:
            self._attached = True
            for layer in self.layers:
                run(f"attaching to {layer.name}", layer.attach)
            run("attaching to the model", partial(self._forwards.attach, self._called))
            run("the beginning of a step", self.budget.begin)
            run("looking at the weights", self.detector.begin)
        return self

    def detach(self) -> None:
        """Leave the model as it was found and hand over what is left; safe to call again."""
        if not self._attached:
            return
        self._attached = False
        run = self.state.error_guard.run
        with ExitStack() as last:  # The last callback is called first, and all of them also after an interrupt.
            last.callback(run, "handing over failures", self.hand_over_failures)
            last.callback(run, "the end of the run", lambda: self.notes.finish(self._step_writer))
            last.callback(run, "detaching from the model", self._forwards.detach)
            for layer in reversed(self.layers):
                last.callback(run, f"detaching from {layer.name}", layer.detach)
            last.callback(self.explainer.close)
            run("a forward that was left", lambda: self.emit(self.detector.left_open(self.state.step)))
            self.end_step()
            self.settle()
            run("what no step shows", lambda: self.emit(self.detector.end(self.state.step)))
            self.explainer.close()
            if self.state.step > 1:
                run("the places at the end", partial(self.places.end, self.kept))

    __enter__ = attach

    def __exit__(self, *failure: object) -> None:
        self.detach()

    @property
    def held(self) -> str:
        """Why every step is recorded although there is a budget; empty while it may leave some out."""
        return self.budget.schedule.held

    @property
    def inputs(self) -> dict[str, ForwardInputs]:
        """Mode → inputs of the latest forward of the step that is being recorded."""
        return self._forwards.last

    @property
    def step(self) -> int:
        """The step that is being recorded, from 0."""
        return self.state.step

    @property
    def kept(self) -> ForwardInputs | None:
        """What a forward of the latest full-tier step got; None where none was kept."""
        return self._forwards.kept

    @property
    def coverage(self) -> Coverage:
        """What was seen and what was not, so far."""
        return self.notes.coverage

    def loss(self, loss: Tensor | float) -> None:
        """Give the loss of the current step, or of the one that has just ended."""
        value = loss.detach().clone() if isinstance(loss, Tensor) else float(loss)
        self.state.losses += 1
        if graph := self.explainer.loss_given(loss):
            self.writer.meta("loss_graph", graph)
        if self._late is not None and not self.state.open:
            self._late.tell(value)
        elif self.row is not None and not self.state.open:
            self._tell(self.row._replace(loss=float(value)))
            self.emit(self.detector.loss(self.row.step, float(value)))
        else:
            # Of a line search, which meets points that it leaves, the last one is the step.
            self.told = kept_of(self.told, value) if self.told is not None and self.dropped.wanted else value

    def validation(self, loss: float) -> None:
        """Record a validation loss at the step that has ended last."""
        step = max(self.state.step - 1, 0)
        self.writer.measures([Measure(step, "", "eval", 0, "loss.validation", -1, loss)])
        self.emit(self.detector.evaluation(step, loss))

    @property
    def late(self) -> bool:
        """True while the numbers of the last step are on their way from a device."""
        return self._late is not None

    def settle(self) -> None:
        """Hand over what is still on its way, and wait for it; look at the places that wait for a look."""
        if self._late is not None:
            self.state.error_guard.run("handing over a step", self._hand_over_late)
        self.state.error_guard.run("the places", self.places.catch_up)

    def end_step(
        self, *, lr: Number = None, scale: Number = None, skipped: Tensor | bool = False, moves: bool = False
    ) -> bool:
        """End the step: read the buffers, hand over the rows, look for non-finite values.

        ``moves`` says that the optimizer is about to move the weights; `after_update` must then follow. Returns False
        when nothing was recorded since the last end, so that there was no step to end.
        """
        state = self.state
        if not state.backward:  # Of a step that was seen the thread is known: another may well move the weights.
            state.thread = get_ident()
        if not (state.recorded or state.open):
            return False
        guard, grad = state.error_guard.guard, torch.is_grad_enabled()
        with self.budget:
            self.budget.step_ends()
            if self._forwards.watching is not None:
                guard("the watched step", lambda: self.emit(self.detector.watched()))
            set_grad_enabled(False)
            try:
                if self._forwards.bad_evaluation is not None:
                    guard("an evaluation", lambda: self.emit(self.detector.evaluation(state.step)))
                guard("the end of a step", self._end if state.light else self._end_left_out, lr, scale, skipped, moves)
                if state.formats is not None and state.formats.busy:
                    guard("the ends of number formats", state.formats.step_ends, state.step, scale is None)
                # Whatever failed above, the next step begins, and nothing of this one is held any longer.
                if state.error_guard.events:
                    guard("handing over failures", self.hand_over_failures)
                guard("the next step", self._next)
                guard("the beginning of a step", self.budget.begin)
            finally:
                set_grad_enabled(grad)
        return True

    def failed(self, error: BaseException) -> None:
        """A step ends in an exception: tell whether an Inf or NaN stands behind it."""
        self._forwards.close_watch()
        self.emit(self.detector.failed(self.state.step, error))

    @property
    def measures_update(self) -> bool:
        """True when `after_update` has something to do."""
        return bool(self.update or self.parameters.remembers)

    def after_update(self) -> None:
        """The optimizer has moved the weights: record by how much, in a step of the full tier."""
        if self.measures_update:
            with self.budget:
                self.state.error_guard.run("the update", self._record_update)

    def _end_left_out(self, lr: Number, scale: Number, skipped: Tensor | bool, moves: bool) -> None:
        norm = self.parameters.norm_on_device() if self.parameters.far else self.parameters.norm()
        row = uneventful(self.state.step, time.monotonic() - self._start, self.told, lr, scale, norm, skipped)
        if row is not None and self._late is None:
            self._tell_left_out(row)
            if self.budget.schedule.leapt:
                self.sent = look_again(self.model, self._forwards.skipped, row.step, self.writer, _full) or self.sent
            return
        ended = self._ended(NO_STATS, lr, scale, skipped)
        ended.leave_out(norm, self._forwards.skipped)
        self._hand_over_late()
        if not ended.waits:
            self._hand_over(ended, moved=False)
            return
        # On a device it is known one step later whether this one was finite; the weights that it had are kept for that.
        self._late, ended.saved = ended, self.parameters.save()
        if not ended.saved:
            self.budget.hold("the weights that a step on a device would be run again with are too large to be kept")
            ended.leave_out(norm, ())

    def _tell_left_out(self, row: StepRow) -> None:
        self.sent = EMPTY if row.grad_norm is None else StepRows(*EMPTY[:3], row.grad_norm)
        self._tell(row)

    def _tell(self, row: StepRow) -> None:
        self.row = row
        self.writer.step(row)
        self.budget.schedule.hear(row.step, row.loss, row.grad_norm)

    def _hand_over_left_out(self, ended: PendingStep, forwards: Sequence[SkippedForward], moved: bool) -> None:
        loss, rate, factor, dropped = ended.result()
        norm = ended.gradient_norm
        self._tell_left_out(StepRow(ended.step, ended.time, loss, rate, factor, norm, dropped))
        bad = norm is not None and not math.isfinite(norm) and not self.detector.tolerates(dropped, ended.step)
        if bad or (loss is not None and not math.isfinite(loss)):
            names = [] if not bad else ["a parameter"] if moved else self.parameters.bad_gradients()
            twin = self.parameters.saved_copy() if moved and ended.saved else None
            again = partial(run_again, twin or self.model, step=ended.step, writer=self.writer, recorder=_full)
            self.emit(self.detector.skipped_step(ended.step, loss, names, forwards, again, twin))
            self.budget.schedule.force()

    def _end(self, lr: Number, scale: Number, skipped: Tensor | bool, moves: bool) -> None:
        state, step = self.state, self.state.step
        if state.full:
            self.parameters.refresh()
            self.notes.note_new_layers()
        if state.backward or moves:
            self.parameters.gradients(state.buffer)
        ended = self._ended(state.send(), lr, scale, skipped)
        self._hand_over_late()
        if ended.waits:
            ended.saved, self._late = self.parameters.save(), ended
        else:
            self._hand_over(ended, moved=False)
        self.notes.write(self._step_writer)
        if state.full:
            if not self.budget.looks_again():
                self._step_writer.measures(step, state.measures)
                self.budget.copies |= self.places.step(ended.inputs, self.kept)
            if moves:
                self.parameters.remember(state.buffer)
                self._weights = self._step_writer.sites(step, state.buffer.take())
        known = self._late is not None or self.sent.gradient_norm is not None or self.told is not None
        self.budget.check(self._forwards.forwards, known)

    def _ended(self, sending: PendingStats, lr: Number, scale: Number, skipped: Tensor | bool) -> PendingStep:
        now, inputs = time.monotonic() - self._start, dict(self._forwards.last)
        return PendingStep(self.state.step, now, sending, inputs, loss=self.told, lr=lr, scale=scale, skipped=skipped)

    def _hand_over_late(self) -> None:
        """The step before this one, whose numbers have come from a device by now."""
        before, self._late = self._late, None
        if before is not None:
            self._hand_over(before, moved=True)

    def _hand_over(self, ended: PendingStep, *, moved: bool) -> None:
        """Give the numbers of a step to the trace and look at them; ``moved``: the weights are no longer those of the step."""
        if ended.forwards is not None:
            self._hand_over_left_out(ended, ended.forwards, moved)
            return
        loss, lr, scale, skipped = ended.result()
        self.sent = sent = self._step_writer.sites(ended.step, ended.stats.result(), scale or 1.0)
        self._tell(StepRow(ended.step, ended.time, loss, lr, scale, sent.gradient_norm, skipped))
        if sent.finite and (loss is None or math.isfinite(loss)):
            return
        late: dict[str, Any] = {"moved": moved, "twin": self.parameters.saved_copy() if moved and ended.saved else None}
        event = None if sent.finite else self.detector.step(ended.step, sent, skipped, ended.inputs, loss=loss, **late)
        if event is None and loss is not None:
            event = self.detector.loss(ended.step, loss, ended.inputs, **late)
        self.emit(event)

    def _next(self) -> None:
        """Release what belongs to the step that has ended."""
        state = self.state
        self.told = None
        state.step = state.error_guard.step = state.step + 1
        state.end_step()
        self._forwards.end_step()
        if self.budget.hooked:
            for layer in self.layers:
                layer.forget()
            state.buffer.clear()

    def _record_update(self) -> None:
        self.update, buffer, before, self._weights = {}, self.state.buffer, self._weights, EMPTY
        if not self.parameters.change(buffer):
            return
        change = self._step_writer.sites(self.state.step - 1, buffer.take())
        sizes = {key.layer: row[2] for key, row in zip(before.layout.keys, before.rows.tolist(), strict=True)}
        moved = {key.layer: row[2] for key, row in zip(change.layout.keys, change.rows.tolist(), strict=True)}
        self.update = {name: (size, moved[name]) for name, size in sizes.items() if name in moved}

    def emit(self, event: Event | None) -> None:
        """Hand an event over."""
        if event is None:
            return
        if event.kind == "non-finite":
            self.budget.schedule.force()
        self.events += [event][: _EVENTS - len(self.events)]
        self.writer.event(event)
        if self._on_event is not None:
            self._on_event(event)

    def hand_over_failures(self) -> None:
        """Put the failures of the recorder's own that were noted since the last time into the trace."""
        failures, self.state.error_guard.events = self.state.error_guard.events, []
        self.events += failures[: _EVENTS - len(self.events)]
        for event in failures:
            self.writer.event(event)


def _full(model: nn.Module, writer: Writer) -> Recorder:
    return Recorder(model, writer, full_every=1, replay=False)
