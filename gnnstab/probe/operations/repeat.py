"""One step again, on a copy, with every operation watched: forward, and where it is known the loss and the backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.errors import UsageError, let_through
from gnnstab.probe.operations._naming import Named, TensorNames
from gnnstab.probe.operations._undo import scale_to_blame, widened, wider
from gnnstab.probe.operations._watch import OperationMode, Origin
from gnnstab.probe.replaying.replica import ForwardInputs, copied, eager, forked_rng, replica, tensors_in, unwrap
from gnnstab.probe.replaying.skipped_step import answers_in
from gnnstab.stored import is_finite, readable, stored

Objective = Callable[[Any, tuple[Any, ...], dict[str, Any], OperationMode], Tensor]
"""(output, positional arguments, keyword arguments, the watch) → loss."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the repeated step showed."""

    origin: Origin | None
    """Where the first Inf or NaN came from; None when everything that was repeated is finite."""

    symptom: str = ""
    """``output``, ``loss``, ``gradient`` or ``exception``: what was not as it should be; ``written`` for an output that holds infinities
    of the model's own writing and nothing else, empty for nothing."""

    largest: float = 0.0
    """Largest finite |entry| of the model's output."""

    held: tuple[Named, ...] = ()
    """Tensors of the batch, parameters and buffers that hold NaN or Inf."""

    note: str = ""
    """Why the loss was not repeated, or with which exception the step ended."""

    undone: tuple[str, ...] = ()
    """Badly scaled inputs without whose scale everything is finite."""

    wide: bool = False
    """True when the same step in float32 is finite."""

    exact: bool = False
    """True when the same step in float64 is finite and its output, loss and gradients fit float32: only the way there does not."""


def repeat(model: nn.Module, call: ForwardInputs, objective: Objective | None = None, *, batch: Any = None) -> Found:
    """Repeat a step on a copy; the model, its gradients, the inputs and the random generators stay as they are.

    Args:
        model: The model with the weights before the update.
        call: The forward.
        objective: The loss; the forward alone is repeated when omitted.
        batch: The batch as the loss sees it, to name its tensors.

    Raises:
        UsageError: The model cannot be copied.
    """
    found = _once(model, call, objective, batch)
    if found.origin is None or found.origin.tensor is not None:
        return found
    if found.origin.operation.dtype in ("float16", "bfloat16"):
        wide = _once(model, widened(call, torch.float32), objective, batch, wide=torch.float32)
        return replace(found, wide=wide.origin is None and not wide.note)
    if found.origin.operation.sizes.kind == "exp-overflow":
        exact = _once(model, widened(call, torch.float64), objective, batch, wide=torch.float64)
        if exact.origin is None and not exact.note:
            return replace(found, exact=True)
    if found.origin.operation.sizes.kind in GREW:
        undone = scale_to_blame(
            call, unwrap(model)[0], lambda changed: _once(model, changed, objective, batch).origin is None
        )
        return replace(found, undone=undone)
    return found


GREW = ("overflow", "exp-overflow", "inf-minus-inf", "inf-over-inf", "undefined-of-inf", "undefined")
"""Kinds in which a value was too large, or may have been within an operation that is made of several."""


def _once(
    model: nn.Module, call: ForwardInputs, objective: Objective | None, batch: Any, *, wide: torch.dtype | None = None
) -> Found:
    """The step once; ``wide`` is the format in which all of it is computed, and what comes out must fit float32."""
    inner, prefix = unwrap(model)
    twin = replica(inner) if wide is None else replica(inner).to(wide)
    twin.zero_grad(set_to_none=True)
    args, kwargs = copied(tuple(call.args)), copied(dict(call.kwargs))
    names = TensorNames(twin, args, kwargs, batch)
    held = tuple(names.non_finite())
    watch = OperationMode(twin, names, prefix)
    state, forward = _State(), eager(twin)
    with forked_rng(call.rng), torch.set_grad_enabled(call.grad), _quiet():
        try:
            with watch, nullcontext() if wide is None else wider(wide):
                with call.autocast.context():
                    state.output = forward(*args, **kwargs)
                    state.ran = "output"
                    if objective is not None and call.grad:
                        watch.loss_begins()
                        state.loss = objective(state.output, args, kwargs, watch)
                        state.ran = "loss"
                if state.loss is not None and state.loss.requires_grad:
                    state.loss.backward()  # type: ignore[no-untyped-call]
                    state.ran = "gradient"
        except Exception as error:
            let_through(error)
            state.note = f"the step ended in {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if watch.failure is not None:
            raise watch.failure
        found = _judged(watch, twin, state, held)
        if found.origin is None and not found.note and wide is torch.float64 and not _fits_float32(twin, state):
            return replace(found, note="what comes out does not fit float32")
        return found


def _fits_float32(twin: nn.Module, state: _State) -> bool:
    made = [state.loss, *(t for _, t in tensors_in(state.output)), *(p.grad for p in twin.parameters())]
    return all(is_finite(t.detach().float()) for t in made if t is not None)


class _State:
    """How far a repeated step has come."""

    def __init__(self) -> None:
        self.output: Any = None
        self.loss: Tensor | None = None
        self.ran = ""
        self.note = ""


def _judged(watch: OperationMode, twin: nn.Module, state: _State, held: tuple[Named, ...]) -> Found:
    """What is not finite at the end decides which of all bad values counts: others were dealt with on the way."""
    answers = answers_in(state.output)
    outputs = [readable(stored(t.detach())) for t in answers]
    finite = [t[torch.isfinite(t)].abs() for t in outputs if t.is_floating_point()]
    largest = max((float(t.max()) for t in finite if t.numel()), default=0.0)
    if state.loss is not None and not is_finite(state.loss):
        return Found(watch.origin(state.loss) or watch.origin(), "loss", largest, held, state.note)
    gradients = [p.grad for p in twin.parameters() if p.grad is not None and not is_finite(p.grad)]
    if gradients:
        return Found(watch.first_of(gradients), "gradient", largest, held, state.note)
    bad = [t for t in outputs if not is_finite(t)]
    made = [watch.made(t) for t in bad]
    # The numbers of some layouts are read from a copy, in whose memory no operation has left them.
    copies = any(
        a.layout is not torch.strided and any(t is one for one in bad) for a, t in zip(answers, outputs, strict=True)
    )
    if bad and state.loss is None and not all(one is not None and one.written for one in made):
        found = [watch.origin(t) for t, one in zip(bad, made, strict=True) if one is not None and not one.written]
        return Found(next(iter(found), watch.origin() if copies else None), "output", largest, held, state.note)
    if state.note and state.ran != "output":
        return Found(watch.origin(), "exception", largest, held, state.note)
    # The loss that nobody called decides whether infinities that the model writes, as a masked policy does, are dealt with.
    return Found(None, "written" if bad and state.loss is None else "", largest, held, state.note)


@contextmanager
def _quiet() -> Iterator[None]:
    """The user's warnings were given when the step ran for the first time."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def objective_of(loss: Callable[[Any, Any], Tensor]) -> Objective:
    """The objective that calls ``loss(output, batch)`` with what the model was called with."""

    def objective(output: Any, args: tuple[Any, ...], kwargs: dict[str, Any], watch: OperationMode) -> Tensor:
        value = loss(output, as_batch(args, kwargs))
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise UsageError(f"the loss returned {type(value).__name__}, not a scalar tensor")
        return value

    return objective


def as_batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a model was called with, as ``loss(output, batch)`` gets it: its only argument, the tuple, or the dict; of both kinds the tuple of all values."""
    if args and kwargs:
        return (*args, *kwargs.values())
    if kwargs:
        return kwargs
    return args[0] if len(args) == 1 else args
