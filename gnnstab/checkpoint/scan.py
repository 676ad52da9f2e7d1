"""One pass over a tensor in pieces: RMS, extremes, and how many entries are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gnnstab.checkpoint.memory import MappedFiles

PIECE = 2**20
"""Entries looked at at a time."""


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
    for piece in _pieces(tensor.detach()):
        wide = piece.double().reshape(-1)
        smallest, largest = (float(x) for x in torch.aminmax(wide))
        if math.isfinite(smallest) and math.isfinite(largest):
            squares += float(wide.dot(wide))
            low, high = min(low, smallest), max(high, largest)
        else:
            non_finite += int(wide.numel() - torch.isfinite(wide).sum())
        if mapped is not None and piece.is_contiguous():
            mapped.release(piece)
    count = tensor.numel()
    rms = math.sqrt(squares / count) if count and not non_finite else math.nan
    return Statistics(count, non_finite, rms, low, high)


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Parts of at most `PIECE` entries; a contiguous tensor is never copied."""
    if tensor.numel() == 0:
        return
    if tensor.numel() <= PIECE:
        yield tensor
    elif tensor.is_contiguous():
        yield from torch.split(tensor.view(-1), PIECE)
    else:
        # Short slices along the longest axis, each small enough or cut again.
        axis = max(range(tensor.dim()), key=lambda d: tensor.shape[d])
        width = max(1, PIECE // (tensor.numel() // tensor.shape[axis]))
        for part in torch.split(tensor, width, dim=axis):
            yield from _pieces(part)
