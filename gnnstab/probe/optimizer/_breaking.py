"""Trial steps that were calm until the loss was not finite: which operation ended them, and not the rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gnnstab.probe.operations.explaining import told
from gnnstab.probe.operations.repeat import repeat
from gnnstab.probe.replaying.replica import Autocast, ForwardInputs, device_of, unwrap
from gnnstab.records import Event
from gnnstab.records.rises import LASTING

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench, Trial

OF_THEIR_SIZE = 1.0
"""Change of the weights over their size from which on the steps themselves broke the loss, whatever operation was the first to."""


def breaking(bench: Bench, trial: Trial) -> Event | None:
    """The first bad operation of trial steps that had not raised the loss before; None where they had, or where it only overflowed.

    An operation with a domain (a logarithm, a division, an exponential without shift) is left at any rate, sooner or later.

    Raises:
        UsageError: As `Bench.trial`.
    """
    *before, last = trial.losses
    if math.isfinite(last) or not before or max(before) > before[0] + (LASTING - 1) * abs(before[0]):
        return None
    kept: list[nn.Module] = []
    bench.trial(len(before), edit=kept.append)
    model = kept[0]
    if not _change(unwrap(bench.model)[0], model) < OF_THEIR_SIZE:
        return None
    for (args, kwargs), batch in zip(bench.calls, bench.batches, strict=True):

        def objective(output: Any, args: Any, kwargs: Any, watch: Any, batch: Any = batch) -> Tensor:
            return bench.loss(output, batch)

        cast = Autocast(device_of(model).type, bench.dtype or torch.bfloat16, bench.dtype is not None)
        call = ForwardInputs(args, kwargs, autocast=cast)
        found = repeat(model, call, objective, batch=batch)
        if found.origin is not None:
            made = found.origin.tensor is None and found.origin.operation.sizes.kind != "overflow"
            return told(Event(len(before), "non-finite", stage="loss", detail={"tried": True}), found) if made else None
    return None


def _change(before: nn.Module, after: nn.Module) -> float:
    """‖after − before‖ over ‖before‖, all parameters together."""
    pairs = [(old.detach(), new.detach()) for old, new in zip(before.parameters(), after.parameters(), strict=True)]
    size = sum(float(old.double().square().sum()) for old, _ in pairs)
    moved = sum(float((new - old).double().square().sum()) for old, new in pairs)
    return math.sqrt(moved / size) if size > 0 else math.nan
