"""Copies of a model together with the optimizer that moves it, on which real steps are taken."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.errors import UsageError, let_through
from gnnstab.finalisers import refuse_finalisers
from gnnstab.probe.replaying.evaluating import in_mode
from gnnstab.probe.replaying.known import Known
from gnnstab.probe.replaying.outside import keep_around
from gnnstab.probe.replaying.reach import SHARED, code_around, shared_with
from gnnstab.probe.replaying.replica import replica, unwrap


def twins(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, keep_mode: bool = False, known: Known | None = None
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A copy of the model and one of the optimizer that moves it: same class, groups, settings and state.

    A model in evaluation mode is copied in training mode, unless ``keep_mode``. ``known`` is what copies of the two have shown before.

    Raises:
        UsageError: One of them cannot be copied, or the optimizer moves none of the model's parameters.
    """
    twin = model_twin(model, keep_mode=keep_mode, known=known)
    return twin, optimizer_twin(optimizer, unwrap(model)[0], twin, known)


def model_twin(model: nn.Module, *, keep_mode: bool = False, known: Known | None = None) -> nn.Module:
    """The copy of the model alone; as of `twins`."""
    inner, _ = unwrap(model)
    twin = replica(inner, known)
    if not inner.training and not keep_mode:
        in_mode(twin)
    return twin


def optimizer_twin(
    optimizer: torch.optim.Optimizer, model: nn.Module, twin: nn.Module, known: Known | None = None
) -> torch.optim.Optimizer:
    """A copy of the optimizer of ``model`` that moves ``twin``, a copy of it; ``known`` and failures as of `twins`."""
    theirs = dict(twin.named_parameters(remove_duplicate=False))
    named = model.named_parameters(remove_duplicate=False)
    memo: dict[int, Any] = {id(parameter): theirs[name] for name, parameter in named if name in theirs}
    if not any(id(p) in memo for group in optimizer.param_groups for p in group["params"]):
        raise UsageError("the optimizer moves none of the model's parameters")
    # What hangs on the instance is the schedule's or a logger's: their wrappers of `step` would move the user's weights.
    kept = {k: v for k, v in vars(optimizer).items() if k != "step" and not k.startswith("_optimizer_")}
    memo.update(_cloned(optimizer))
    known = Known() if known is None else known
    try:
        # Behind its hooks, which stay behind, stands the whole monitor.
        if not known.moved:
            refuse_finalisers(optimizer, {**memo, **{id(v): v for k, v in vars(optimizer).items() if k not in kept}})
        moved = object.__new__(type(optimizer))
        moved.__setstate__(copy.deepcopy(kept, memo))
    except Exception as error:
        let_through(error)
        raise UsageError(f"{type(optimizer).__name__} cannot be copied: {type(error).__name__}: {error}") from error
    if not known.moved and (shared := shared_with(moved, model)):
        raise UsageError(f"{type(optimizer).__name__} cannot be copied: its copy shares {shared} {SHARED}")
    if not known.moved:
        known.moved, known.beside = True, code_around(moved)
    keep_around(moved, known.beside)
    return moved


def _cloned(optimizer: torch.optim.Optimizer) -> dict[int, Tensor]:
    """Copies of the tensors of its state that share no memory, which `copy.deepcopy` would take ten times as long for."""
    states = [state for state in optimizer.state.values() if isinstance(state, dict)]
    tensors = [t for state in states for t in state.values() if type(t) is Tensor and t.layout is torch.strided]
    whole = [t for t in tensors if not t.requires_grad and t.untyped_storage().nbytes() == t.nbytes]
    alone = len({t.data_ptr() for t in whole}) == len(whole) and len(whole) == len(tensors)
    return {id(t): t.clone() for t in whole} if alone else {}


def hold_rates(optimizer: torch.optim.Optimizer) -> None:
    """Let every group keep its rate in all steps: a schedule in the ``step`` of the user's own class is left out, with that ``step``."""
    rates = [group["lr"] for group in optimizer.param_groups]
    step = _step_below(optimizer) if _sets_rates(optimizer) else optimizer.step
    _set_rates(optimizer, rates)

    def held(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        _set_rates(optimizer, rates)
        return result

    optimizer.step = held  # type: ignore[method-assign]


def _set_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float | Tensor]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _sets_rates(optimizer: torch.optim.Optimizer) -> bool:
    """True where a step without any gradient, which moves nothing, gives a rate to a group of a class that is not torch's own."""
    if type(optimizer).__module__.startswith("torch."):
        return False
    asked = [object() for _ in optimizer.param_groups]
    optimizer.zero_grad(set_to_none=True)
    _set_rates(optimizer, asked)  # type: ignore[arg-type]
    try:
        optimizer.step()
    except Exception as error:  # It asks for a closure, or computes with its rate.
        let_through(error)
        return False
    return any(group["lr"] is not one for group, one in zip(optimizer.param_groups, asked, strict=True))


def _step_below(optimizer: torch.optim.Optimizer) -> Callable[..., Any]:
    """The step of the class of torch's that this one extends; its own where there is none."""
    known = (base for base in type(optimizer).__mro__ if base.__module__.startswith("torch.optim."))
    kind = next((base for base in known if base is not torch.optim.Optimizer and "step" in vars(base)), None)
    return optimizer.step if kind is None else partial(vars(kind)["step"], optimizer)
