"""What is tried when a run has ended: each suspect is undone on a copy, and the trace keeps what that showed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnnstab.errors import GnnstabError, TraceError, UsageError, warn
from gnnstab.evaluation import diagnose_trace
from gnnstab.layers import FAMILY
from gnnstab.left_out import left_out, taken
from gnnstab.monitor._arguments import is_nan
from gnnstab.monitor._opening import loss_of
from gnnstab.monitor._proving import as_called, training_of
from gnnstab.observation import static_signals
from gnnstab.probe.attaching.forward_tracker import ForwardInputs
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.events.non_finite_detector import bad_tensors
from gnnstab.probe.optimizer import run_trial as trials
from gnnstab.probe.optimizer.kept_settings import SETTINGS, kept_settings
from gnnstab.probe.optimizer.learning import FAR_OFF, LEARNS, LEARNS_WELL, MARGIN, MORE_STEPS, STEPS
from gnnstab.probe.optimizer.marked import may_hold_marks
from gnnstab.probe.optimizer.next_update import UpdateWatch
from gnnstab.probe.optimizer.optimizer_steps import TimeIsUpError
from gnnstab.probe.optimizer.run_trial import bench_of, rows_of
from gnnstab.probe.optimizer.schedules import Rates, rates_of_run
from gnnstab.probe.places import ungiven
from gnnstab.probe.recorder import Recorder
from gnnstab.probe.replaying.computing_hooks import computing_hooks
from gnnstab.probe.replaying.known import asked_once
from gnnstab.probe.replaying.skipped_step import answers_in, last_look
from gnnstab.probe.unit_input import unit_input_rows
from gnnstab.records import Diagnosis, Event, Measure, Signals
from gnnstab.records.vocabulary import (
    ATTENTION_ENTROPY,
    ATTENTION_ONE_HOT_SHARE,
    GRADIENT_NORM,
    INVESTIGATION,
    LOSS,
    LOSS_OVER_ZERO,
    OPTIMIZER_EPS_DAMPING,
    OPTIMIZER_LR_JUMP,
    OPTIMIZER_OUTPUT_MOVE,
    OPTIMIZER_SOFTER,
    PLACE_DEAD_SHARE,
    SCORE_GROWTH,
    TRIALS_ENDED,
    UNGIVEN,
    WEIGHT_NON_FINITE,
)
from gnnstab.rules.engine import RULE_FAILED
from gnnstab.rules.gs406_feature_scale import FeatureScale
from gnnstab.rules.gs602_adam_epsilon_dominates import AdamEpsilonDominates
from gnnstab.rules.gs608_learning_rate_too_low import LearningRateTooLow
from gnnstab.sharding import WHY, waits_for_others
from gnnstab.stored import is_finite, stored
from gnnstab.torch_private import tree_leaves
from gnnstab.trace import TraceWriter
from gnnstab.verification import prove
from gnnstab.verification.interventions import STATES, as_batch, by_its_rate, investigated, kept

Loss = Callable[[Any, Any], Tensor]

STANDS_STILL = math.exp(-LEARNS)
"""Best loss of a run over its first, or over that of an output of zeros, above which suspects are undone."""

NOT_WELL = math.exp(-LEARNS_WELL - MARGIN)
"""The same above which it is looked at whether data or graph keep it from learning what holds for other rows."""

HARDLY = 1e-3
"""Change of the output by one update, over its spread, below which larger rates are tried; they are, too, where all updates of a run together moved it by less than its spread."""

LEAST_KEPT = AdamEpsilonDominates.least_kept
"""Share of an update that eps leaves of it, below which steps with and without it are tried, as for GS602."""

PARTLY = math.exp(-LearningRateTooLow.partly)
"""Best loss of a run over its first, below which it has learned, whatever its rate has come to."""

LONGEST = 120.0
"""Seconds that steps on copies may take when a run ends: nobody should think that it hangs."""

SPENT = LearningRateTooLow.spent
"""Share of a run after its rate was spent from which on larger rates are tried, as for GS608."""

_SHARP = (ATTENTION_ENTROPY, ATTENTION_ONE_HOT_SHARE, SCORE_GROWTH)
"""Signals of findings that steps with softer scores decide about."""


class Ending:
    """Undoes the suspects of a run with a batch of its latest full-tier step: a dozen forwards and backwards at most.

    Args:
        recorder: Of the run that has ended.
        writer: Of its trace, still open.
        loss: ``loss(output, batch)``, where the user gave it.
        optimizers: All that move the model; with several no steps are tried.
        updates: Keeps what the run began with, and tells whether it moved any weight.
    """

    def __init__(
        self,
        recorder: Recorder,
        writer: TraceWriter,
        loss: Loss | None,
        optimizers: Sequence[torch.optim.Optimizer],
        updates: UpdateWatch,
    ) -> None:
        self._recorder, self._writer, self._loss, self._optimizers = recorder, writer, loss, optimizers
        self._updates = updates
        self._hooks = _computing(recorder.model)
        self._left_out: dict[str, None] = {}
        self.late: list[Event] = []
        """What was given after the end of the run and is not finite."""

        self._told_late = False
        self._over = False
        taken()  # What another run has left out.

    def _note_gradients(self) -> None:
        """Let the trace keep which parameters show no gradient now: few steps of a run are measured parameter by parameter."""
        silent = None if self._over else ungiven(self._recorder.model, self._optimizers)
        if silent is not None:
            self._writer.meta(UNGIVEN, json.dumps(silent))

    def tell_left_out(self) -> None:
        """Let the trace keep why looks on copies were left out so far, the last steps and the end of the run included."""
        self._note_gradients()
        fresh = dict.fromkeys(" ".join(reason.split()) for reason in taken())
        if fresh.keys() - self._left_out.keys():
            self._left_out |= fresh
            self._writer.meta("left_out", "\n".join(self._left_out))

    def keep_settings(self) -> None:
        """Let the trace keep how the only optimizer is set, so that what is tried later goes by it."""
        self._writer.meta(SETTINGS, kept_settings(self._optimizers[0], self._recorder.model))

    def loss(self, loss: Tensor | float) -> None:
        """Take a loss that is given when nothing is recorded any longer, as that of a test after the training."""
        self._take_late("loss", float(loss))

    def validation(self, loss: float) -> None:
        """Take a validation loss likewise."""
        self._take_late("validation", loss)

    def _take_late(self, what: str, loss: float) -> None:
        event = self._recorder.detector.evaluation(self._recorder.step, loss)
        if event is not None:
            said = f"monitor.{what} was given {loss} after the run"
            self.late.append(replace(event, message=said, detail={**event.detail, "said": said}))
        if not self._told_late:
            self._told_late = True
            words = f"monitor.{what} was given {loss:.3g} after the monitor's block had ended, and the trace does not keep it"
            warn(f"gnnstab: {words}; call it inside the block")

    def failed(self, error: BaseException) -> None:
        """The run ends in an exception: let the trace keep one that came before any step had ended, and look for an Inf or NaN behind it."""
        if not self._recorder.step and not isinstance(error, GnnstabError):
            self._writer.meta("ended.by", type(error).__name__)
        self._recorder.failed(error)

    def look(self) -> None:
        """Let the trace keep what undoing shows; a run without a full-tier step, without a symptom, or
        of a model that cannot be copied since other processes hold a part of it, leaves nothing."""
        try:
            self._recorder.state.error_guard.run("what the run leaves", self._look_at_state)
            self._recorder.state.error_guard.run("whether anything moved", self._tell_standing)
            self._note_gradients()
            with asked_once():
                self._undo()
        finally:
            self._over = True

    def _tell_standing(self) -> None:
        self._writer.measures(self._updates.standing.at_end(max(self._recorder.step - 1, 0)))

    def _look_at_state(self) -> None:
        """Tell what the run leaves with NaN or Inf and began with finite, as a file of it is judged: buffers, what is frozen, and what the optimizers keep."""
        recorder, model = self._recorder, self._recorder.model
        detector = recorder.detector
        if detector.met or recorder.row is None or waits_for_others(model):
            return
        kept = [t for one in self._optimizers for state in one.state.values() for t in state.values()]
        within = {
            f"{type(one).__name__}.state.{key}": None
            for one in self._optimizers for state in one.state.values() for key, value in state.items()
            if not isinstance(value, Tensor) and any(map(is_nan, tree_leaves(value)))
        }  # fmt: skip
        bad = {*bad_tensors(model)} - detector.began
        if not (bad or within) and all(is_finite(t) for t in kept if isinstance(t, Tensor)):
            return
        found = [static_signals(model, optimizer=one) for one in self._optimizers] or [static_signals(model)]
        non_finite = [s for signals in found for s in signals.find(WEIGHT_NON_FINITE) if s.value > 0]
        own = f"{type(model).__name__}."
        held = {str(s.detail.get("parameter", s.layer)).removeprefix(own): s for s in non_finite}
        names = [*(name for name in held if name not in detector.began), *within]
        if names:
            layer = held[names[0]].layer if names[0] in bad else None
            recorder.emit(detector.state(recorder.row.step, names, layer))

    def _undo(self) -> None:
        inputs, model = self._recorder.kept, self._recorder.model
        if inputs is None or self._recorder.row is None:
            return
        if waits_for_others(model):
            left_out(WHY)
            return
        with suppress(UsageError):  # Of a model that cannot be copied nothing more is seen.
            self._look_once_more(inputs, self._recorder.row.step)
        try:
            diagnosis = self._so_far()
            with suppress(UsageError):
                if unscaled := self._at_unit_input(diagnosis, inputs, self._recorder.row.step):
                    self._writer.measures(unscaled)
                    diagnosis = self._so_far()
        except TraceError:  # It could not be written either, which the user has been told.
            return
        self._tell_failed(diagnosis)
        until = time.monotonic() + LONGEST
        try:
            if self._try_steps(
                diagnosis, inputs, until
            ):  # What they show of the rate says what has made the weights so.
                diagnosis = self._so_far()
            if self._try_rates(diagnosis, inputs, until):
                diagnosis = self._so_far()
            found = investigated(
                diagnosis,
                model,
                batch=as_batch(model, inputs.args, inputs.kwargs),
                loss=None if self._loss is None else as_called(self._loss, inputs),
                precision=self._recorder.notes.precision or "fp32",
            )
        except (UsageError, TraceError):
            return  # As under a mode of the user's.
        if found.symptoms:
            self._writer.meta(INVESTIGATION, json.dumps(kept(found)))

    def _so_far(self) -> Diagnosis:
        with self._writer.read() as trace:
            return diagnose_trace(trace)

    def _at_unit_input(self, diagnosis: Diagnosis, inputs: ForwardInputs, step: int) -> list[Measure]:
        """Sharp attention of classes that nobody described, with an input of RMS 1: a run measures only the kinds that it knows so."""
        sharp = {finding.layer for finding in diagnosis.findings if finding.signal in _SHARP}
        unknown = any(FAMILY in facts.options and facts.name in sharp for facts in diagnosis.layers)
        return unit_input_rows(self._recorder.model, inputs, step) if unknown else []

    def _look_once_more(self, inputs: ForwardInputs, last: int) -> None:
        """Measure in full what a run has come to, where it ended after its last step of the full tier, and with finite numbers."""
        # Without a hook that took part in it the forward is another one.
        if self._recorder.events or _computing(self._recorder.model) != self._hooks:
            return
        # Under fp16 the scale decides which gradients overflow.
        if self._recorder.notes.precision != "fp16":
            self._recorder.emit(self._recorder.detector.cleaned(inputs))
        late = self._recorder.notes.came_later()
        if inputs.answer.step < last or late:
            output = last_look(
                self._recorder.model, inputs, last, self._writer,
                lambda model, writer: Recorder(model, writer, full_every=1, replay=False), late,
            )  # fmt: skip
            was = inputs.answer.output
            if was is not None and was.isfinite().all() and any(stored(t).isnan().any() for t in answers_in(output)):
                self._recorder.emit(self._recorder.detector.output(last, inputs))

    def prove(self, diagnosis: Diagnosis) -> Diagnosis:
        """The diagnosis with a verdict on every fix; raises `UsageError` where there is nothing to try them on.

        Changes of the training are tried with the run's own optimizer, from the weights that it began with where these were kept, and a
        lower rate by the same steps that have found the one in use too high.
        """
        model, raised = self._recorder.model, self._updates.raised
        inputs, loss = raised or (self._recorder.kept, None)
        if inputs is None or waits_for_others(model):
            raise UsageError(
                "verify=True needs a whole model and a batch that the monitor has kept, and there is none; "
                "gnnstab.diagnose(model, batch=…, loss=…, verify=True) takes them"
            )
        loss = loss or loss_of(inputs, self._loss)
        return prove(
            diagnosis, model, batch=as_batch(model, inputs.args, inputs.kwargs),
            loss=None if loss is None else as_called(loss, inputs), precision=self._recorder.notes.precision or "fp32",
            ask="give the Monitor its optimizer", **training_of(diagnosis, model, self._optimizers, self._start),
        )  # fmt: skip

    def _try_rates(self, diagnosis: Diagnosis, inputs: ForwardInputs, until: float) -> bool:
        """Has the run's own rate made states of its weights that are warned of? True where it was shown to."""
        row, loss, began = self._recorder.row, loss_of(inputs, self._loss), self._updates.began
        if not any(f.signal in STATES for f in diagnosis.findings) or began is None or loss is None or row is None:
            return False
        diagnosis = self._so_far()  # With what steps with softer scores have shown.
        rates = next((s.detail for s in diagnosis.signals if s.name == OPTIMIZER_LR_JUMP), {})
        start = self._start(float(rates.get("largest", 0.0)))
        bench = replace(bench_of(*start, inputs, loss, until), rates=self._rates(start[1]))
        try:
            found = by_its_rate(diagnosis, bench, as_batch(self._recorder.model, inputs.args, inputs.kwargs))
        except TimeIsUpError:
            self._writer.meta(TRIALS_ENDED, f"{LONGEST:.0f}")
            return False
        self._writer.measures(rows_of(found, inputs.mode, row.step))
        return bool(found)

    def _try_steps(self, diagnosis: Diagnosis, inputs: ForwardInputs, until: float) -> bool:
        """Would the loss fall without what deep stacks put in the way, where it has hardly done, or with softer attention, where that is sharp?

        True where steps were tried that may say so.
        """
        losses = next((s.detail for s in diagnosis.signals if s.name == LOSS and "start" in s.detail), None)
        loss, row, model = loss_of(inputs, self._loss), self._recorder.row, self._recorder.model
        if losses is None or loss is None or row is None or len(self._optimizers) != 1:
            return False
        hindered = False
        rates = next((s.detail for s in diagnosis.signals if s.name == OPTIMIZER_LR_JUMP), {})
        largest = float(rates.get("largest", 0.0))
        try:
            # To come down from a far-off first output is nothing learned.
            zeros = (float(s.detail["zeros"]) for s in diagnosis.signals if s.name == LOSS_OVER_ZERO)
            first = min(float(losses["start"]), *zeros, math.inf)
            hindered, slow = (float(losses["best"]) > share * first > 0 for share in (STANDS_STILL, NOT_WELL))
            scaled = self._scaled(diagnosis, hindered=hindered)
            marked = may_hold_marks(named_tensors(inputs.args, inputs.kwargs))
            if slow or scaled or marked:
                start = self._start(largest)
                lost = float(losses["best"]) > FAR_OFF * first and int(losses["steps"]) >= MORE_STEPS
                trial = trials.undone_trial(
                    *start, inputs, loss, row.step, hindered=hindered, slow=slow, lost=lost, scaled=scaled, until=until,
                    rates=self._rates(start[1]),
                )  # fmt: skip
                self._writer.measures(trial)
            spent = rates.get("spent", 0.0) > SPENT and float(losses["best"]) > PARTLY * first > 0
            if hindered or spent:
                still = max((s.value for s in diagnosis.signals if s.name == OPTIMIZER_OUTPUT_MOVE), default=1.0)
                damped = any(s.name == OPTIMIZER_EPS_DAMPING and s.value < LEAST_KEPT for s in diagnosis.signals)
                small = spent or rates.get("rising") or still < max(HARDLY, 1 / int(losses["steps"]))
                if small or damped:
                    # What a schedule has not come down from, or never came up to, is judged by the most that it had.
                    as_is = spent or any(rates.get(how) for how in ("constant", "rising"))
                    start = (model, self._optimizers[0]) if as_is else self._start(largest)
                    self._writer.measures(trials.slow_trial(*start, inputs, loss, row.step, largest, until))
            if hindered:
                norms = (float(s.detail.get("worst", 0.0)) for s in diagnosis.signals if s.name == GRADIENT_NORM)
                start = self._start(largest)
                most = max(norms, default=0.0)
                self._writer.measures(trials.clipped_trial(*start, inputs, loss, row.step, most, until))
            # Of what was sharp from the start, the steps before the first update have told.
            told = {name for s in diagnosis.signals if s.name == OPTIMIZER_SOFTER for name in s.detail.get("names", ())}
            sharp = [f.layer for f in diagnosis.findings if f.code in ("GS301", "GS302") and f.signal in _SHARP]
            left = [layer for layer in dict.fromkeys(sharp) if layer and layer not in told]
            self._writer.measures(trials.softer_trial(model, self._optimizers[0], inputs, loss, row.step, left, until))
            shut = [str(f.layer) for f in diagnosis.findings if f.signal == PLACE_DEAD_SHARE and f.severity != "info"]
            self._writer.measures(trials.revived_trial(model, self._optimizers[0], inputs, loss, row.step, shut, until))
        except TimeIsUpError:
            self._writer.meta(TRIALS_ENDED, f"{LONGEST:.0f}")
        except UsageError:
            pass  # What cannot be copied, or is trained by more than one forward, cannot be tried.
        return hindered

    def _start(self, largest: float) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """Model and optimizer as the run began, if that was kept, else as it has come to be."""
        model, optimizer = self._recorder.model, self._optimizers[0]
        began = self._updates.began
        return (model, optimizer) if began is None else began.restored(model, optimizer, largest)

    def _rates(self, optimizer: torch.optim.Optimizer) -> Rates:
        """Those of the run's first steps, as of `rates_of_run`; none where ``optimizer`` is not at its beginning."""
        if self._updates.began is None:
            return ()
        with self._writer.read() as trace:
            rows = trace.step_arrays()
        known = rows[np.isfinite(rows["lr"]) & ~rows["skipped"]]
        return rates_of_run(optimizer, known["step"], known["lr"], STEPS, MORE_STEPS)

    def _scaled(self, diagnosis: Diagnosis, *, hindered: bool) -> dict[str, bool]:
        """Inputs whose scale is blamed, or may be for a loss that has hardly fallen; trained weights have come to terms with what they were given."""
        seen = Signals("trace", diagnosis.layers, diagnosis.signals, context=diagnosis.context)
        if self._updates.began is None:
            return FeatureScale().unexplained(seen) if hindered else {}
        blamed = any(f.code == "GS406" and f.layer and f.severity != "info" for f in diagnosis.findings)
        return FeatureScale().beyond(seen) if hindered or blamed else {}

    def _tell_failed(self, diagnosis: Diagnosis) -> None:
        """A rule that raises is a finding of its own; while a run ends, nobody may read that, so it is told and recorded."""
        for status in diagnosis.rules:
            if status.reason.startswith(RULE_FAILED):
                reason = status.reason.removeprefix(RULE_FAILED)
                self._recorder.state.error_guard.note(f"the rule {status.code}", GnnstabError(reason))


def _computing(model: torch.nn.Module) -> set[int]:
    return {key for module in model.modules() for key in computing_hooks(module)}
