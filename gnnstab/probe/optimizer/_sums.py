"""Sums over neighbours as the reason for steps that raise the loss: the same steps, at the same rate, with the sums divided."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gnnstab.layers import layer_of
from gnnstab.probe.pooling import GROUP, grows, sums_watched
from gnnstab.records import Signal
from gnnstab.records.vocabulary import OPTIMIZER_SUMS_RISE

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench, Trial

BY_HAND = "the model's own code"


def sums_signals(bench: Bench, trial: Trial) -> Iterator[Signal]:
    """How far ``trial``, steps that raised the loss, would have raised it with every sum that grows with its terms divided by their number.

    Raises:
        UsageError: As `Bench.trial`.
    """
    first = trial.losses[0]
    if trial.calm or trial.rise is None or not 0 < first < math.inf:
        return
    divided: set[str] = set()
    with sums_watched(mean=True) as by_hand:
        undone = bench.trial(len(trial.losses) - 1, edit=partial(_divide, divided))
    names = [*sorted(divided), *([BY_HAND] if by_hand.by_hand else ())]
    if names and undone.rise is not None:
        detail = {
            "names": names[:40], "rise": trial.rise.largest, "calm": undone.calm, "steps": len(trial.losses) - 1,
            "first": first, "best": min(undone.losses),
        }  # fmt: skip
        yield Signal(OPTIMIZER_SUMS_RISE, undone.rise.largest, source="steps", detail=detail)


def sums_messages(model: nn.Module) -> bool:
    """True where some layer that is no known attention sums what its neighbours send."""
    return any(
        getattr(module, "aggr", None) in ("add", "sum") and layer_of(module) is None for module in model.modules()
    )


def _divide(divided: set[str], model: nn.Module) -> None:
    """Hooks that stay on a copy: each aggregation that sums gives the mean where its first results grow with the number of terms."""
    for name, module in model.named_modules():
        summed = getattr(module, "aggr_module", None)
        if getattr(module, "aggr", None) in ("add", "sum") and isinstance(summed, nn.Module):
            summed.register_forward_hook(_Mean(name or type(module).__name__, divided), with_kwargs=True)


class _Mean:
    """What an aggregation returns, over the number of its terms; weights that a softmax or a degree has normalised do not grow."""

    def __init__(self, name: str, divided: set[str]) -> None:
        self._name, self._divided = name, divided
        self._grows: bool | None = None

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        index = args[1] if len(args) > 1 else kwargs.get("index")
        if not isinstance(index, Tensor) or not isinstance(output, Tensor) or output.dim() < 2:
            return None
        if not index.numel() or int(index.max()) >= len(output):
            return None
        count = torch.bincount(index, minlength=len(output)).clamp(min=1).to(output)
        if self._grows is None:
            self._grows = bool(count.max() >= GROUP) and grows(output.detach().flatten(1), count)
        if not self._grows:
            return None
        self._divided.add(self._name)
        return output / count.view(-1, *(1,) * (output.dim() - 1))
