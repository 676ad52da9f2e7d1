"""What a `Monitor` is given, checked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.errors import UsageError
from gnnstab.records import Finding
from gnnstab.trace import rank_path

OnFinding = str | Callable[[Finding], None]

EVERY_STEP = "every step"


def check(model: Any, on_finding: OnFinding, budget: float | None, loss: Any) -> None:
    """Raise `UsageError` for what makes no sense."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"Monitor needs a torch.nn.Module, not a {type(model).__name__}")
    if not callable(on_finding) and on_finding not in ("warn", "raise", "ignore"):
        raise UsageError(f'on_finding={on_finding!r}; choose "warn", "raise", "ignore" or a callable')
    if budget is not None and not 0 < budget < 1:
        raise UsageError(f"budget={budget!r}; give a share of a step's time between 0 and 1, e.g. 0.02")
    if loss is not None and not callable(loss):
        raise UsageError(f"loss={loss!r}; give a function loss(output, batch), and a value of the loss to monitor.loss")


def optimizers_of(given: Any) -> tuple[torch.optim.Optimizer, ...]:
    """The torch optimizers in what was given: none, one, or a sequence, each perhaps wrapped."""
    if given is None:
        return ()
    several = given if isinstance(given, (list, tuple)) else (given,)
    # Lightning and Accelerate wrap optimizers; the hooks belong to the one inside.
    plain: tuple[Any, ...] = tuple(
        one if hasattr(one, "register_step_pre_hook") else getattr(one, "optimizer", one) for one in several
    )
    for one in plain:
        if not hasattr(one, "register_step_pre_hook"):
            raise UsageError(f"optimizer must be a torch optimizer or a sequence of them, not a {type(one).__name__}")
    return plain


def steps_between(schedule: int | str) -> int:
    """Steps between two full-tier measurements."""
    if schedule == EVERY_STEP:
        return 1
    if isinstance(schedule, bool) or not isinstance(schedule, int) or schedule < 1:
        raise UsageError(f'schedule={schedule!r}; give a number of steps, at least 1, or "every step"')
    return schedule


def as_number(loss: Any) -> tuple[Tensor | float | None, str]:
    """The loss of a step, and what is wrong with it: several numbers become their mean, what is no number None."""
    try:
        if not isinstance(loss, Tensor):
            return float(loss), ""
        if loss.is_meta or loss.is_complex() or not loss.numel():
            return None, _no_number(f"a {loss.dtype} tensor of shape {tuple(loss.shape)} on {loss.device}")
        if loss.numel() == 1 and loss.layout is torch.strided:
            return loss, ""
        return loss.detach().to_dense().double().mean(), (
            f"a tensor of shape {tuple(loss.shape)}; its mean is recorded: give the scalar that backward is called on"
        )
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None, _no_number(f"a {type(loss).__name__}")


def _no_number(given: str) -> str:
    return f"{given}, which is not one real number; the steps are recorded without a loss"


def path_of(trace: str | os.PathLike[str] | None) -> Path | None:
    """The path of the trace of this process."""
    if trace is None:
        return None
    rank = of_processes().get("rank")
    return Path(trace) if rank is None else rank_path(trace, int(rank))


def of_processes() -> dict[str, str]:
    """The rank of this process and how many there are; empty outside a distributed run."""
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    several = rank.isdecimal() and world.isdecimal() and int(world) > 1
    return {"rank": rank, "world_size": world} if several else {}
