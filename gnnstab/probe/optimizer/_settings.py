"""Settings of an optimizer that stand beyond their limits."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch

from gnnstab.records import Signal
from gnnstab.records.settings import LARGEST_DECAY, MOST_MOMENTUM, SMALL_ENOUGH, Setting
from gnnstab.records.vocabulary import OPTIMIZER_DECAY, OPTIMIZER_MOMENTUM, OPTIMIZER_NEGATIVE_RATE


def beyond_limits(optimizer: torch.optim.Optimizer) -> Iterator[Setting]:
    """A momentum of 1 or more, a rate below 0, one of these that is no finite number, and a decay that takes `LARGEST_DECAY` or more off every weight in a step.

    A decay is judged where rate × decay is what a step takes: under SGD, and where it is decoupled from the gradient. There a step also adds
    about its rate, so that weights of a size up to 1/decay stay: it is judged from `SMALL_ENOUGH` down.
    """
    for place, group in enumerate(optimizer.param_groups):
        lr, momentum, decay = (_number(group.get(name)) for name in ("lr", "momentum", "weight_decay"))
        if not momentum < MOST_MOMENTUM:  # NaN is no less.
            yield Setting(OPTIMIZER_MOMENTUM, momentum, place)
        if not 0 <= lr < math.inf:
            yield Setting(OPTIMIZER_NEGATIVE_RATE, lr, place)
        elif not lr * decay < LARGEST_DECAY and (
            isinstance(optimizer, torch.optim.SGD) or (_decoupled(optimizer, group) and 1 / decay <= SMALL_ENOUGH)
        ):
            yield Setting(OPTIMIZER_DECAY, lr * decay, place)


def setting_signals(optimizer: torch.optim.Optimizer) -> list[Signal]:
    """One per setting that is `beyond_limits`."""
    return [Signal(s.signal, s.value, source="steps", detail={"group": s.group}) for s in beyond_limits(optimizer)]


def has_decay(optimizer: torch.optim.Optimizer) -> bool:
    """True where the weights of a group decay."""
    return any(_number(group.get("weight_decay")) > 0 for group in optimizer.param_groups)


def without_decay(optimizer: torch.optim.Optimizer) -> None:
    """Let no weights decay."""
    for group in optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = 0.0


def usual_rate(optimizer: torch.optim.Optimizer) -> float:
    """`default_rate` of an optimizer whose updates have the size of the rate whatever the gradient, as Adam's; 0 for any other: SGD has no usual one."""
    return default_rate(optimizer) if any("betas" in group for group in optimizer.param_groups) else 0.0


def highest_usual(optimizer: torch.optim.Optimizer) -> float:
    """`usual_rate`, and under SGD the .1 of the papers on residual networks; 0 for any other optimizer."""
    return 0.1 if isinstance(optimizer, torch.optim.SGD) else usual_rate(optimizer)


def default_rate(optimizer: torch.optim.Optimizer) -> float:
    """The rate that the class of an optimizer, or one that it extends, takes where none is given, 0 where none does."""
    for kind in type(optimizer).__mro__:
        with suppress(TypeError, ValueError):
            told = inspect.signature(kind).parameters.get("lr")
            if told is not None and isinstance(told.default, (int, float)):
                return float(told.default)
    return 0.0


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _decoupled(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    return bool(group.get("decoupled_weight_decay")) or isinstance(optimizer, torch.optim.AdamW)
