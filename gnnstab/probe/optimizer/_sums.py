"""Sums whose results grow with the number of their terms, divided by it on a copy: those of layers, and those of the model's own code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.probe.pooling import GROUP, grows, sums_watched

BY_HAND = "the model's own code"


class Divided:
    """A change of a copy and a mode around its calls that divide its sums, and the names of those that were divided."""

    def __init__(self) -> None:
        self._layers: set[str] = set()
        self._by_hand = False

    @property
    def names(self) -> tuple[str, ...]:
        """The layers whose aggregation sums, and `BY_HAND`."""
        return (*sorted(self._layers), *([BY_HAND] if self._by_hand else ()))

    def edit(self, model: nn.Module) -> None:
        """Hooks that stay on a copy: each aggregation that sums gives the mean where its first results grow with the number of terms."""
        for name, module in model.named_modules():
            summed = getattr(module, "aggr_module", None)
            if getattr(module, "aggr", None) in ("add", "sum") and isinstance(summed, nn.Module):
                mean = _Mean(partial(self._layers.add, name or type(module).__name__))
                summed.register_forward_hook(mean, with_kwargs=True)

    @contextmanager
    def mode(self) -> Iterator[None]:
        """Sums of features by an index in the model's own code are divided inside."""
        with sums_watched(mean=True) as by_hand:
            yield
        self._by_hand = self._by_hand or bool(by_hand.by_hand)


class _Mean:
    """What an aggregation returns, over the number of its terms; weights that a softmax or a degree has normalised do not grow."""

    def __init__(self, divided: Any) -> None:
        self._divided = divided
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
        self._divided()
        return output / count.view(-1, *(1,) * (output.dim() - 1))
