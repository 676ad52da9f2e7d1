"""Small tensors looked at together, by one operation instead of one each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

TOGETHER = 2**16
"""Entries of gradients that are looked at by one operation."""


def joined(tensors: Iterable[Tensor]) -> Iterator[tuple[Tensor, list[int]]]:
    """The entries of tensors that follow each other, small ones of one format together, and where each begins."""
    found: list[Tensor] = []
    starts, size, kind = [0], 0, None
    for tensor in tensors:
        own, entries = (tensor.dtype, tensor.device, tensor.layout), tensor.numel()
        if found and (size + entries > TOGETHER or own != kind):
            yield _flat(found), starts
            found, starts, size = [], [0], 0
        elif found:
            starts.append(size)
        found.append(tensor)
        size, kind = size + entries, own
    if found:
        yield _flat(found), starts


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors]) if len(tensors) > 1 else tensors[0].reshape(-1)
