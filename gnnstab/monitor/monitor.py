"""`Monitor`: what a training loop is put inside of."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from gnnstab.errors import UnstableError, UsageError, warn
from gnnstab.evaluation import diagnose_trace
from gnnstab.feed import Feed, Sink
from gnnstab.fixes.own_lines import in_own_lines
from gnnstab.monitor._arguments import (
    OnFinding,
    as_number,
    check,
    check_options,
    of_processes,
    optimizers_of,
    path_of,
    steps_between,
    told_when_it_fails,
    warn_of_foreign,
)
from gnnstab.monitor._ending import Ending
from gnnstab.monitor._live import LiveWatch
from gnnstab.monitor._opening import Opening
from gnnstab.monitor._telling import ENTER_IT, Repeats, in_words, nothing_yet, told
from gnnstab.observation import static_signals
from gnnstab.probe.attaching.boundary import Boundary
from gnnstab.probe.operations.repeat import objective_of
from gnnstab.probe.optimizer.named import named
from gnnstab.probe.optimizer.next_update import UpdateWatch
from gnnstab.probe.optimizer.slope import SlopeWatch
from gnnstab.probe.places import NotHeld
from gnnstab.probe.recorder import Recorder
from gnnstab.records import Coverage, Diagnosis, Event, Finding, Target
from gnnstab.rules.explanation import is_warning
from gnnstab.rules.gs502_non_finite_value import NonFiniteValue, follows
from gnnstab.rules.queries import fresh
from gnnstab.rules.recalled import as_event
from gnnstab.trace import TraceWriter
from gnnstab.undisturbed import without_modes

if TYPE_CHECKING:
    from gnnstab.trace import Trace

_FULL_EVERY = 50
_BUDGET = 0.02
_BEGINNING = 100
"""Steps that the default schedule looks at more closely than its budget allows: what goes wrong early goes wrong in these."""


class Monitor:
    """Watches the training of a model with `TransformerConv` layers.

    Use it as a context manager around the loop. With an optimizer, steps are found by themselves; without one, call
    `step` after every update. What is recorded goes to ``trace`` (a path, or None for memory) and is diagnosed by
    `diagnose` at any time, also after the loop and after an exception.

    The run is left as it was found: outputs, gradients and random numbers are the same bit for bit, nothing waits for
    the device inside a step, all hooks are gone at the end, and a failure inside gnnstab is recorded and warned about
    once instead of raised.

    For the 1st, 2nd, 4th, 8th, … step of the full tier, and at the end, the forward runs once more on a copy of the model, which looks at every
    place that the data passes (see `gnnstab.probe.places`); where a budget holds, the first of these waits for the second or the end. A forward that counts its calls outside the model counts this one too.
    After a run whose loss stood still, deep stacks are tried by up to 30 steps on copies.

    Args:
        model: The model, also one compiled by `torch.compile` or wrapped for data parallelism.
        optimizer: The optimizer, or a sequence of optimizers, that moves it.
        trace: Path of the trace. In a distributed run every rank writes its own, ``run.rank0.gnnstab``, ….
        on_finding: ``"warn"`` of warnings and errors, ``"raise"`` them (`UnstableError`, out of the optimizer's step, `step` or
            a `loss` given after it), ``"ignore"``, or a callable that gets each `Finding` once, information too.
        schedule: Steps between two full-tier measurements, or ``"every step"``; the light tier then records every step.
            Without it, and without a budget, a budget of 0.02 holds, with a closer beginning: the first 16 steps, at
            least every 8th of the first 100, and the one after a loss or a gradient norm that is larger than all before.
        budget: The share of the run's time that the monitor may take, e.g. 0.02; steps are left out to keep it. Of
            those only the loss and the norm of the gradients are looked at. One that does not end finite, or whose
            gradient is ten times the largest before, is run again on a copy before the optimizer moves the weights, and
            recorded in full; after a live finding the next 32 steps are recorded. Where that is not possible every
            step is recorded; the trace says so and, when a budget was given, a warning.
        scaler: The GradScaler in use, so that gradients are recorded unscaled and skipped steps are known as such.
        loss: The loss as ``loss(output, batch)``, where ``batch`` is what the model is called with: its only argument, the
            tuple of its arguments or the dict of its keyword arguments (of both kinds the tuple of all); or as ``loss(output)``, with the labels from around
            it: ``lambda output: criterion(output, y)``. It is called on copies alone: before the first update, to see by a few real steps whether the rate is too high; for a step that went wrong, before the weights move, to
            name the operation that made the first NaN or Inf; and when the run has ended, to undo what may have caused its
            symptoms. Without it the next step of a run that went wrong is watched, and a read-out of the output stands for it;
            cross-entropy and squared errors are recovered from the gradient of the output.
        sinks: Where numbers, findings and the final report stream to besides the trace (see `gnnstab.sinks`).

    Raises:
        UsageError: An argument makes no sense; or the monitor is entered a second time.
        TraceError: The trace cannot be written.
    """

    @without_modes()
    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        trace: str | os.PathLike[str] | None = None,
        on_finding: OnFinding = "warn",
        schedule: int | str | None = None,
        budget: float | None = None,
        scaler: Any = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        sinks: Iterable[Sink] = (),
        **unknown: NoReturn,
    ) -> None:
        check(model, on_finding, budget, loss, unknown)
        loss = None if loss is None else told_when_it_fails(loss)
        optimizers = optimizers_of(optimizer)
        every = steps_between(_FULL_EVERY if schedule is None else schedule)
        by_default = schedule is None and budget is None
        self._path = path_of(trace)
        self._on_finding = on_finding
        self._feed = Feed(sinks)
        self._writer = TraceWriter(self._path, meta=of_processes())
        self._recorder = Recorder(
            model,
            self._writer,
            full_every=every,
            budget=_BUDGET if by_default else budget,
            beginning=_BEGINNING if by_default else 0,
            bundles=self._path,
            places=True,
            on_event=self._on_event,
            objective=None if loss is None else objective_of(loss),
        )
        self._tell_held = budget is not None
        self._updates = UpdateWatch(
            self._recorder.model, optimizers, self._writer, lambda: (self._recorder.step, self._recorder.inputs),
            loss, lambda: self._recorder.kept, self._recorder.places.give,
        )  # fmt: skip
        self._slopes = SlopeWatch(optimizers, self._writer, lambda: self._recorder.step)
        self._boundary = Boundary(
            self._recorder, optimizers, scaler, self._act, self._after_step, self._moving, self._idle
        )
        self._model, self._optimizers, self._has_optimizer = model, optimizers, bool(optimizers)
        self._waiting: list[Finding] = []
        self._not_held = NotHeld(model)
        self._told_loss = self._begun = self._ended = self._entered = self._began_fresh = False
        self._reported, self._repeats, self._trouble = set[str](), Repeats(), ""
        stale = self._boundary.stale
        self._live = LiveWatch(self._recorder, self._writer, self._feed, self._updates, self._slopes, stale)
        self._opening = Opening(self._recorder, self._writer, loss)
        self._ending = Ending(self._recorder, self._writer, loss, optimizers, self._updates)

    def __enter__(self) -> Monitor:
        if self._begun:
            raise UsageError("this monitor was entered before, and its trace is one run; make a new Monitor")
        self._begun = self._entered = True
        # Python leaves no block that it has not entered, as where it is interrupted.
        with ExitStack() as undo:
            self._leave(undo)
            self._guarded("attaching to the model", self._recorder.attach)
            self._guarded("attaching to the optimizer", self._boundary.attach)
            self._guarded("what the optimizer holds", self._compare_with_optimizer)
            self._guarded("the optimizers", lambda: named(self._writer.meta, self._model, self._optimizers))
            if len(self._optimizers) == 1:
                self._guarded("the optimizer's settings", self._ending.keep_settings)
            warn_of_foreign(self._model, self._optimizers)
            undo.pop_all()
        return self

    def _leave(self, last: ExitStack) -> None:
        """Have the end of ``last`` leave everything as it was found."""
        last.callback(self._guarded, "closing the trace", self._writer.close)
        last.callback(self._guarded, "detaching from the model", self._recorder.detach)
        last.callback(self._guarded, "detaching from the optimizer", self._boundary.detach)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        late: list[bool] = []
        with ExitStack() as last:  # All of it, also where the user interrupts one of the looks.
            self._leave(last)
            self._end(error, late)
        self._guarded("the trace", self._look_at_trace)
        if self._feed:
            self._guarded("the sinks", lambda: self._feed.end(self.diagnose()))
        if error is None:
            self._act()

    def _end(self, error: BaseException | None, late: list[bool]) -> None:
        """Take the last looks at the run; ``late`` then tells whether numbers of the last step came from a device."""
        self._guarded("what the optimizer holds", self._compare_with_optimizer)
        self._guarded("detaching from the optimizer", self._boundary.detach)
        if error is not None:
            self._guarded("the failed step", lambda: self._ending.failed(error))
        self._guarded("numbers on their way", lambda: late.append(self._recorder.late and error is None))
        self._guarded("detaching from the model", self._recorder.detach)
        self._ended = True
        self._guarded("handing over failures", self._recorder.hand_over_failures)
        if any(late):
            self._guarded("the live rules", self._run_live_rules)
        if error is None or isinstance(error, (Exception, KeyboardInterrupt)):
            self._guarded("undoing the suspects", self._ending.look)
            self._guarded("what was left out", self._ending.tell_left_out)
            self._guarded("handing over failures", self._recorder.hand_over_failures)

    def step(self, loss: Tensor | float | None = None) -> None:
        """Say, after the update, that a step has ended, and with what loss; with an optimizer this only adds the loss."""
        if not self._entered:
            self._warn_not_entered()
        if loss is not None:
            self.loss(loss)
        if not self._has_optimizer:
            self._guarded("the end of a step", lambda: self._boundary.end(None))
            self._after_step()
        self._act()

    def loss(self, loss: Tensor | float) -> None:
        """Give the loss of this step, before or after the optimizer's step; of several numbers the mean is recorded, with a warning."""
        self._guarded("the loss", lambda: self._take_loss(loss))
        self._guarded("the first loss", self._opening.look)
        ended: list[bool] = []
        self._guarded("the live rules", lambda: self._note(self._live.loss()))
        self._guarded("the end of a step", lambda: ended.append(not self._recorder.state.open))
        if any(ended):
            self._act()

    def _take_loss(self, loss: Any) -> None:
        if not self._entered:
            self._warn_not_entered()
        value, trouble = as_number(loss)
        if value is None:
            self._recorder.state.unseen("", "loss", f"monitor.loss was given {trouble}")
        else:
            (self._ending if self._ended else self._recorder).loss(value)
        if trouble and not self._told_loss:
            self._told_loss = True
            warn(f"gnnstab: monitor.loss was given {trouble}")

    def validation(self, loss: Tensor | float) -> None:
        """Give a validation loss, to be called between two steps; compared with the training losses before it.

        A tensor is read at once, which waits for the device.
        """
        taker = self._ending if self._ended else self._recorder
        self._guarded("the validation loss", lambda: taker.validation(float(loss)))

    def diagnose(self, *, verify: bool = False, **options: Any) -> Diagnosis:
        """Diagnose what was recorded so far; ``options`` are those of `gnnstab.evaluation.diagnose_trace`.

        ``verify`` proves every recommended fix on copies of the model, with a batch of the run, and the monitor's loss or the one that the gradient of
        the output shows. A change of the training is tried with the run's own optimizer, from the weights that the run began with (of models up to 16 MiB,
        else drawn anew), a lower rate by the steps that found the one in use too high. Raises `UsageError` for an unknown option, or with no step to try.
        """
        check_options(options)
        self._guarded("what was left out", self._ending.tell_left_out)
        with self._read() as trace:
            notes = nothing_yet(self._recorder, self._begun, self._has_optimizer) or trace.notes
            path = str(self._path or trace.path) if trace.path == "memory" else str(trace.path)
            options.setdefault("target", Target("trace", path, notes))
            found = self._in_own_lines(diagnose_trace(trace, late=self._ending.late, **options))
        return self._ending.prove(found) if verify else found

    def _read(self) -> Trace:
        """The trace; in a forked process, which stands aside, one that says so."""
        if not self._writer.forked:
            return self.trace
        with TraceWriter(None) as empty:
            empty.event(Event(self._recorder.step, "tool-failure", message=str(self._writer.failure)))
            return empty.read()

    def _in_own_lines(self, diagnosis: Diagnosis) -> Diagnosis:
        """The changes of the fixes, once the run is over, in the words of the user's own code where it was found."""
        found = [diagnosis]
        if self._ended and diagnosis.causes:
            self._guarded("the user's own lines", lambda: found.append(in_own_lines(diagnosis, self._recorder.model)))
        return found[-1]

    def _repr_html_(self) -> str:
        """The page of what was recorded so far, for notebooks."""
        return self.diagnose()._repr_html_()

    @property
    def trace(self) -> Trace:
        """What was recorded so far, as a snapshot; waits for a device."""
        self._recorder.settle()
        return self._writer.read()

    @property
    def coverage(self) -> Coverage:
        """Layers expected and observed, and what is blind and why."""
        return self._recorder.coverage

    def _compare_with_optimizer(self) -> None:
        """Note which trainable parameters no optimizer holds; a model may get new ones during the run."""
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        found = self._not_held.look(self._model, groups, self._recorder.state.ran_with)
        if found and self._recorder.row is None:
            self._began_fresh = fresh(static_signals(self._model))
        if self._not_held.any_so_far:
            self._writer.meta("not_held", json.dumps({**found, "fresh": self._began_fresh} if found else {}))

    def _warn_not_entered(self) -> None:
        """Say once that a monitor that was never entered watches nothing."""
        self._entered = True
        warn(f"gnnstab: the monitor was not entered and watches nothing; {ENTER_IT}")

    def _moving(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer is about to move the weights."""
        self._updates.look(optimizer)
        self._slopes.look(optimizer)

    def _on_event(self, event: Event) -> None:
        """An event was recorded; a non-finite value is a finding at once, unless one that was told has brought it about."""
        if event.kind == "non-finite" and not follows(event, self._recorder.events):
            facts = tuple(self._recorder.notes.facts())
            signals = replace(self._live.recorded, layers=facts, events=(event,))
            self._waiting += list(NonFiniteValue().check(signals))

    def _after_step(self) -> None:
        """A step is over: let the live rules look, then act on what they found."""
        self._guarded("the end of a step", self._settle)
        if self._waiting:
            self._act()

    def _idle(self) -> bool:
        """True after a step that was left out and is no news."""
        recorder = self._recorder
        return not (
            recorder.sent.layout.ids
            or recorder.measures_update
            or self._waiting
            or self._live.due
            or self._writer.failure is not None
            or (self._tell_held and recorder.held)
        )

    def _settle(self) -> None:
        recorder = self._recorder
        guard = recorder.state.error_guard.guard
        with recorder.budget:
            if self._live.due:
                guard("the live rules", self._run_live_rules)
            guard("the first loss", self._opening.look)
            guard("the trace", self._look_at_trace)
            if self._tell_held and recorder.held:
                guard("the budget", self._look_at_budget)

    def _run_live_rules(self) -> None:
        """The one place where the live rules are asked."""
        self._note(self._live.step())

    def _note(self, found: list[Finding]) -> None:
        """Live findings go into the trace at once, so that every later diagnosis of it has them; the next steps are watched closely."""
        if found:
            self._recorder.budget.schedule.watch(self._recorder.step)
        for finding in found:
            self._writer.event(as_event(finding))
        self._waiting += found

    def _look_at_budget(self) -> None:
        """Tell once that the budget cannot be kept."""
        self._tell_held = False
        warn(f"gnnstab: budget: every step is recorded: {self._recorder.held}")

    def _look_at_trace(self) -> None:
        """Tell once that the trace cannot be written as it should be."""
        if (failure := self._writer.failure) is None or self._trouble:
            return
        self._trouble = failure
        self._writer.event(Event(self._recorder.step, "tool-failure", message=f"the trace: {failure}"))
        warn(f"gnnstab: {failure}")

    def _deduplicate(self, fresh: list[Finding]) -> None:
        """Move the findings that were not told before into ``fresh``; a function gets information too."""
        waiting, self._waiting = (told(f, self._recorder) for f in self._waiting), []
        for finding in waiting:
            if finding.fingerprint not in self._reported:
                self._reported.add(finding.fingerprint)
                fresh += [finding] if callable(self._on_finding) or is_warning(finding) else []
                self._feed.finding(finding)

    def _guarded(self, where: str, body: Callable[[], object]) -> None:
        """Run ``body``; a failure inside gnnstab is noted instead of raised."""
        self._recorder.state.error_guard.run(where, body)

    def _act(self) -> None:
        """Hand over each finding once, or warn about or raise those that are more than information."""
        if not self._waiting:
            return
        fresh: list[Finding] = []
        self._guarded("the findings", lambda: self._deduplicate(fresh))
        for finding in fresh:
            if callable(self._on_finding):
                self._on_finding(finding)
            elif self._on_finding == "raise":
                raise UnstableError(finding)
        for text in in_words(self._repeats.news(fresh)) if self._on_finding == "warn" else ():
            warn(text)
