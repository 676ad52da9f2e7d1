"""What kind of tensor this is, and whether its entries can be read as real numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from gnnstab.stored import stored

_PACKED = frozenset(filter(None, [getattr(torch, "float4_e2m1fn_x2", None)]))


def unreadable(tensor: Tensor) -> str:
    """Why the entries of a tensor are not real floating-point numbers at hand; ``""`` when they are."""
    if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
        return "uninitialised"
    if tensor.is_meta:
        return "meta (declared, not stored)"
    if tensor.is_quantized:
        return "quantized"
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_complex():
        return "complex"
    if tensor.dtype in _PACKED:
        return "of several numbers to a byte"
    if not tensor.is_floating_point():
        return "integer" if tensor.dtype != torch.bool else "boolean"
    return ""


def readable(tensor: Tensor) -> bool:
    """True for a dense tensor of real floating-point numbers."""
    return not unreadable(tensor)


def has_shape(tensor: Tensor) -> bool:
    """False for a tensor that torch does not tell the shape of: one that is not initialised yet, or nested."""
    return not unreadable(tensor).startswith(("uninit", "nested"))


def identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two tensors exactly when they are the same view of the same storage."""
    tensor = stored(tensor)
    return (
        tensor.untyped_storage().data_ptr(),
        tensor.storage_offset(),
        tensor.dtype,
        tuple(tensor.shape),
        tensor.stride(),
    )
