"""What a tensor of the batch means: measured values, or ids, counts, masks and one-hot columns, whose size says nothing."""

from __future__ import annotations

import torch
from torch import Tensor

TARGETS = ("y", "target", "targets", "label", "labels", "reward", "rewards", "returns")
"""Last parts of the names under which a batch holds what the output is compared with."""


LARGE = 4.0
"""RMS or |mean| / deviation of a column from which it deviates: an input of RMS 4 gives 16 times the logits of one of RMS 1."""


SMALL = 0.01
"""RMS of a whole tensor below which its numbers vanish beside the biases that they are added to, which are of the size of the weights."""


def columns(tensor: Tensor) -> Tensor:
    """(rows, columns) view of a tensor of any shape in float64: the last dimension is the columns, a vector is one column."""
    flat = tensor.detach().reshape(-1, 1) if tensor.dim() < 2 else tensor.detach().flatten(0, -2)
    return flat.double()


def value_columns(tensor: Tensor) -> Tensor:
    """Bool mask (columns,) of those that hold measured values.

    Not those of integer or boolean tensors, and not those whose finite entries are all whole numbers: ids, indices, counts,
    masks, one-hot codes. A constant column of a fraction is a value.
    """
    flat = columns(tensor)
    if not tensor.is_floating_point() or not flat.numel():
        return torch.zeros(flat.shape[1], dtype=torch.bool, device=flat.device)
    return ((flat != flat.round()) & flat.isfinite()).any(0)


def is_target(name: str) -> bool:
    """True when the name of a tensor says that the output is compared with it."""
    return name.rsplit(".", 1)[-1].lower() in TARGETS


def standardised(tensor: Tensor, chosen: Tensor | None = None) -> Tensor:
    """(rows, columns) with mean 0 and deviation 1 in the ``chosen`` columns (all when omitted); a constant one is scaled, not removed."""
    part = tensor.detach() if chosen is None else tensor.detach()[:, chosen]
    values = part.double()
    deviation, largest = values.std(0, unbiased=False, keepdim=True), values.abs().amax()
    deviation = torch.where(deviation > 1e-6 * values.abs().amax(0, keepdim=True), deviation, largest)
    made = ((values - values.mean(0, keepdim=True)) / deviation.clamp(min=1e-12)).to(tensor.dtype)
    if chosen is None:
        return made
    changed = tensor.detach().clone()
    changed[:, chosen] = made
    return changed


def deviating(tensor: Tensor, *, whole: bool, small: bool = False) -> Tensor | None:
    """The columns (n,) of features (N, D) of real numbers that are large or far from zero; None when there is none.

    With ``small`` all of a tensor whose RMS is below `SMALL`. Columns of whole numbers are ids, counts, masks or one-hot codes, whose size says nothing; with ``whole`` a weight multiplies them.
    """
    if tensor.layout is not torch.strided or not tensor.is_floating_point() or tensor.dim() != 2:
        return None
    if tensor.shape[0] < 2 or not tensor.numel():
        return None
    values = tensor.detach().double()
    size, spread = values.square().mean(0).sqrt(), values.std(0)
    counted = (values == values.round()).all(0) & (not whole)
    tiny = small and bool(size.isfinite().all()) and float(size.square().mean().sqrt()) < SMALL
    off = ((size > LARGE) | tiny) & ~counted & torch.isfinite(size) & (spread > 0)
    return off.nonzero().flatten() if bool(off.any()) else None
