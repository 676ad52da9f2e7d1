"""Small tensors looked at together, by one operation instead of one each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from gnnstab.torch_private import flattened

TOGETHER = 2**16
"""Entries of gradients that are looked at by one operation."""


def joined(tensors: Iterable[Tensor]) -> Iterator[tuple[Tensor, list[int]]]:
    """The entries of tensors that follow each other, small ones of one format together, and where each begins."""
    found: list[Tensor] = []
    starts, size, kind = [0], 0, None
    for tensor in tensors:
        own, entries = (tensor.dtype, tensor.device, tensor.layout), tensor.numel()
        if found and (size + entries > TOGETHER or own != kind):
            yield flattened(found), starts
            found, starts, size = [], [0], 0
        elif found:
            starts.append(size)
        found.append(tensor)
        size, kind = size + entries, own
    if found:
        yield flattened(found), starts
