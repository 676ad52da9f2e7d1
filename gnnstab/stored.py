"""The numbers that a tensor keeps in memory, whatever its layout."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_INDICES = 16
"""Bytes of the two indices that a sparse layout keeps to an entry, at most."""


def stored(tensor: Tensor) -> Tensor:
    """The entries that are kept, as a dense tensor: of a sparse one without the zeros that it leaves out, of a nested one all together, of a quantised one integers.

    A dense tensor is returned as it is, with its history; of another one the numbers alone.
    """
    if tensor.is_quantized:
        return tensor.int_repr()
    if tensor.layout is torch.strided and not tensor.is_nested:
        return tensor
    tensor = tensor.detach()
    if tensor.layout is torch.sparse_coo:
        return tensor.coalesce().values()
    known = tensor.is_nested or str(tensor.layout).startswith("torch.sparse_")
    numbers: Tensor = tensor.values() if known else tensor.to_dense()
    return numbers


def readable(tensor: Tensor) -> Tensor:
    """The tensor, in float32 where its format has a byte, in complex64 where it has two halves: torch neither adds up such formats nor asks whether they are finite."""
    if tensor.dtype is torch.complex32:
        return tensor.to(torch.complex64)
    return tensor.float() if tensor.itemsize == 1 and tensor.is_floating_point() else tensor


def is_dense(tensor: Tensor) -> bool:
    """True for floating-point numbers that stand in one block of memory, each at its place."""
    return tensor.is_floating_point() and tensor.layout is torch.strided and not tensor.is_nested


def is_finite(tensor: Tensor) -> bool:
    """True for a tensor without NaN and Inf, and for one of integers or without numbers at hand."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
        return True
    numbers = readable(stored(tensor.detach()))
    # One pass without a copy; only a sum may overflow although every entry is finite.
    return not numbers.numel() or bool(numbers.sum().isfinite()) or bool(numbers.isfinite().all())


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes that copies of the tensors take, at most."""
    return sum(map(_bytes, tensors))


def _bytes(tensor: Tensor) -> int:
    kept = stored(tensor)
    return (kept.element_size() + (0 if kept is tensor else _INDICES)) * kept.numel()
