"""What a `Monitor` is given, checked."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gnnstab.errors import UsageError, hint, let_through, warn
from gnnstab.left_out import left_out
from gnnstab.probe.batches.loss import of_output_and_batch
from gnnstab.records import Finding
from gnnstab.stored import stored
from gnnstab.torch_private import tree_leaves
from gnnstab.trace import rank_path

OnFinding = str | Callable[[Finding], None]

EVERY_STEP = "every step"


def check(model: Any, on_finding: OnFinding, budget: float | None, loss: Any, unknown: Iterable[str]) -> None:
    """Raise `UsageError` for what makes no sense, ``unknown`` keywords among it."""
    for keyword in unknown:
        raise UsageError(f"Monitor has no argument {keyword!r}; {_place_of(keyword)}")
    if not isinstance(model, nn.Module):
        raise UsageError(f"Monitor needs a torch.nn.Module, not a {type(model).__name__}")
    if not callable(on_finding) and on_finding not in ("warn", "raise", "ignore"):
        raise UsageError(f'on_finding={on_finding!r}; choose "warn", "raise", "ignore" or a callable')
    if budget is not None and not 0 < budget < 1:
        raise UsageError(f"budget={budget!r}; give a share of a step's time between 0 and 1, e.g. 0.02")
    if loss is not None and not callable(loss):
        raise UsageError(f"loss={loss!r}; give a function loss(output, batch), and a value of the loss to monitor.loss")


def check_options(given: Iterable[str]) -> None:
    """Raise `UsageError` for a keyword that `Monitor.diagnose` does not take."""
    from gnnstab.evaluation import diagnose_trace, evaluate

    known = inspect.signature(diagnose_trace).parameters | inspect.signature(evaluate).parameters
    own = ["verify", *(name for name, p in known.items() if p.kind is p.KEYWORD_ONLY and name != "late")]
    for keyword in given:
        if keyword not in own:
            takes = f"it takes {', '.join(own)}"
            raise UsageError(f"monitor.diagnose has no argument {keyword!r}; {hint(keyword, own, takes)}")


def _place_of(keyword: str) -> str:
    """Where a keyword belongs that `Monitor` does not have, or which of its own come near."""
    from gnnstab.evaluation import evaluate
    from gnnstab.monitor.monitor import Monitor

    if keyword in (*inspect.signature(evaluate).parameters, "verify"):
        return f"pass it to monitor.diagnose({keyword}=…), after the run"
    own = [name for name, p in inspect.signature(Monitor).parameters.items() if p.kind is not p.VAR_KEYWORD]
    return hint(keyword, own, f"it takes {', '.join(own)}")


def told_when_it_fails(loss: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """``loss(output, batch)``; where its first call on a copy fails, a warning and the report say how it is called and what is left out."""
    called, tried = of_output_and_batch(loss), list[bool]()
    name = getattr(loss, "__name__", type(loss).__name__)

    @functools.wraps(called, updated=())
    def first(output: Any, batch: Any) -> Any:
        if tried:
            return called(output, batch)
        tried.append(True)
        try:
            return called(output, batch)
        except UsageError:  # Its reason is told already.
            raise
        except Exception as error:
            let_through(error)
            reason = (
                f"loss={name} failed when it was called on a copy as loss(output, batch), where batch is "
                f"{_what_batch_is(batch)}: {type(error).__name__}: {error}"
            )
            warn(
                f"gnnstab: {reason}. Give a function that fits, e.g. loss=lambda output: criterion(output, y); else the first "
                "update is not tried, a NaN in the loss is not traced to its line, and no suspect is undone with this loss"
            )
            raise left_out(reason) from error

    return first


def _what_batch_is(batch: Any) -> str:
    """What the model was called with, in words."""
    if isinstance(batch, dict):
        return f"the dict of its keyword arguments {', '.join(map(str, batch))}"
    if isinstance(batch, tuple):
        return f"the tuple of its {len(batch)} arguments"
    return f"its only argument, a {type(batch).__name__}"


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


def warn_of_foreign(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Say so when none of the optimizers moves the model: their steps are those of another network."""
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if held and (own := {id(tensor) for tensor in model.parameters()}) and held.isdisjoint(own):
        warn("gnnstab: the optimizer holds no parameter of the monitored model; pass the one that moves this model")


def steps_between(schedule: int | str) -> int:
    """Steps between two full-tier measurements."""
    if schedule == EVERY_STEP:
        return 1
    if isinstance(schedule, bool) or not isinstance(schedule, int) or schedule < 1:
        raise UsageError(f'schedule={schedule!r}; give a number of steps, at least 1, or "every step"')
    return schedule


def as_number(loss: Any) -> tuple[Tensor | float | None, str]:
    """The loss of a step, and what is wrong with it: several numbers become their mean, what is no real number None, or NaN where it holds one."""
    try:
        if not isinstance(loss, Tensor):
            return float(loss), ""
        if loss.is_meta or loss.is_complex() or not loss.numel():
            return _no_number(loss, f"a {loss.dtype} tensor of shape {tuple(loss.shape)} on {loss.device}")
        if loss.numel() == 1 and loss.layout is torch.strided:
            return loss, ""
        return loss.detach().to_dense().double().mean(), (
            f"a tensor of shape {tuple(loss.shape)}; its mean is recorded: give the scalar that backward is called on"
        )
    except (TypeError, ValueError, OverflowError, RuntimeError):
        if isinstance(loss, np.ndarray) and loss.dtype.kind in "fiubc":
            return as_number(torch.as_tensor(loss))
        return _no_number(loss, f"a {type(loss).__name__}")


def _no_number(loss: Any, given: str) -> tuple[float | None, str]:
    if any(map(is_nan, tree_leaves(loss))):
        return math.nan, f"{given}, in which a number is NaN: give the scalar that backward is called on"
    return None, f"{given}, which is not one real number; the steps are recorded without a loss"


def is_nan(value: Any) -> bool:
    """True of a number, or a tensor at hand, that is or holds NaN; what lies on a device is not waited for."""
    if isinstance(value, Tensor):
        return value.device.type == "cpu" and bool(stored(value.detach()).isnan().any())
    return isinstance(value, (float, complex, np.generic)) and bool(value != value)


def path_of(trace: str | os.PathLike[str] | None) -> Path | None:
    """The path of the trace of this process."""
    if trace is None:
        return None
    rank = of_processes().get("rank")
    return Path(trace) if rank is None else rank_path(trace, int(rank))


def of_processes() -> dict[str, str]:
    """The rank of this process and how many there are; empty outside a distributed run."""
    # Processes of mp.spawn are told their rank by arguments, and the environment says nothing.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        own, of = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return {"rank": str(own), "world_size": str(of)} if of > 1 else {}
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    several = rank.isdecimal() and world.isdecimal() and int(world) > 1
    return {"rank": rank, "world_size": world} if several else {}
