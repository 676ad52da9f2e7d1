"""Normalisations over so few numbers that a sign is all that is left of a row, and the same columns normalised over the rows on a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnstab.probe.optimizer._suspects import Suspect, listed
from gnnstab.torch_private import BatchNorm

WIDEST = 2
"""Numbers of a row of which its mean and its size leave no more than one sign."""

_MOST = 0.05
"""Share of the rows that may come out otherwise: of numbers that hardly differ, the norm's eps leaves something in between."""

_FEWEST = 8
"""Different rows that come in, from which on two that go out are a loss."""


def narrow_norms(model: nn.Module, forward: Callable[[], Any]) -> Iterator[Suspect]:
    """The normalisations of ``model``, a copy, that hand on two different rows at most where many come in."""
    found: dict[str, int] = {}
    handles = [
        module.register_forward_hook(partial(_look, found, name))
        for name, module in model.named_modules()
        if name and "Norm" in type(module).__name__
    ]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        names = tuple(found)
        width = max(found.values())
        what = "two numbers, and one sign is" if width == WIDEST else "a single number, and its sign at most is"
        yield Suspect(
            "normalization-misuse", names, f"normalising each column of {listed(names)} over the rows instead",
            f"{listed(names)} normalises each row over {what} all that is left of it", partial(_by_columns, names),
        )  # fmt: skip


class RowNorms:
    """A change of a copy under which each BatchNorm that is given `WIDEST` rows or fewer normalises every row over its channels, and the names of those."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def edit(self, model: nn.Module) -> None:
        """Hooks that stay on the copy."""
        for name, module in model.named_modules():
            if isinstance(module, BatchNorm) and module.num_features > WIDEST:
                module.register_forward_hook(partial(self._instead, name))

    def _instead(self, name: str, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        x = args[0]
        if not module.training or not isinstance(x, Tensor) or x.dim() != 2 or len(x) > WIDEST:
            return None
        self.names[name] = None
        return F.layer_norm(x, x.shape[1:], module.weight, module.bias)  # type: ignore[arg-type]


def _look(found: dict[str, int], name: str, module: nn.Module, args: Any, output: Any) -> None:
    """Keep the width of a normalisation that hands on too little."""
    x = args[0] if args else None
    if not isinstance(x, Tensor) or not isinstance(output, Tensor) or x.shape != output.shape or x.dim() < 2:
        return
    width = x.shape[1] // module.num_groups if isinstance(module, nn.GroupNorm) and x.dim() == 2 else x.shape[-1]
    if not 0 < width <= WIDEST or (isinstance(module, nn.GroupNorm) and x.dim() != 2):
        return
    before, after = x.detach().reshape(-1, width).float(), output.detach().reshape(-1, x.shape[-1]).float()
    # Groups have weights of their own.
    after = (after / after.abs().amax(0).clamp(min=1e-12)).reshape(-1, width)
    _, counts = torch.unique((after * 50).round(), dim=0, return_counts=True)
    two = int(counts.sort(descending=True).values[:2].sum())
    if len(torch.unique(before, dim=0)) >= _FEWEST and two >= (1 - _MOST) * len(after):
        found[name] = width


def _by_columns(names: tuple[str, ...], model: nn.Module) -> None:
    """Hooks that stay on a copy: each column is normalised over all rows, and goes through the norm's own weights."""

    def instead(module: nn.Module, args: Any, output: Any) -> Tensor:
        x = args[0]
        rows = tuple(range(x.dim() - 1))
        spread = x.std(rows, keepdim=True, unbiased=False)
        out: Tensor = (x - x.mean(rows, keepdim=True)) / (spread + 1e-5)
        for own, change in (("weight", torch.mul), ("bias", torch.add)):
            if isinstance(parameter := getattr(module, own, None), Tensor):
                out = change(out, parameter)
        return out

    for name in names:
        model.get_submodule(name).register_forward_hook(instead)
