"""Which rows of a padded batch are real, by a mask or by lengths that the batch holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gnnstab.records.vocabulary import PLACE_PADDED_SPREAD
from gnnstab.torch_private import BatchNorm

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

_CLOSED = (
    "pad", "hidden", "ignore", "absent", "empty", "block", "forbid", "closed", "missing", "invalid", "invisible", "not_",
)  # fmt: skip
"""Parts of a name that say that True stands for padding, or for what must not be read."""

_OPEN = ("real", "valid", "present", "exist", "keep", "visible", "allow", "adj", "open", "connect")
"""Parts of a name that say that True stands for what may be read."""

_COUNTS = ("len", "count", "size", "num_", "n_")
"""Parts of a name under which a batch holds how many rows of a set are real."""


def rows(seen: ForwardView) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """For each BatchNorm that is given padded rows as well: the spread of the real rows over that of all, median over channels."""
    found = padding_mask(seen.batch)
    if found is None:
        return
    name, real = found
    for call in seen.calls.all:
        given = _rows_of(call.entering[0], real) if isinstance(call.module, BatchNorm) and call.entering else None
        if given is not None and len(given) > 1:
            flat, kept = given.double(), real.flatten()
            share = flat[kept].std(0, correction=0) / flat.std(0, correction=0)
            if bool(share.isfinite().all()):
                padding = 1.0 - float(real.double().mean())
                yield PLACE_PADDED_SPREAD, call.name, float(share.median()), {"mask": name, "padding": padding}


def _rows_of(tensor: Tensor, real: Tensor) -> Tensor | None:
    """(sets·rows, channels) of what a BatchNorm is given: flattened, or channels before rows; None for anything else."""
    if tensor.dim() == 2 and len(tensor) == real.numel():
        return tensor.detach()
    if tensor.dim() == 3 and (tensor.shape[0], tensor.shape[2]) == tuple(real.shape):
        return tensor.detach().transpose(1, 2).flatten(0, 1)
    return None


def padding_mask(named: Mapping[str, Tensor]) -> tuple[str, Tensor] | None:
    """(name, bool mask (sets, rows), True for real rows) of a batch of padded sets; None where no tensor says so.

    A mask counts where the real rows of every set stand together at one end, their number differs between sets, and another tensor
    holds measured values for the same sets and rows: that tells padding from actions that are forbidden and from labels left out.
    """
    shapes = {tuple(t.shape[:2]) for t in named.values() if t.is_floating_point() and t.dim() >= 3}
    for name, tensor in named.items():
        last = name.rpartition(".")[2].lower()
        real: Tensor | None = None
        if tensor.dim() == 2 and tuple(tensor.shape) in shapes and is_binary(tensor):
            real = tensor == 0 if says_closed(name) else tensor != 0
        elif tensor.dim() == 1 and not tensor.is_floating_point() and any(word in last for word in _COUNTS):
            width = next((w for s, w in shapes if s == len(tensor)), 0)
            if width and tensor.numel() and bool((tensor >= 0).all()) and int(tensor.max()) <= width:
                real = torch.arange(width, device=tensor.device) < tensor[:, None]
        if real is not None and _is_ragged(real):
            return name, real
    return None


def says_closed(name: str) -> bool:
    """True for the name of a mask that marks padding, or what must not be read."""
    return any(word in name.rpartition(".")[2].lower() for word in _CLOSED)


def says_open(name: str) -> bool:
    """True for the name of a mask that marks what is real, or may be read."""
    return not says_closed(name) and any(word in name.rpartition(".")[2].lower() for word in _OPEN)


def is_binary(tensor: Tensor) -> bool:
    """True for booleans, and for numbers that are all 0 or 1."""
    return tensor.dtype == torch.bool or bool(((tensor == 0) | (tensor == 1)).all())


def _is_ragged(real: Tensor) -> bool:
    sets, width = real.shape
    sizes = real.sum(1)
    if sets < 2 or sets == width or int(sizes.min()) < 1 or bool((sizes == sizes[0]).all()):
        return False
    steps = real.int().diff(dim=1)
    return bool((steps <= 0).all()) or bool((steps >= 0).all())
