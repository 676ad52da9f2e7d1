"""Where a step ends: found from the optimizer, or said by the user."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gnnstab.errors import let_through
from gnnstab.probe.attaching.hooks import Hook, ignore, take_off
from gnnstab.probe.attaching.stale_gradients import StaleGradients
from gnnstab.probe.attaching.stand_in import Lookalike, StandIn
from gnnstab.probe.attaching.untold_updates import UntoldUpdates
from gnnstab.probe.buffering.pending_step import Number
from gnnstab.probe.recorder import Recorder
from gnnstab.torch_private import graph_task, not_compiled, queue_callback

_WITHIN = "the optimizer moves within the backward, so that no gradient is left at the end of a step"


class Boundary:
    """Ends the recorder's step just before an optimizer moves the weights.

    An optimizer step ends the step if anything was recorded since the last end, so several optimizers that move after
    one forward and backward share a step, and several backward passes before one move are one step. A closure that the
    optimizer evaluates once (every optimizer of torch but L-BFGS) ends the step when it returns; L-BFGS evaluates it
    many times, and all of them are one step that ends with `step`. Optimizers that move within the backward, each as soon as its
    gradients are there, share a step that ends with the backward.

    Args:
        recorder: What to end the steps of.
        optimizers: The optimizers that move the model.
        scaler: The GradScaler in use; a step that it skips is recorded as skipped.
        ended: Called at the end of a step, before the weights move; what it raises stops the run.
        updated: Called after the weights have moved, or the step was skipped; likewise.
        moving: Called with an optimizer that is about to move the weights, before the step ends.
        idle: Answers after an update whether there is nothing to do, as after most steps that were left out.
    """

    def __init__(
        self,
        recorder: Recorder,
        optimizers: Sequence[torch.optim.Optimizer],
        scaler: Any = None,
        ended: Callable[[], None] = ignore,
        updated: Callable[[], None] = ignore,
        moving: Callable[[torch.optim.Optimizer], None] = ignore,
        idle: Callable[[], bool] = lambda: False,
    ) -> None:
        self._recorder = recorder
        self._optimizers = tuple(optimizers)
        self._scaler = scaler
        self.ended = ended
        self.updated = updated
        self._moving = moving
        self._idle = idle
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in self._optimizers):
            recorder.dropped.wanted = False  # A line search may well meet such points, and leaves them.
        self.stale = StaleGradients(recorder, self._optimizers)
        self._untold = UntoldUpdates(recorder, optimizer=bool(self._optimizers))
        self._handles: list[Any] = []
        self._hooks: list[Hook] = []
        # What has not moved by the scaler's update was skipped.
        self._update = None if scaler is None else StandIn(scaler, self._scaler_updates, method="update")
        self._moved = False
        self._ended = False
        self._seen: set[int] = set()
        self._unseen = 0
        self._backward = -1
        """Number of the backward within which optimizers have moved the model, -1 for none."""

        self._with_scaled = 0
        """Updates with gradients that the scaler's scale was not taken out of; -1 once one was made or prepared by the scaler."""

        self._running: set[int] = set()
        """Optimizers whose step has begun and not ended."""

        self._nested = 0
        """Steps of these that run within their own, of a class whose ``step`` calls that of its base: torch hooks both."""

    def attach(self) -> None:
        """Hook the optimizers and the scaler."""
        error_guard = self._recorder.state.error_guard
        before, after = (
            Hook("the optimizer's step", self._before, error_guard),
            Hook("the optimizer's step", self._after, error_guard),
        )
        self._hooks = [before, after]
        for optimizer in self._optimizers:
            self._handles.append(optimizer.register_step_pre_hook(_StepHook(before, self.ended)))
            self._handles.append(optimizer.register_step_post_hook(self._after_step(after)))
        self.stale.attach()
        self._untold.begin()
        if self._update is not None:
            self._update = self._update.resume()

    def detach(self) -> None:
        """Remove the hooks; a loop that has left out every step leaves no training to judge."""
        recorder, state = self._recorder, self._recorder.state
        if (
            self._optimizers
            and not (recorder.step or state.backward)
            and state.epoch > 1
            and "train" in recorder.inputs
        ):
            state.unseen("", "all", f"{state.epoch} forwards, and no backward or step of an optimizer followed them")
        self._untold.at_end()
        scale = getattr(self._scaler, "_scale", None)
        if self._with_scaled > 1 and isinstance(scale, Tensor) and float(scale) != 1:
            told = {"steps": self._with_scaled, "scale": float(scale)}
            recorder.writer.meta("scaled.steps", json.dumps(told))
            self._with_scaled = 0
        take_off("the hooks of the optimizer", self._handles, self._hooks, self._recorder.state.error_guard)
        self.stale.detach()
        if self._update is not None:
            self._update.remove()

    def end(
        self, optimizer: torch.optim.Optimizer | None, *, skipped: Tensor | bool = False, moves: bool = False
    ) -> bool:
        """End the step with this optimizer's learning rate and the scaler's scale."""
        rate = None if optimizer is None else optimizer.param_groups[0].get("lr")  # An optimizer may have none.
        lr = None if rate is None else _number(rate)
        self._untold.update()
        scale, answer = self._scale(), self._recorder.state.answer
        if scale is not None and answer is not None and answer.step == self._recorder.step:
            answer.scale = scale
        ended = self._recorder.end_step(lr=lr, scale=scale, skipped=skipped, moves=moves)
        self._moved = moves
        return ended

    def _count(self, optimizer: torch.optim.Optimizer, seen: bool) -> None:
        """Several optimizers may share a step; one that moves the model again with nothing seen since has made an unseen step."""
        if seen:
            self._seen = set()
        elif (id(optimizer) in self._seen or self._recorder.row is None) and self._moves_model(optimizer):
            self._unseen += 1
            self._recorder.writer.meta("unseen.steps", str(self._unseen))
        self._seen.add(id(optimizer))

    def _moves_model(self, optimizer: torch.optim.Optimizer) -> bool:
        own = {id(p) for p in self._recorder.model.parameters() if p.grad is not None}
        return any(id(p) in own for group in optimizer.param_groups for p in group["params"])

    def scaler_updates(self) -> None:
        """The scaler is about to be updated: a step that is still open by now was skipped."""
        if not self._moved:
            self.end(self._optimizers[0] if self._optimizers else None, skipped=True)
        self._moved = False

    def guarded(self, where: str, body: Callable[[], object]) -> None:
        """Run ``body``; a failure is noted instead of raised."""
        self._recorder.state.error_guard.run(where, body)

    def _scaler_updates(self) -> AbstractContextManager[None]:
        self.guarded("the scaler's update", self.scaler_updates)
        self.updated()
        return nullcontext()

    def _scale(self) -> Number:
        scale = getattr(self._scaler, "_scale", None)
        return _number(scale) if isinstance(scale, Tensor) else None

    def _after_step(self, body: Hook) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], None]:
        @not_compiled
        def after(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._nested:
                self._nested -= 1
                return
            self._running.discard(id(optimizer))
            if self._ended and self._idle():
                self._ended = False
                return
            try:
                looks = not self._ended or self.stale.follows or self._recorder.measures_update
            except Exception as error:
                let_through(error)
                self._recorder.state.error_guard.note("the end of a step", error)
                looks = False
            if looks:
                body(optimizer)
            else:
                self._ended = False
            self.updated()

        return after

    def _before(self, grad: bool, optimizer: torch.optim.Optimizer) -> None:
        # A fused optimizer is handed scaled gradients and decides by itself, on the device, whether to move.
        state = self._recorder.state
        if id(optimizer) in self._running and not (state.recorded or state.open):
            self._nested += 1
            return
        self._running.add(id(optimizer))
        self._nested = 0
        if graph_task() != -1:
            self._moves_within_backward(optimizer)
            return
        # By these hooks and none of its own: one that is taken off while torch goes through a table of hooks breaks the step.
        self.stale.before(optimizer)
        found = getattr(optimizer, "found_inf", None)
        self._ended = True
        if self._scaler is not None:
            self._look_at_scale(optimizer)
        state.error_guard.guard("the next update", self._moving, optimizer)
        ended = self.end(optimizer, skipped=found.detach().clone() if isinstance(found, Tensor) else False, moves=True)
        self._count(optimizer, ended)

    def _look_at_scale(self, optimizer: torch.optim.Optimizer) -> None:
        """Has the scaler unscaled the gradients of this update? What else has changed them since the backward may have done so."""
        states = getattr(self._scaler, "_per_optimizer_states", None)
        if self._with_scaled < 0 or not isinstance(states, dict) or not isinstance(self._scale(), Tensor):
            return
        stage = getattr(states.get(id(optimizer), {}).get("stage"), "name", "READY")
        if stage != "READY" or getattr(optimizer, "grad_scale", None) is not None:
            self._with_scaled = -1
            return
        held = (p.grad for group in optimizer.param_groups for p in group["params"])
        gradient = next((g for g in held if g is not None), None)
        self._with_scaled += gradient is not None and gradient._version == 0

    def _moves_within_backward(self, optimizer: torch.optim.Optimizer) -> None:
        self._ended = True
        recorder = self._recorder
        if not recorder.held:
            recorder.budget.hold(_WITHIN)
        if recorder.state.light:
            recorder.parameters.gradients(recorder.state.buffer)
        if self._backward != graph_task():
            self._backward = graph_task()
            queue_callback(lambda: self._backward_ends(optimizer))

    def _backward_ends(self, optimizer: torch.optim.Optimizer) -> None:
        self._backward = -1
        self.guarded("the end of a backward", lambda: self._count(optimizer, self.end(optimizer)))
        self.ended()
        self.updated()

    def _after(self, grad: bool, optimizer: torch.optim.Optimizer) -> None:
        if not self._ended:  # L-BFGS, which evaluates its closure many times within a step.
            self._count(optimizer, self.end(optimizer))
        self._ended = False
        if graph_task() == -1:
            self.stale.after(optimizer)
        self._recorder.after_update()


def _number(value: Any) -> Number:
    """A setting, which may be a tensor on a device that the next update changes in place."""
    return value.detach().clone() if isinstance(value, Tensor) else float(value)


class _StepHook:
    """A hook of an optimizer's step; a closure is followed into, since the gradients come out of it.

    ``then`` is called outside the guard of ``body``: what it raises, the user asked for.
    """

    __slots__ = ("_body", "_then")

    def __init__(self, body: Hook, then: Callable[[], None]) -> None:
        self._body = body
        self._then = then

    @not_compiled
    def __call__(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._step(optimizer)
            return None
        if isinstance(optimizer, torch.optim.LBFGS) or not callable(closure):
            return None

        followed = _Followed(closure, lambda: self._step(optimizer))
        return ((args[0], followed, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": followed})

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        self._body(optimizer)
        self._then()


class _Followed(Lookalike):
    """An optimizer's closure, with something ``then`` done after each call."""

    __slots__ = ("_then",)

    def __init__(self, closure: Callable[..., Any], then: Callable[[], object]) -> None:
        self._masked, self._then = closure, then

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        loss = self._masked(*args, **kwargs)
        self._then()
        return loss

    def __setattr__(self, name: str, value: Any) -> None:
        own = name in ("_masked", "_then")
        (super().__setattr__ if own else partial(setattr, self._masked))(name, value)
