"""The same steps with large inputs standardised on a copy: whether their scale keeps the model from learning."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from gnnstab.probe.batches.arguments import Arguments
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.batches.roles import deviating, is_target, standardised
from gnnstab.probe.optimizer.learning import STEPS
from gnnstab.probe.replaying.replica import mapped
from gnnstab.records import Signal
from gnnstab.records.vocabulary import OPTIMIZER_STANDARDISED

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gnnstab.probe.optimizer.optimizer_steps import Bench


def standardised_signals(bench: Bench) -> Iterator[Signal]:
    """Best loss of a few steps as it is over that of the same steps with all large inputs standardised; nothing without such.

    Raises:
        UsageError: As `Bench.trial`.
    """
    large = [large_inputs(call, bench.model) for call in bench.calls]
    names = sorted({name for found in large for name in found})
    if not names:
        return
    calls = [_changed(call, found) for call, found in zip(bench.calls, large, strict=True)]
    best, undone = min(bench.as_is), min(replace(bench, calls=calls).trial(STEPS).losses)
    if 0 < best < math.inf and 0 < undone < math.inf:
        detail = {"names": names[:40], "first": bench.as_is[0], "best": best, "undone": undone, "steps": STEPS}
        yield Signal(OPTIMIZER_STANDARDISED, best / undone, source="steps", detail=detail)


def large_inputs(call: Arguments, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Name → tensor of a forward that has columns of real numbers far from size 1, and the same standardised."""
    found = {}
    for name, tensor in named_tensors(*call, model=model).items():
        table = tensor[:, None] if tensor.dim() == 1 else tensor
        columns = None if is_target(name) else deviating(table, whole=False)
        if columns is not None:
            found[name] = (tensor, standardised(table, columns).reshape(tensor.shape))
    return found


def _changed(call: Arguments, large: dict[str, tuple[Tensor, Tensor]]) -> Arguments:
    made = {id(old): new for old, new in large.values()}
    args, kwargs = (mapped(part, lambda tensor: made.get(id(tensor), tensor)) for part in call)
    return args, kwargs
