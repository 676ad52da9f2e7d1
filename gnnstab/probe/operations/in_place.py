"""The run's own next step, watched in place: from the model's forward until the step ends, the user's loss and backward too."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.errors import UsageError
from gnnstab.probe.operations._naming import TensorNames
from gnnstab.probe.operations._tape import LossTape
from gnnstab.probe.operations._watch import OperationMode
from gnnstab.probe.operations.repeat import Found, repeat
from gnnstab.probe.replaying.replica import ForwardInputs, copied, replica, unwrap
from gnnstab.records import Event
from gnnstab.stored import is_finite
from gnnstab.torch_private import dispatch_modes, dispatch_stack


@dataclass(slots=True)
class Suspect:
    """A step that went wrong and could not be repeated with its loss, as it was before its update."""

    event: Event
    model: nn.Module | None
    """A copy, with the weights before the update; None when the step is over."""

    calls: tuple[ForwardInputs, ...]
    """Its forwards with gradients."""

    @classmethod
    def of(cls, event: Event, model: nn.Module, calls: Sequence[ForwardInputs]) -> Suspect:
        """Copy what the run is about to change.

        Raises:
            UsageError: The model cannot be copied.
        """
        if not calls:
            return cls(event, None, ())
        kept = tuple(copied(call) for call in calls)
        return cls(event, replica(unwrap(model)[0]), kept)


class StepWatch:
    """Watches one step of the run itself; no value and no random number of it changes.

    Nothing is watched where watching would change what is computed: compiled code runs in Python under a dispatch mode, and
    a mode of the user's own may be left in another order than it was entered.
    """

    def __init__(self, model: nn.Module, suspect: Suspect) -> None:
        self.suspect = suspect
        self.reason = reason_against(model)
        """Why nothing can be watched; empty when it can."""

        self._model = model
        self._mode: OperationMode | None = None
        self._names: TensorNames | None = None
        self._entered = self._lost = False
        self._given: tuple[Sequence[Any], Mapping[str, Any]] = ((), {})
        self._tape = LossTape(unwrap(model)[0])

    def forward_begins(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """The model is about to be called."""
        if self.reason:
            return
        self._given = (args, kwargs)
        if self._mode is None:
            self.reason = _reason_now()
            if self.reason:
                return
            inner, prefix = unwrap(self._model)
            self._names = TensorNames(inner)
            self._lost = bool(self._names.non_finite())
            self._mode = OperationMode(inner, self._names, prefix, tape=self._tape)
            self._mode.__enter__()  # type: ignore[no-untyped-call]
            self._entered = True
        assert self._names is not None
        self._names.learn(unwrap(self._model)[0], args, kwargs)
        self._mode.part = "model"

    def forward_ended(self, output: Any, grad: bool) -> None:
        """The model has returned, ``grad``: with a history that a loss can be made of."""
        if self._mode is not None and grad:
            self._mode.loss_begins()
            self._tape.begin(output, *self._given)

    def close(self) -> None:
        """Stop watching; safe to call again."""
        mode = self._mode
        if mode is not None and self._entered:
            self._entered = mode.active = False
            stack = dispatch_stack()
            if stack and stack[-1] is mode:
                mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    @property
    def ran(self) -> bool:
        """True when a forward was watched and its backward has begun."""
        return self._mode is not None and self._mode.backward_seen

    def found(self) -> tuple[Found, str]:
        """What the watched step says about the suspect, and how: see `gnnstab.probe.operations.telling.facts`."""
        self.close()
        if self._mode is None:
            return Found(None, note=self.reason), ""
        if self._mode.failure is not None:
            raise self._mode.failure
        own = Found(None) if self._lost else self._own(self._mode)
        if own.origin is not None and (
            own.origin.tensor is None or own.origin.tensor.owner not in ("parameter", "buffer")
        ):
            return own, "watched"
        if self.suspect.model is None:
            return Found(None, note="the step was over when its loss became known, and the next one was finite"), ""
        if not self._tape.is_complete:
            return Found(None, note="no scalar loss was computed from the model's output in Python"), ""
        foreign = any(t.numel() > 1 for _, t in self._tape.foreign)
        found = Found(None)
        for call in self.suspect.calls:
            try:
                found = repeat(self.suspect.model, call, self._tape)
            except UsageError as error:
                return Found(None, note=str(error)), ""
            if found.origin is not None:
                break
        return found, "loss repeated, other tensors as in the next step" if foreign else "loss repeated"

    def _own(self, mode: OperationMode) -> Found:
        parameters = list(unwrap(self._model)[0].parameters())
        gradients = [p.grad for p in parameters if isinstance(p.grad, Tensor) and not is_finite(p.grad)]
        loss = mode.last_scalar
        if loss is not None and not is_finite(loss):
            return Found(mode.origin(loss) or mode.origin(), "loss")
        if gradients:
            return Found(mode.first_of(gradients), "gradient")
        return Found(None)


def leave_closed() -> None:
    """Leave the watches that this thread entered and another one closed, as where an optimizer steps in a thread of its own."""
    while dispatch_modes() and isinstance(mode := dispatch_stack()[-1], OperationMode) and not mode.active:
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]


def _reason_now() -> str:
    leave_closed()
    if dispatch_modes():
        return "a dispatch mode of the run's own was active"
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return "the step is captured as a CUDA graph"
    return ""


def reason_against(model: nn.Module) -> str:
    """Why operations of a model cannot be followed in place; empty when they can."""
    if any(type(m).__name__ == "OptimizedModule" or getattr(m, "_compiled_call_impl", None) for m in model.modules()):
        return "the model is compiled, and compiled code cannot be watched operation by operation"
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is not None and dynamo.counters["stats"].get("unique_graphs"):
        return "parts of the run are compiled, and compiled code cannot be watched operation by operation"
    return ""
