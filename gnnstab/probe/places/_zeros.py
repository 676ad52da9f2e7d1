"""Weights that are all 0 and keep every gradient at 0: small random entries on the copy let one arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

SMALL = 0.1
"""Standard deviation of the entries that are put in the place of zeros."""


def rows(model: nn.Module, again: Callable[[], Sequence[Tensor]]) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """After a backward in which no matrix got a gradient but 0; ``again`` runs the forward and returns the loss. The weights are given back."""
    own = {n: p for n, p in model.named_parameters() if p.requires_grad and not is_lazy(p)}
    own = {n: p for n, p in own.items() if p.dim() > 1 and p.numel() and p.is_floating_point()}
    gradients = [p.grad for p in own.values() if p.grad is not None]
    empty = {n: p for n, p in own.items() if not p.any()}
    if not gradients or not empty or any(bool(gradient.any()) for gradient in gradients):
        return
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in empty.values():
            parameter.copy_(SMALL * torch.randn(parameter.shape, generator=generator))
    try:
        (loss,) = again()
        arrived = torch.autograd.grad(loss, list(own.values()), allow_unused=True) if loss.requires_grad else ()
    finally:
        with torch.no_grad():
            for parameter in empty.values():
                parameter.zero_()
    if any(gradient is not None and bool(gradient.any()) for gradient in arrived):
        yield "place.zero_weights", next(iter(empty)), float(len(empty)), {"parameters": list(empty)[:50]}
