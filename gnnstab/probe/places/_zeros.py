"""Weights that are all 0 and keep gradients at 0: small random entries on the copy let one arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.layers.lazy import unwritten

SMALL = 0.1
"""Standard deviation of the entries that are put in the place of zeros."""


@contextmanager
def moved(model: nn.Module, *, last_digit: bool = False) -> Iterator[None]:
    """Within the block random numbers are added to all parameters of a copy: a table of zeros is then no table of zeros.

    With ``last_digit`` each parameter goes to one of its neighbours in the number format instead.
    """
    own = [p for p in model.parameters() if p.is_floating_point() and p.numel()]
    before = [p.detach().clone() for p in own]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in own:
            drawn = torch.randn(parameter.shape, generator=generator).to(parameter)
            if last_digit:
                parameter.copy_(torch.nextafter(parameter, drawn.sign() * torch.inf))
            else:
                parameter.add_(SMALL * drawn)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(own, before, strict=True):
                parameter.copy_(value)


def rows(model: nn.Module, again: Callable[[], Sequence[Tensor]]) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """After a backward; ``again`` runs the forward and returns the loss. The weights are given back.

    Where no matrix got a gradient but 0, all matrices of zeros are suspects. Where others did, as around a skip, those of zeros that got
    none: they hold each other when entries in them alone let a gradient arrive at them. ``all``: whether no matrix had one.
    """
    without = unwritten(model)
    own = {n: p for n, p in model.named_parameters() if p.requires_grad and n not in without}
    own = {n: p for n, p in own.items() if p.dim() > 1 and p.numel() and p.is_floating_point()}
    moved = {n for n, p in own.items() if p.grad is not None and bool(p.grad.any())}
    empty = {n: p for n, p in own.items() if n not in moved and p.grad is not None and not p.any()}
    if not empty:
        return
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in empty.values():
            parameter.copy_(SMALL * torch.randn(parameter.shape, generator=generator))
    try:
        (loss,) = again()
        waiting = empty if moved else own
        arrived = torch.autograd.grad(loss, list(waiting.values()), allow_unused=True) if loss.requires_grad else ()
    finally:
        with torch.no_grad():
            for parameter in empty.values():
                parameter.zero_()
    freed = [n for n, g in zip(waiting, arrived, strict=False) if g is not None and bool(g.any())]
    if freed:
        listed = freed if moved else list(empty)
        yield "place.zero_weights", listed[0], float(len(listed)), {"parameters": listed[:50], "all": not moved}
