"""Steps whose gradients the loop throws away instead of updating, as many loops do where they are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from gnnstab.probe.replaying.skipped_step import SkippedForward, run_again
from gnnstab.records import Event

if TYPE_CHECKING:
    from gnnstab.probe.attaching.forward_tracker import ForwardTracker
    from gnnstab.probe.buffering.step_writer import StepRows, Writer
    from gnnstab.probe.recorder import Recorder


class DroppedUpdates:
    """Ends a step when the next forward begins and nothing is left of its gradients, which were not finite.

    Finite gradients are dropped too where a loop asks for those of its inputs; that is no step. Nor is what a scaler has skipped without the
    monitor's knowledge, with a finite loss: it looks for its scale, which multiplies gradients alone.

    Args:
        recorder: Whose steps they are.
        forwards: Those of the step.
        emit: Gets the event.
        inner: Makes the recorder of a step that was left out and is run again.
    """

    def __init__(
        self,
        recorder: Recorder,
        forwards: ForwardTracker,
        emit: Callable[[Event | None], None],
        inner: Callable[[nn.Module, Writer], Recorder],
    ) -> None:
        self.wanted = True
        self._recorder = recorder
        self._forwards = forwards
        self._emit = emit
        self._inner = inner
        self._count = self._scaled = 0
        self._finite_too = False
        forwards.between = self.look

    def look(self) -> None:
        """Another forward begins in a step that has had a backward."""
        recorder = self._recorder
        # Gradients that are there go on to be accumulated. To ask a device would be to wait for it: a loss that is not finite
        # stands for the step that comes now.
        if not self.wanted or recorder.parameters.far or recorder.parameters.norm():
            return
        if self._is_scaled():
            if recorder.told is None:
                self._look_at_output()
            if recorder.told is None or math.isfinite(recorder.told):
                recorder.told = None  # A scaler has skipped this batch, and what comes now is the step.
                return
        elif recorder.state.buffer.finite_so_far() if recorder.state.light else self._was_finite():
            self._finite_too = True
            return
        self._count += 1
        recorder.writer.meta("dropped.steps", str(self._count))
        recorder.end_step()

    def _is_scaled(self) -> bool:
        """Under fp16 a scaler that nobody told of skips steps as it looks for its scale."""
        casts = [one.autocast for one in self._forwards.last.values()]
        halves = {p.dtype for p in self._recorder.model.parameters()}
        return torch.float16 in halves | {cast.dtype for cast in casts if cast.enabled}

    def _look_at_output(self) -> None:
        """Without a loss the output alone tells an overflow of the forward from one of the gradients; of the 1st, 2nd, 4th, 8th, … batch."""
        self._scaled += 1
        kept = self._forwards.last.get("train")
        if kept is not None and not self._scaled & (self._scaled - 1):
            self._emit(self._recorder.detector.output(self._recorder.step, kept))

    def _was_finite(self) -> bool:
        """Of a step that was left out: what its forwards show when they are run again."""
        recorder, step, finite = self._recorder, self._recorder.step, []
        back = [g for one in self._forwards.skipped for g in one.gradients if g is not None]
        if self._finite_too and all(bool(gradient.isfinite().all()) for gradient in back):
            return True

        def again(forward: SkippedForward) -> StepRows:
            sent = run_again(recorder.model, forward, step, recorder.writer, self._inner)
            finite.append(sent.finite)
            return sent

        self._emit(recorder.detector.skipped_step(step, 0.0, (), tuple(self._forwards.skipped), again))
        recorder.budget.schedule.watch(step)
        return all(finite)
