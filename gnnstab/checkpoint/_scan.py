"""One pass over a tensor in pieces: RMS, extremes, and how many entries are not finite. Fast on one thread."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gnnstab.checkpoint._memory import MappedFiles
from gnnstab.stored import stored

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
    non_finite, squares, low, high = 0, 0.0, math.inf, -math.inf
    tensor = stored(tensor)
    kept = _stored(tensor)
    for block in _pieces(kept, BLOCK):
        for wide in _wide(block):
            smallest, largest = (float(x) for x in torch.aminmax(wide))
            if math.isfinite(smallest) and math.isfinite(largest):
                squares += float(wide.dot(wide))
                low, high = min(low, smallest), max(high, largest)
            else:
                non_finite += int(wide.numel() - torch.isfinite(wide).sum())
        if mapped is not None and block.is_contiguous():
            mapped.release(block)
    count, total = kept.numel(), tensor.numel() * (2 if tensor.is_complex() else 1)
    rms = math.sqrt(squares / count) if count and not non_finite else math.nan
    if math.isinf(rms):  # The squares of float64 overflow; the root of their mean does not.
        size = max(-low, high)
        rms = size * math.sqrt(sum(float((part / size).square().sum()) for part in _wide(kept)) / count)
    return Statistics(total, non_finite * (total // max(1, count)), rms, low, high)


def entries(tensor: Tensor) -> Iterator[Tensor]:
    """The real entries of a dense tensor in float64, some at a time, and once where a stride of 0 repeats them."""
    return _wide(_stored(tensor))


def finite(tensor: Tensor) -> bool:
    """True when every entry is."""
    return all(bool(torch.isfinite(part).all()) for part in entries(tensor))


def _wide(tensor: Tensor) -> Iterator[Tensor]:
    return (piece.double().reshape(-1) for piece in _pieces(tensor, PIECE))


def _stored(tensor: Tensor) -> Tensor:
    """What an expanded tensor repeats and a sparse one keeps, with real and imaginary parts as entries of their own."""
    tensor = stored(tensor).detach()
    for axis, step in enumerate(tensor.stride()):
        if step == 0 and tensor.shape[axis] > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


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
