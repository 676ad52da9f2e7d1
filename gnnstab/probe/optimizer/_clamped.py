"""Clamps in a model that steps on a copy go without: what they cut off may be what is to be learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gnnstab.probe.attaching.hooks import hookable
from gnnstab.probe.optimizer._suspects import Suspect, listed

_CLAMPS = (torch.clamp, Tensor.clamp, torch.clip, Tensor.clip)
_FIXED = {F.hardtanh: (-1.0, 1.0), F.relu6: (0.0, 6.0)}
"""Functions with an upper limit → their limits, where they are given none."""


def clamps(model: nn.Module, forward: Callable[[], Any]) -> Iterator[Suspect]:
    """One for all clamps with an upper limit that ``forward`` of ``model``, a copy, calls on what has a gradient."""
    seen = _Lifted()
    with seen:
        seen.watch(model)
        forward()
    if seen.limits:
        lifted = _Lifted()
        limits = listed([f"[{low:.3g}, {high:.3g}]" for low, high in dict.fromkeys(seen.limits.values())])
        names = tuple(seen.limits)
        yield Suspect(
            "active-clamp", names, f"letting everything through the clamp behind {listed(names)}",
            f"a clamp behind {listed(names)} keeps values in {limits}", lifted.watch, lifted,
        )  # fmt: skip


class _Lifted(TorchFunctionMode):
    """Within the block, and within calls of the model, what a clamp keeps below an upper limit passes as it is.

    One to [0, 1] is a gate, and one with a lower limit alone a ReLU or the floor of a denominator. A loss keeps its clamps: it is another one without.
    """

    def __init__(self) -> None:
        super().__init__()
        self.limits: dict[str, tuple[float, float]] = {}
        self._last, self._running = "", 0

    def watch(self, model: nn.Module) -> None:
        """Have a copy tell when it runs, and which of its modules with weights returned last."""
        model.register_forward_pre_hook(self._enter)
        model.register_forward_hook(self._leave, always_call=True)
        for name, module in hookable(model):
            if name and next(module.parameters(), None) is not None:
                module.register_forward_hook(partial(self._returned, name))

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._running += 1

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running -= 1

    def _returned(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self._last = name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        limits = self._limits(func, args, kwargs) if self._running else None
        if limits is None:
            return func(*args, **kwargs)
        self.limits.setdefault(self._last or "the input", limits)
        # What was written into stays another tensor than what is returned.
        return args[0].clamp(min=0.0) if limits[0] == 0 else args[0] + 0

    def _limits(self, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[float, float] | None:
        """Lower and upper limit of a call that is to let everything through; None for every other call."""
        if (func not in _CLAMPS and func not in _FIXED) or kwargs.get("inplace") or "out" in kwargs:
            return None
        if not (args and isinstance(args[0], Tensor) and args[0].requires_grad):
            return None
        low, high = _FIXED.get(func, (-math.inf, math.inf))
        given = [
            args[place] if len(args) > place else next((kwargs[name] for name in names if name in kwargs), None)
            for place, names in ((1, ("min", "min_val")), (2, ("max", "max_val")))
        ]
        if any(isinstance(limit, Tensor) and limit.numel() != 1 for limit in given):
            return None
        low, high = (own if limit is None else float(limit) for limit, own in zip(given, (low, high), strict=True))
        return None if high == math.inf or (low, high) == (0, 1) else (low, high)
