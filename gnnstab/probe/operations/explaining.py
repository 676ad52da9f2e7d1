"""From an event to the operation behind it: repeated at once where the loss is known, else in the next step of the run."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from gnnstab.errors import UsageError
from gnnstab.probe.operations._loss_graph import chain, of_too_few
from gnnstab.probe.operations.in_place import StepWatch, Suspect
from gnnstab.probe.operations.repeat import Found, Objective, repeat
from gnnstab.probe.operations.telling import facts, named, sentence
from gnnstab.probe.replaying.read_out import read_out
from gnnstab.probe.replaying.replica import ForwardInputs
from gnnstab.probe.replaying.skipped_step import histories
from gnnstab.records import Event

TAKEN_AWAY = "taken_away"
"""In the detail of an event: the repeated step ended in finite numbers only, or in `WRITTEN` ones."""

WRITTEN = "written"
"""In the detail of such an event: the model itself writes infinities into its output, as a mask does."""

OTHER_LOSS = "other_loss"
"""In the detail of an event: the loss that was told last in its step is finite, so that its graph is not that of the bad one."""

MOST_WATCHED = 3
"""Steps of one run that are watched in place at most."""


class Explainer:
    """Finds the first operation of a step that went wrong.

    Args:
        model: The model of the run.
        objective: Its loss, where it can be called.
        batch: The batch as the loss sees it, to name its tensors.
    """

    def __init__(self, model: nn.Module, objective: Objective | None = None, batch: Any = None) -> None:
        self.objective = objective
        self.batch = batch
        self.pending: StepWatch | None = None
        """Watches the next step of the run, when the last bad one could not be repeated."""

        self._model = model
        self._watched = 0
        self._loss: Any = None
        self._told = False

    def loss_given(self, loss: Any) -> str:
        """The user has told the loss; its graph may be asked for at the step's end. The first one's is given back at once."""
        first, self._told = not self._told, True
        self._loss = weakref.ref(loss) if isinstance(loss, Tensor) else None
        return chain(loss) if first else ""

    def explain(self, event: Event, calls: Iterable[ForwardInputs], twin: nn.Module | None = None) -> Event:
        """The event, with the operation where repeating the forwards of its step shows it.

        ``twin`` is a copy with the weights of the step, where an update has changed those of the model since.
        """
        given = list(calls)
        last: Found | None = None
        note, sound, written = "", bool(given), False
        for call in given:
            try:
                last = repeat(self._model if twin is None else twin, call, self.objective, batch=self.batch)
                written |= last.symptom == "written"
                sound &= last.symptom in ("", "written") and not last.note
            except UsageError as error:
                note, sound = str(error), False
                continue
            if last.origin is not None:
                return told(event, last)
        if self.objective is None and event.stage != "loss" and (made := self._of_derivatives(given, twin)) is not None:
            return told(event, made)
        event = self._without_operation(event, last, note)
        if sound and event.stage not in ("loss", "gradient", "weight"):
            return replace(event, detail={**event.detail, TAKEN_AWAY: True, WRITTEN: written})
        if event.stage not in ("loss", "gradient") or self._watched >= MOST_WATCHED:
            return event
        reason = self._watch_next(event, [call for call in given if call.grad])
        if not reason:
            return event
        notes = [str(event.detail["note"])] if event.detail.get("note") else []
        return replace(event, detail={**event.detail, "note": "; ".join([*notes, reason])})

    def of_output(self, event: Event, call: ForwardInputs) -> Event | None:
        """The event with the operation that makes what is not finite in the output of a forward, whatever a loss makes of it; None where
        none is seen, as where the model writes it."""
        try:
            found = repeat(self._model, call)
        except UsageError:
            return None
        meant = found.origin is None or found.origin.operation.sizes.kind == "written"
        return None if meant else told(event, found)

    def of_backward(self, event: Event, call: ForwardInputs) -> Event | None:
        """The event with the operation whose derivative is not finite for the finite gradient that came back to the output of a forward."""
        answer = call.answer
        if answer is None or answer.output is None or answer.gradient is None or not answer.gradient.isfinite().all():
            return None
        gradient = answer.gradient

        def objective(output: Any, *_: Any) -> Tensor:
            (made,) = histories(output)[:1]
            # Infinities of a mask get no gradient, and 0 · ∞ is none.
            weighed: Tensor = (made.nan_to_num(0, 0, 0) * gradient).sum()
            return weighed

        try:
            found = repeat(self._model, call, objective)
        except UsageError:
            return None
        return told(event, found) if found.symptom == "gradient" and found.origin is not None else None

    def _of_derivatives(self, calls: Sequence[ForwardInputs], twin: nn.Module | None) -> Found | None:
        """The operation of the model itself whose derivative is not finite, whatever is made of a finite output."""
        for call in calls:
            try:
                found = repeat(self._model if twin is None else twin, call, _stand_in) if call.grad else Found(None)
            except UsageError:
                continue
            if found.symptom == "gradient" and found.origin is not None:
                return found
        return None

    def _watch_next(self, event: Event, calls: Sequence[ForwardInputs]) -> str:
        """Have the next step watched; why that is not possible, or nothing."""
        self._watched += 1
        try:
            watch = StepWatch(self._model, Suspect.of(event, self._model, calls))
        except UsageError as error:
            return str(error)
        if watch.reason:
            return watch.reason
        self.pending = watch
        return ""

    def after_watched(self) -> Event | None:
        """The event of the step before, when the step that has just ended showed its operation."""
        watch = self.pending
        if watch is None or not watch.ran:
            if watch is not None and watch.reason:
                self.pending = None
            return None
        self.pending = None
        found, how = watch.found()
        if found.origin is None:
            return None
        event = told(watch.suspect.event, found, how)
        return replace(event, detail={**event.detail, "refines": True})

    def close(self) -> None:
        """Stop watching."""
        if self.pending is not None:
            self.pending.close()
            self.pending = None

    def sizes(self) -> dict[str, str]:
        """What the sizes in the graph of the latest loss show alone."""
        reduction = of_too_few(self._loss()) if self._loss is not None else ""
        return {"of_too_few": reduction} if reduction else {}

    def _without_operation(self, event: Event, found: Found | None, note: str) -> Event:
        """What can be said of a step whose loss cannot be called."""
        loss = self._loss() if self._loss is not None else None
        said = []
        more: dict[str, Any] = {}
        # A loss that is gone by now may have had another graph than those of other steps.
        if event.stage == "loss" and self._loss is not None and (loss is None or bool(loss.isfinite().all())):
            loss, more = None, {OTHER_LOSS: True}
        graph = chain(loss) if event.stage in ("loss", "gradient") else ""
        if found is not None:
            more["output_largest"] = found.largest
            more["held"] = [named(t) for t in found.held]
            note = note or found.note
            if found.symptom in ("", "written"):
                how = "finite" if not found.symptom else "finite but for infinities that the model writes itself"
                said.append(f"the model's output is {how}, largest {found.largest:.3g}")
            said += [tensor.words for tensor in found.held]
        if graph:
            more["loss_graph"] = graph
            said.append(f"the graph of the loss is {graph}")
        if event.stage == "loss" and loss is not None:
            more |= self.sizes()
        if note:
            more["note"] = note
        return replace(event, detail={**event.detail, **more, **({"said": "; ".join(said)} if said else {})})


def _stand_in(output: Any, *_: Any) -> Tensor:
    return read_out(output)


def told(event: Event, found: Found, how: str = "repeated") -> Event:
    """The event with the operation, the line and the sizes that the repeated step showed."""
    assert found.origin is not None
    operation, tensor = found.origin.operation, found.origin.tensor
    said = sentence(found.origin)
    detail: dict[str, Any] = {**event.detail, "operation": facts(found, how), "said": said}
    detail["held"] = [named(t) for t in found.held]
    changed: dict[str, Any] = {"detail": detail}
    if event.stage in ("loss", "gradient", None):
        changed["message"] = f"{event.message}; {said}" if event.message else said
        in_loss = operation.place.part == "loss"
        changed["stage"] = "gradient" if operation.node else "loss" if in_loss else "output"
        changed["layer"] = operation.place.module or None
        changed["origin"] = "made-here" if tensor is None else "came-in"
    return replace(event, **changed)
