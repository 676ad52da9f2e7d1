"""One pass over a tensor in pieces: RMS, extremes, and how many entries are not finite. Fast on one thread."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gnnstab.checkpoint._memory import MappedFiles

PIECE = 2**17
"""Entries looked at at a time: 1 MiB in float64, which stays in the processor's cache."""

BLOCK = 2**24
"""Entries after which pages of a mapped file are given back."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of one tensor, computed in float64."""

    count: int
    non_finite: int
    rms: float
    """NaN when an entry is not finite or there is none."""

    minimum: float
    maximum: float


def scan(tensor: Tensor, mapped: MappedFiles | None = None) -> Statistics:
    """Statistics of a dense real or complex tensor; with ``mapped``, pages that were read are given back."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.detach().resolve_conj())
    non_finite, squares, low, high = 0, 0.0, math.inf, -math.inf
    for block in _pieces(tensor.detach(), BLOCK):
        for piece in _pieces(block, PIECE):
            wide = piece.double().reshape(-1)
            smallest, largest = (float(x) for x in torch.aminmax(wide))
            if math.isfinite(smallest) and math.isfinite(largest):
                squares += float(wide.dot(wide))
                low, high = min(low, smallest), max(high, largest)
            else:
                non_finite += int(wide.numel() - torch.isfinite(wide).sum())
        if mapped is not None and block.is_contiguous():
            mapped.release(block)
    count = tensor.numel()
    rms = math.sqrt(squares / count) if count and not non_finite else math.nan
    return Statistics(count, non_finite, rms, low, high)


def _pieces(tensor: Tensor, most: int) -> Iterator[Tensor]:
    """Parts of at most ``most`` entries; a contiguous tensor is never copied."""
    if tensor.numel() == 0:
        return
    if tensor.numel() <= most:
        yield tensor
    elif tensor.is_contiguous():
        yield from torch.split(tensor.view(-1), most)
    else:
        # Short slices along the longest axis, each small enough or cut again.
        axis = max(range(tensor.dim()), key=lambda d: tensor.shape[d])
        width = max(1, most // (tensor.numel() // tensor.shape[axis]))
        for part in torch.split(tensor, width, dim=axis):
            yield from _pieces(part, most)
