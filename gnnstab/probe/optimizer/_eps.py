"""The eps of an optimizer: how large it is, whether the format of the weights holds it, and a trial with next to none."""

from __future__ import annotations

import torch

from gnnstab.records import Signal
from gnnstab.records.vocabulary import OPTIMIZER_EPS_LOST

NO_EPS = 1e-20
"""What eps is compared with: as good as none, also of a loss that is itself far below 1."""

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
        for parameter in group["params"] if isinstance(eps, float) and eps > 0 else ():
            if parameter.is_floating_point() and not torch.tensor(eps, dtype=parameter.dtype):
                count, formats = count + 1, formats | {str(parameter.dtype).removeprefix("torch.")}
    detail = {"eps": eps_of(optimizer), "formats": sorted(formats), "optimizer": type(optimizer).__name__}
    return [Signal(OPTIMIZER_EPS_LOST, float(count), source="steps", detail=detail)] if count else []


def shrink_eps(optimizer: torch.optim.Optimizer) -> None:
    """Set every eps to `NO_EPS`."""
    for group in optimizer.param_groups:
        if isinstance(group.get("eps"), float):
            group["eps"] = NO_EPS
