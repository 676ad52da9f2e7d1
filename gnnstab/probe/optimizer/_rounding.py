"""What rounding takes of an update, of weights that are held in 16 bits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gnnstab.errors import UsageError, let_through
from gnnstab.probe.replaying.replica import forked_rng
from gnnstab.records import Signal
from gnnstab.records.vocabulary import OPTIMIZER_LOST_SHARE

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench


def in_16_bits(tensor: Tensor) -> bool:
    """True for numbers in fp16 and bf16."""
    return tensor.is_floating_point() and tensor.element_size() == 2


def lost_share(start: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Share of the entries with a gradient that are as they were, of (parameter, its value before the update); NaN without any in 16 bits.

    An update that is smaller than half of the distance to the next number is rounded away.
    """
    held = [(p, p.grad, old) for p, old in start if in_16_bits(p)]
    wanted = [(gradient != 0, p == old) for p, gradient, old in held if gradient is not None]
    total = sum(int(asked.sum()) for asked, _ in wanted)
    same = sum(int((asked & stayed).sum()) for asked, stayed in wanted)
    return same / total if total else math.nan


def rounding_signals(bench: Bench) -> Iterator[Signal]:
    """The same share for one step on a copy, at the rate that a schedule begins with; nothing of weights in 32 bits.

    Raises:
        UsageError: Model or optimizer cannot be copied, or forward, loss or step fail on the copy.
    """
    if not any(in_16_bits(p) for p in bench.model.parameters()):
        return
    model, optimizer = bench.twins()
    for group in optimizer.param_groups:
        group["lr"] = max(group["lr"], group.get("initial_lr", 0.0))
    start = [(p, p.detach().clone()) for p in model.parameters()]
    with forked_rng(), torch.enable_grad():
        try:
            bench.forward(model, 0)[1].backward()  # type: ignore[no-untyped-call]
            if bench.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), bench.clip)
            optimizer.step()
        except Exception as error:
            let_through(error)
            raise UsageError(f"a step failed on a copy: {type(error).__name__}: {error}") from error
    share = lost_share(start)
    if not math.isnan(share):
        yield Signal(OPTIMIZER_LOST_SHARE, share, source="steps", detail={"optimizer": type(optimizer).__name__})
