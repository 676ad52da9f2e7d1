"""What a trace knows of the optimizers of a run: their classes, and of several what each of them moves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from gnnstab.probe.optimizer._settings import usual_rate


def named(meta: Callable[[str, str], None], model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Let a trace know the class of the optimizer; of several also what each moves, at which rate, and how far that lies above a usual one."""
    if len(optimizers) == 1:
        meta("optimizer", type(optimizers[0]).__name__)
        return
    own = {id(p): name for name, p in model.named_parameters()}
    told: list[dict[str, Any]] = []
    for one in optimizers:
        rate = max((float(group["lr"]) for group in one.param_groups if "lr" in group), default=math.nan)
        moved = [own[id(p)] for group in one.param_groups for p in group["params"] if id(p) in own]
        over = rate / (usual_rate(one) or USUAL)
        told.append({"class": type(one).__name__, "rate": rate, "over": over, "names": moved[:MOST_NAMES]})
    if told and all(math.isfinite(one["rate"]) for one in told):
        meta("optimizers", json.dumps(told))


USUAL = 0.1
"""Rate that is usual for classes whose updates have the size of the gradient."""

MOST_NAMES = 20
"""Parameters of one optimizer that are named."""
