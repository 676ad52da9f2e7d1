"""The eps of an optimizer: how large it is, whether the format of the weights holds it, and a trial with next to none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gnnstab.records import Signal
from gnnstab.records.vocabulary import OPTIMIZER_EPS_DAMPING, OPTIMIZER_EPS_LOST

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench, Trial

NO_EPS = 1e-20
"""What eps is compared with: as good as none, also of a loss that is itself far below 1."""

WHOLE = 0.9
"""Share of an update from which on it counts as taken whole."""

MADE_OF_EPS = ("Adadelta",)
"""Optimizers whose first steps are made of eps: a smaller one is no other setting but another method."""


def eps_of(optimizer: torch.optim.Optimizer) -> float | None:
    """The largest eps of the groups; None where there is none, or where the first steps are made of it."""
    sizes = [group["eps"] for group in optimizer.param_groups if isinstance(group.get("eps"), float)]
    return None if type(optimizer).__name__ in MADE_OF_EPS else max(sizes, default=None)


def eps_signals(optimizer: torch.optim.Optimizer) -> list[Signal]:
    """How many parameters are held in a format in which the eps that is added to their denominators is 0."""
    count = 0
    formats: set[str] = set()
    for group in optimizer.param_groups:
        eps = group.get("eps")
        small = isinstance(eps, float) and eps > 0
        held = Counter(p.dtype for p in group["params"] if p.is_floating_point()) if small else {}
        for dtype, number in held.items():
            if not torch.tensor(eps, dtype=dtype):
                count, formats = count + number, formats | {str(dtype).removeprefix("torch.")}
    detail = {"eps": eps_of(optimizer), "formats": sorted(formats), "optimizer": type(optimizer).__name__}
    return [Signal(OPTIMIZER_EPS_LOST, float(count), source="steps", detail=detail)] if count else []


def unguarded(optimizer: torch.optim.Optimizer) -> list[Signal]:
    """An eps of exactly 0, with how many entries of the gradients that are at hand are exactly 0: the first update divides 0 by 0 there."""
    if type(optimizer).__name__ in MADE_OF_EPS:
        return []
    groups = [group for group in optimizer.param_groups if isinstance(group.get("eps"), float) and group["eps"] == 0]
    fresh = [p.grad for group in groups for p in group["params"] if p.grad is not None and not optimizer.state]
    zeros = sum(int((gradient == 0).sum()) for gradient in fresh)
    return [_none(optimizer, zeros)] if groups else []


def unguarded_signals(bench: Bench) -> list[Signal]:
    """The entries that one step with an eps of exactly 0 makes non-finite, where one with next to none makes none so; failures as of `Bench.trial`."""
    if not unguarded(bench.optimizer):
        return []
    kept: list[nn.Module] = []
    bench.trial(1, edit=kept.append)
    bench.trial(1, edit=kept.append, setting=shrink_eps)
    broke, free = (sum(int((~p.isfinite()).sum()) for p in model.parameters()) for model in kept)
    return [_none(bench.optimizer, broke)] if broke and not free else []


def _none(optimizer: torch.optim.Optimizer, entries: int) -> Signal:
    detail = {"eps": 0.0, "optimizer": type(optimizer).__name__}
    return Signal(OPTIMIZER_EPS_LOST, float(entries), source="steps", detail=detail)


def shrink_eps(optimizer: torch.optim.Optimizer) -> None:
    """Set every eps to `NO_EPS`."""
    for group in optimizer.param_groups:
        if isinstance(group.get("eps"), float):
            group["eps"] = NO_EPS


def damping_signals(bench: Bench, trial: Trial) -> Iterator[Signal]:
    """What eps leaves of a step, and, where it takes much, of the progress of several; failures as of `Bench.trial`."""
    eps = eps_of(bench.optimizer)
    if eps is None:
        return
    free = bench.trial(1, setting=shrink_eps).moved
    if math.isfinite(free) and free > 0 and math.isfinite(trial.moved):
        detail: dict[str, Any] = {"eps": eps, "optimizer": type(bench.optimizer).__name__}
        if trial.moved / free < WHOLE:
            detail["fell"] = [trial.fall, bench.trial(setting=shrink_eps).fall]
        yield Signal(OPTIMIZER_EPS_DAMPING, trial.moved / free, source="steps", detail=detail)
