"""The same steps with the closed units of ReLUs opened again: whether a run would learn more with them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gnnstab.probe.attaching.hooks import hookable
from gnnstab.probe.optimizer._halved import halved
from gnnstab.probe.optimizer.softening import MORE_STEPS
from gnnstab.records import Signal
from gnnstab.records.vocabulary import OPTIMIZER_REVIVED

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench

OPEN = 0.02
"""Share of the rows on which a channel is open at most that is closed, as at the places."""

_RELU = (torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu)


def revived_signals(bench: Bench, names: Sequence[str]) -> Iterator[Signal]:
    """Best loss of some steps as they are over that of the same steps with the units opened that are closed behind ``names``; nothing without such.

    The steps are taken for half of the rows that the loss reads, and judged by the others, where these are enough.

    Raises:
        UsageError: As `Bench.trial`.
    """
    if not names:
        return
    mode = _Revived(names)
    # More units learn one batch by heart in any case: what rows gain that no step was taken for says more.
    unseen = halved(bench, others=True)
    with mode:
        opened = (unseen or bench).trial(MORE_STEPS, edit=mode.watch).losses
    if not mode.opened:
        return
    as_is = (bench if unseen is None else halved(bench, others=True) or bench).trial(MORE_STEPS).losses
    best, undone = min(as_is), min(opened)
    if 0 < best < math.inf and 0 < undone < math.inf:
        detail = {"names": list(names[:40]), "first": as_is[0], "best": best, "undone": undone, "steps": MORE_STEPS}
        detail["unseen"] = unseen is not None
        yield Signal(OPTIMIZER_REVIVED, best / undone, source="steps", detail=detail)


class _Revived(TorchFunctionMode):
    """Within the block the closed channels of the ReLUs behind these modules lose the mean that they begin with, as where their bias is made good."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names, self._last = frozenset(names), ""
        self._calls = Counter[str]()
        self._means: dict[tuple[str, int], Tensor] = {}

    @property
    def opened(self) -> bool:
        """True where a closed channel was seen."""
        return any(bool(mean.any()) for mean in self._means.values())

    def watch(self, model: nn.Module) -> None:
        """Have a copy tell where it begins, and which of its modules with weights returned last."""
        model.register_forward_pre_hook(self._begins)
        for name, module in hookable(model):
            if name and next(module.parameters(), None) is not None:
                module.register_forward_hook(partial(self._returned, name))

    def _begins(self, module: nn.Module, args: Any) -> None:
        self._calls.clear()

    def _returned(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self._last = name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = args[0] if args else kwargs.get("input")
        if func not in _RELU or self._last not in self._names or not isinstance(given, Tensor) or given.dim() < 2:
            return func(*args, **kwargs)
        place, self._calls[self._last] = (self._last, self._calls[self._last]), self._calls[self._last] + 1
        if place not in self._means:
            rows = given.detach().flatten(0, -2)
            self._means[place] = rows.mean(0) * ((rows > 0).double().mean(0) <= OPEN)
        return F.relu(given - self._means[place].to(given))
