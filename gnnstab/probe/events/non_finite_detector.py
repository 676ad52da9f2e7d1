"""Looks at every step's numbers for a non-finite value and makes the first of each kind an event."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from gnnstab.errors import UsageError
from gnnstab.layers.lazy import unwritten
from gnnstab.probe.attaching.forward_tracker import ForwardInputs, ForwardTracker
from gnnstab.probe.buffering.step_writer import StepRows
from gnnstab.probe.events import _non_finite_event as non_finite_event
from gnnstab.probe.layers.parameters import Parameters
from gnnstab.probe.operations.explaining import TAKEN_AWAY, Explainer
from gnnstab.probe.replaying import bundle
from gnnstab.probe.replaying.evaluating import in_mode
from gnnstab.probe.replaying.replica import replica, run_replica
from gnnstab.probe.replaying.skipped_step import SkippedForward, answers_in
from gnnstab.probe.state import State
from gnnstab.records import Event, LayerFacts
from gnnstab.sharding import sharded
from gnnstab.stored import is_finite, stored

_BUNDLES = 3
"""Bundles of one run: the first tells the cause, the others whether it comes again in another way."""


_RERUNS = 3
"""Steps of one run that are run again; a run that has gone bad stays bad."""


MOST_DROPPED = 24
"""Steps in a row that a scaler may skip: from 65536 it halves its scale 16 times until it is 1."""


_LOST = "when its numbers had come from the device, its update had made the weights non-finite, so that it could not be run again"
_MOVED = "no bundle: when the numbers of this step had come from the device, its update had made the weights non-finite"


_TOO_LATE = "an update had moved the weights before the end of the step was told: pass optimizer= to the monitor"


_OF_VALUES = (ValueError, ArithmeticError, AssertionError, RuntimeError)
"""Exceptions that a NaN may stand behind: checks of arguments, and of what decompositions need."""

_ANOMALY = "returned nan values in its"
"""What torch's anomaly mode says as it ends a backward."""


class NonFiniteDetector:
    """Locates the first non-finite value of a forward, of a backward and of the loss; later ones are only counted.

    Args:
        bundles: Path of the trace, beside which the bundles go; None for a trace in memory: no bundles.
    """

    def __init__(
        self,
        model: nn.Module,
        state: State,
        forwards: ForwardTracker,
        parameters: Parameters,
        facts: Callable[[], Sequence[LayerFacts]],
        bundles: Path | None,
        explainer: Explainer,
    ) -> None:
        self.met: dict[str, int] = {}
        """Kind (``forward``, ``gradient``, ``loss``) → number of steps that had it."""

        self._model = model
        self._state = state
        self._forwards = forwards
        self._parameters = parameters
        self._facts = facts
        self._bundles = bundles
        self._explainer = explainer
        self._dropped = 0
        """Steps that a GradScaler has skipped."""

        self._behind: Event | None = None
        """That of a gradient that came in bad from behind the last layer, before the loss of its step was told."""

        self._from_start: tuple[str, ...] = ()
        self.began: frozenset[str] = frozenset()
        """Parameters and buffers that held a NaN or an Inf before anything had run, as placeholders do and memory that nothing reads."""

        self._taken_away = False
        """A step whose own code takes away what is not finite was told; others that end as well are like it."""

        self._written = 0
        self._reruns = 0

    def begin(self) -> None:
        """Note which weights hold a NaN or an Inf before anything has run: no update of the run made those."""
        self._from_start = tuple(self._parameters.non_finite())
        self.began = frozenset(bad_tensors(self._model))

    def step(
        self,
        step: int,
        sent: StepRows,
        skipped: bool,
        inputs: Mapping[str, ForwardInputs] | None = None,
        *,
        loss: float | None = None,
        moved: bool = False,
        twin: nn.Module | None = None,
    ) -> Event | None:
        """The event of a step whose numbers are not all finite, if it is the first of its kind; a note where loss, gradients and
        output are, since the code takes away what is not.

        ``inputs`` are those of the step (those of the latest forward when omitted). ``moved`` says that an update has
        moved the weights since: where they are not finite either, nothing can be run again with them, unless ``twin`` has
        the weights of the step.
        """
        inputs = self._forwards.last if inputs is None else inputs
        view = non_finite_event.StepView.of(step, sent, list(self._state.fired))
        if view.forward_bad():
            sound = (loss is None or math.isfinite(loss)) and not view.gradients_bad()
            if not (sound and self._taken_away) and self._first("forward"):
                weights = self._parameters.non_finite() if twin is None else bad_parameters(twin)
                lost = _LOST if moved and weights and twin is None else ""
                model = self._model if twin is None else twin
                event = non_finite_event.forward_event(view, model, inputs, weights, lost, self._from_start)
                event = self._explained(event, inputs, lost, twin)
                if not event.detail.get(TAKEN_AWAY) or (self.met.keys() != {"forward"} and not sound):
                    return self._with_bundle(event, inputs, moved)
                del self.met["forward"]  # What went wrong lies behind the forward, or nowhere.
                if sound:
                    self._taken_away = True
                    return replace(event, kind="note")
                written = set(view.forward_bad())
                view = replace(view, seen={key: ok for key, ok in view.seen.items() if key not in written})
        if (
            not view.forward_bad()
            and view.gradients_bad()
            and not self.tolerates(skipped, step)
            and self._first("gradient")
        ):
            event = non_finite_event.gradient_event(view)
            if event.origin == "came-in" and loss is not None and not math.isfinite(loss) and self._first("loss"):
                event = non_finite_event.with_detail(non_finite_event.loss_event(step, loss), **event.detail)
            event = self._explained(event, inputs, twin=twin)
            if event.origin == "came-in" and event.stage == "gradient":
                self._behind = event
            return self._with_bundle(event, inputs, moved)
        return None

    def tolerates(self, skipped: bool, step: int) -> bool:
        """True for a step that a GradScaler skips while it looks for its scale; one that skips half of a run finds none."""
        self._dropped += skipped
        return skipped and (self._dropped <= MOST_DROPPED or 2 * self._dropped < step)

    def skipped_step(
        self,
        step: int,
        loss: float | None,
        bad: Sequence[str],
        forwards: Iterable[SkippedForward],
        again: Callable[[SkippedForward], StepRows],
        twin: nn.Module | None = None,
    ) -> Event | None:
        """The event of a step that was left out and whose loss, or whose gradients ``bad``, are not finite.

        It is run again, forward by forward, until one shows where the first non-finite value came from.
        """
        if self._reruns >= _RERUNS:
            return None
        self._reruns += 1
        note = "none of its forward passes was kept"
        for kept in forwards:
            try:
                sent = again(kept)
            except UsageError as error:
                note = str(error)
                continue
            note = "run again, everything was finite"
            self._forwards.last[kept.inputs.mode] = kept.inputs
            event = None if sent.finite else self.step(step, sent, False, loss=loss, twin=twin)
            if event is not None or (self.met and not sent.finite):
                return event  # None for what an earlier step has shown already.
        if not bad:
            return self.loss(step, math.nan if loss is None else loss, twin=twin)
        event = non_finite_event.left_out_event(step, bad, note)
        if not self._first("gradient"):
            return None
        return self._with_bundle(self._explained(event, self._forwards.last), self._forwards.last)

    def loss(
        self,
        step: int,
        loss: float,
        inputs: Mapping[str, ForwardInputs] | None = None,
        *,
        moved: bool = False,
        twin: nn.Module | None = None,
    ) -> Event | None:
        """The event of a loss that is not finite, when nothing was reported before it but the gradient that it sent back;
        the rest as for `step`."""
        sent = self._behind if self._behind is not None and self._behind.step == step else None
        if math.isfinite(loss) or (self.met and sent is None) or not self._first("loss"):
            return None
        inputs = (self._forwards.last or self._forwards.before) if inputs is None else inputs
        event = non_finite_event.loss_event(step, loss)
        if sent is None:
            return self._with_bundle(self._explained(event, inputs, twin=twin), inputs, moved)
        # The step is over, and what its gradient showed was explained.
        known = {**sent.detail, **event.detail, **self._explainer.sizes(), "refines": True}
        return non_finite_event.with_detail(event, **known)

    def evaluation(self, step: int, loss: float | None = None) -> Event | None:
        """The event of an evaluation whose output holds NaN, or whose ``loss`` is not finite, when training showed nothing of the kind.

        A model that answers with NaN in training too, and leaves it out of the loss, does so on purpose.
        """
        if self.met or (loss is not None and math.isfinite(loss)):
            return None
        inputs = self._forwards.bad_evaluation
        state = self._state
        if inputs is not None and inputs.mode.startswith("train"):
            followed = inputs.mode == "train" and (state.backward or state.light)
            if followed or (state.light and not state.buffer.finite_so_far()):
                return None  # What a step made of it, or recorded of it, is told as the step's own.
        event = non_finite_event.evaluation_event(step, loss, "eval" if inputs is None else inputs.mode)
        if inputs is not None and inputs.rng is not None:
            try:
                output = run_replica(in_mode(replica(self._model)), self._forwards.kept or inputs)
                if any(bool(stored(t).isnan().any()) for t in answers_in(output)):
                    return None
                twin = in_mode(replica(self._model), inputs.mode.startswith("train"))
            except (UsageError, *_OF_VALUES) as error:
                event = non_finite_event.with_detail(event, note=str(error))
            else:
                found = non_finite_event.located(step, twin, inputs)
                event = non_finite_event.with_detail(found, **event.detail) if isinstance(found, Event) else event
                event = self._explained(event, {inputs.mode: inputs}, twin=twin)
        return event if self._first("evaluation") else None

    def end(self, step: int) -> Event | None:
        """The event of what no step after it can show: an evaluation on a device, and the weights that the last update left."""
        if self._forwards.evaluated is not None and bool(self._forwards.evaluated):
            return self.evaluation(step)
        bad = [name for name in self._parameters.non_finite() if name not in self._from_start]
        if not self.met and bad and self._first("weights"):
            return non_finite_event.weight_event(step, bad, len(self._parameters.names))
        kept, nothing = self._forwards.kept, self._forwards.nothing
        return None if kept is None or nothing is None or not nothing else self.output(kept.answer.step, kept)

    def output(self, step: int, inputs: ForwardInputs) -> Event | None:
        """The event of an output that the loss does not show, where an operation of the forward makes what is not finite in it."""
        event = Event(step, "non-finite", mode="train", message="the output holds NaN")
        return self._looked_at("forward", event, inputs, self._explainer.of_output)

    def cleaned(self, inputs: ForwardInputs) -> Event | None:
        """The event of gradients that a loop makes finite before its update, in every step and so in that of ``inputs``."""
        text = "gradients are not finite after the backward, and finite in the update"
        event = Event(inputs.answer.step, "non-finite", mode="train", stage="gradient", message=text)
        return self._looked_at("gradient", event, inputs, self._explainer.of_backward)

    def _looked_at(
        self, kind: str, event: Event, inputs: ForwardInputs, explain: Callable[[Event, ForwardInputs], Event | None]
    ) -> Event | None:
        found: list[Event | None] = []
        if not self.met:
            self._state.error_guard.run(f"the {kind}", lambda: found.append(explain(event, inputs)))
        return found[0] if found and found[0] is not None and self._first(kind) else None

    def state(self, step: int, names: Sequence[str], layer: str | None) -> Event | None:
        """The event of tensors ``names``, the first one in ``layer``, that a run leaves non-finite without having shown it."""
        return non_finite_event.state_event(step, names, layer) if not self.met and self._first("state") else None

    def left_open(self, step: int) -> Event | None:
        """The event of a forward that no backward followed before the run ended, when repeating it with the run's loss shows an Inf or NaN."""
        kept = self._forwards.last.get("train")
        if kept is None or self._explainer.objective is None or self._state.backward or self.met:
            return None
        text = "the run ended after a forward that no backward followed"
        event = Event(step, "non-finite", mode="train", stage="loss", message=text)
        told = self._explained(event, {kept.mode: kept})
        return told if told.detail.get("operation") and self._first("loss") else None

    def failed(self, step: int, error: BaseException) -> Event | None:
        """The event of a step that ended in an exception, when repeating it shows an Inf or NaN before that, or torch's anomaly mode has seen one."""
        if not isinstance(error, _OF_VALUES) or isinstance(error, torch.OutOfMemoryError):
            return None
        if self.met or not (self._forwards.calls or self._forwards.last):
            return None
        text = f"the step ended in {type(error).__name__}"
        event = Event(step, "non-finite", mode="train", stage="loss", message=text)
        told, by_torch = self._explained(event, dict(self._forwards.last)), _ANOMALY in str(error)
        if by_torch and not told.detail.get("operation"):
            told = non_finite_event.with_detail(
                replace(event, stage="gradient"), said=str(error).splitlines()[0].rstrip(".")
            )
        return told if (by_torch or told.detail.get("operation")) and self._first("exception") else None

    def watched(self) -> Event | None:
        """What the step that has just ended says about the one before it that went wrong, when it was watched in place."""
        if self._forwards.watching is None:
            return None
        self._forwards.watching.close()
        event = self._explainer.after_watched()
        self._forwards.watching = self._explainer.pending
        return event

    def _explained(
        self, event: Event, inputs: Mapping[str, ForwardInputs], lost: str = "", twin: nn.Module | None = None
    ) -> Event:
        """The event with the operation behind it, where the step can be repeated with the weights that it had."""
        if lost or event.stage == "weight":
            return event
        broken = self._parameters.non_finite() if twin is None else bad_parameters(twin)
        if event.step > 0 and not set(broken) <= set(self._from_start):
            return non_finite_event.with_detail(event, note=_TOO_LATE)
        if broken:
            event = non_finite_event.with_detail(
                event, bad_parameters=len(broken), parameters=len(self._parameters.names)
            )
        # Those of the step itself: with a copy of its weights it is the step before the one that is being recorded.
        calls = self._forwards.calls if twin is None else []
        kept = [one for one in calls if inputs.get(one.mode) is not one]
        ordered = sorted([*inputs.values(), *kept], key=lambda one: one.mode != event.mode)
        explained = [event]
        # What was seen stays seen, also when the repeat fails.
        self._state.error_guard.run(
            "repeating a step", lambda: explained.append(self._explainer.explain(event, ordered, twin))
        )
        self._forwards.watching = self._explainer.pending
        return explained[-1]

    def _first(self, kind: str) -> bool:
        self.met[kind] = self.met.get(kind, 0) + 1
        return self.met[kind] == 1

    def _with_bundle(self, event: Event, kept: Mapping[str, ForwardInputs], moved: bool = False) -> Event:
        inputs = kept.get(event.mode) or next(iter(kept.values()), None)
        if inputs is None or self._written >= _BUNDLES:
            return event
        if moved and self._parameters.non_finite():
            return non_finite_event.with_detail(event, bundle="", bundle_note=_MOVED)
        if self._bundles is None:
            return non_finite_event.with_detail(
                event, bundle="", bundle_note="the trace is in memory, so no bundle was written"
            )
        folder = self._bundles.with_name(f"{self._bundles.name.removesuffix('.gnnstab')}.bundle-{event.step}")
        self._written += 1
        try:
            bundle.write(folder, self._model, inputs, event, self._facts())
        except (
            Exception
        ) as error:  # torch.save tells a full disk as a RuntimeError; the event must not be lost with its bundle.
            return non_finite_event.with_detail(event, bundle="", bundle_note=f"{folder}: not written ({error})")
        return non_finite_event.with_detail(event, bundle=str(folder))


def bad_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters of a model that hold a NaN or an Inf."""
    return [name for name, p in model.named_parameters() if p.requires_grad and not is_finite(p)]


def bad_tensors(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers of a model that hold a NaN or an Inf; those that cannot be read are left out."""
    unseen = unwritten(model) | sharded(model)
    named = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in named if name not in unseen and not is_finite(tensor)]
