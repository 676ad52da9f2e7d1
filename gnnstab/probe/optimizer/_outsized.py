"""Weights that make what passes through them larger and larger, brought to a gain of 1 on a copy by what they do to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch_geometric.nn import MessagePassing

from gnnstab.probe.attaching.hooks import hookable
from gnnstab.probe.optimizer._suspects import Suspect, listed
from gnnstab.probe.pooling import sums_watched
from gnnstab.probe.replaying.replica import tensors_in
from gnnstab.probe.statistics.numbers import rms

GAIN = 2.0
"""Times that a module returns more than it is given, by size, from which on its weights are scaled; the largest gain in use is 5/3."""

GROWN = 30.0
"""Times that all of them make it larger, one behind the other, from which on they are in the way."""


def outsized(model: nn.Module, forward: Callable[[], Any]) -> Iterator[Suspect]:
    """One for all modules whose own matrices make what they are given larger by `GAIN`, where it has grown by `GROWN` in all.

    Sums over rows, which grow by their number, are another suspect: with one in the model's own code nobody is blamed here.
    """
    gains: dict[str, float] = {}
    sizes: list[float] = []
    handles = [
        m.register_forward_hook(partial(_keep, gains, sizes, name)) for name, m in hookable(model) if _multiplies(m)
    ]
    try:
        with sums_watched() as sums:
            forward()
    finally:
        for handle in handles:
            handle.remove()
    large = {name: gain for name, gain in gains.items() if gain > GAIN}
    if sums.by_hand or not large or not sizes or max(sizes) < GROWN * sizes[0]:
        return
    names, grown = tuple(large), max(sizes) / sizes[0]
    yield Suspect(
        "unsuitable-init", names, f"scaling the weights of {listed(names)} to a gain of 1",
        f"the weights of {listed(names)} make what they are given up to {max(large.values()):.3g} times larger, each behind the other, and {grown:.3g} times in all",
        partial(_scale, large),
    )  # fmt: skip


def _multiplies(module: nn.Module) -> bool:
    """True for a module with matrices of its own that adds up no neighbours and looks nothing up."""
    if isinstance(module, (MessagePassing, nn.Embedding, nn.EmbeddingBag)):
        return False
    return any(_matrix(p) for p in module.parameters(recurse=False))


def _matrix(parameter: Tensor) -> bool:
    return not is_lazy(parameter) and parameter.dim() > 1 and parameter.is_floating_point()


def _numbers(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout is torch.strided and tensor.numel() > 0


def _keep(gains: dict[str, float], sizes: list[float], name: str, module: nn.Module, args: Any, output: Any) -> None:
    given, made = (next(filter(_numbers, (t for _, t in tensors_in([one]))), None) for one in (args, output))
    if name in gains or given is None or made is None:
        return
    before, after = float(rms(given)), float(rms(made))
    if before > 0 and math.isfinite(after):
        gains[name] = after / before
        sizes += [before, after]


def _scale(gains: Mapping[str, float], model: nn.Module) -> None:
    with torch.no_grad():
        for name, gain in gains.items():
            for parameter in filter(_matrix, model.get_submodule(name).parameters(recurse=False)):
                parameter.div_(gain)
