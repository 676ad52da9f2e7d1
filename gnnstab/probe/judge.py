"""Looks at every step's numbers for a non-finite value and makes the first of each kind an event."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from gnnstab.errors import UsageError
from gnnstab.probe import anomaly, bundle
from gnnstab.probe.outbox import Sent
from gnnstab.probe.outer import Outer
from gnnstab.probe.parameters import Parameters
from gnnstab.probe.rerun import Kept
from gnnstab.probe.state import State
from gnnstab.records import Event, LayerFacts

_BUNDLES = 3
"""Bundles of one run: the first tells the cause, the others whether it comes again in another way."""


_RERUNS = 3
"""Steps of one run that are run again; a run that has gone bad stays bad."""


class Judge:
    """Locates the first non-finite value of a forward, of a backward and of the loss; later ones are only counted.

    Args:
        bundles: Path of the trace, beside which the bundles go; None for a trace in memory: no bundles.
    """

    def __init__(
        self,
        model: nn.Module,
        state: State,
        outer: Outer,
        parameters: Parameters,
        facts: Callable[[], Sequence[LayerFacts]],
        bundles: Path | None,
    ) -> None:
        self.met: dict[str, int] = {}
        """Kind (``forward``, ``gradient``, ``loss``) → number of steps that had it."""

        self._model = model
        self._state = state
        self._outer = outer
        self._parameters = parameters
        self._facts = facts
        self._bundles = bundles
        self._written = 0
        self._reruns = 0

    def step(self, sent: Sent, skipped: bool) -> Event | None:
        """The event of a step whose numbers are not all finite, if it is the first of its kind."""
        state = self._state
        view = anomaly.StepView.of(state.step, sent, list(state.fired))
        if view.forward_bad():
            if self._first("forward"):
                weights = self._parameters.non_finite()
                return self._with_bundle(anomaly.forward_event(view, self._model, self._outer.last, weights))
        elif view.gradients_bad() and not skipped and self._first("gradient"):
            return self._with_bundle(anomaly.gradient_event(view))
        return None

    def left_out(self, step: int, loss: float, bad: Sequence[str], again: Callable[[Kept], Sent]) -> Event | None:
        """The event of a step that was left out and whose loss, or whose gradients ``bad``, are not finite.

        It is run again, forward by forward, until one shows where the first non-finite value came from.
        """
        if self._reruns >= _RERUNS:
            return None
        self._reruns += 1
        note = "none of its forward passes was kept"
        for kept in self._outer.left_out:
            try:
                sent = again(kept)
            except UsageError as error:
                note = str(error)
                continue
            note = "run again, everything was finite"
            self._outer.last[kept.inputs.mode] = kept.inputs
            event = None if sent.finite else self.step(sent, False)
            if event is not None:
                return event
        if not bad:
            return self.loss(step, loss)
        return self._with_bundle(anomaly.left_out_event(step, bad, note)) if self._first("gradient") else None

    def loss(self, step: int, loss: float) -> Event | None:
        """The event of a loss that is not finite, when nothing before it was reported."""
        if math.isfinite(loss) or self.met or not self._first("loss"):
            return None
        return self._with_bundle(anomaly.loss_event(step, loss))

    def _first(self, kind: str) -> bool:
        self.met[kind] = self.met.get(kind, 0) + 1
        return self.met[kind] == 1

    def _with_bundle(self, event: Event) -> Event:
        inputs = self._outer.last.get(event.mode) or next(iter(self._outer.last.values()), None)
        if inputs is None or self._written >= _BUNDLES:
            return event
        if self._bundles is None:
            return anomaly.with_detail(event, bundle="", bundle_note="the trace is in memory, so no bundle was written")
        folder = self._bundles.with_name(f"{self._bundles.name.removesuffix('.gnnstab')}.bundle-{event.step}")
        self._written += 1
        try:
            bundle.write(folder, self._model, inputs, event, self._facts())
        except OSError as error:
            return anomaly.with_detail(event, bundle="", bundle_note=f"{folder}: not written ({error})")
        return anomaly.with_detail(event, bundle=str(folder))
