"""Which rows of a padded batch are real, by a mask or by lengths that the batch holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from gnnstab.probe.batches.roles import is_target
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


class Filled(NamedTuple):
    """Rows of a batch that only fill its graphs up."""

    mask: str
    """Name of the tensor that tells them; empty where they are rows of zeros, and all graphs have one size."""

    real: Tensor
    """Bool (nodes,), True for all other rows."""

    graphs: Tensor

    def taken_out(self, tensor: Tensor) -> Tensor:
        """A tensor of the batch without these rows: numbers of nodes, edge lists and where graphs begin count the others alone."""
        if tensor.dim() == 2 and len(tensor) == 2 and tensor.dtype == torch.int64:
            return (self.real.cumsum(0) - 1)[tensor]
        if tensor.dim() == 1 and torch.equal(tensor, _begin(self.graphs).to(tensor)):
            return _begin(self.graphs[self.real]).to(tensor)
        return tensor[self.real] if tensor.dim() and len(tensor) == len(self.real) else tensor


def filled_rows(named: Mapping[str, Tensor]) -> Filled | None:
    """The rows of a batch, of several graphs in one list, that fill these up; None where there are none.

    They differ in nothing, no edge leads to or from them, their number differs between the graphs, each of which has others; and a boolean
    tensor of the batch tells just them, or they are zeros and all graphs have one size.
    """
    last = {name: name.rpartition(".")[2] for name in named}
    graphs = next((t for n, t in named.items() if last[n] == "batch" and t.dim() == 1 and t.dtype == torch.int64), None)
    edges = [t for n, t in named.items() if last[n] == "edge_index" and t.dim() == 2 and len(t) == 2]
    if any(t.layout is not torch.strided or t.is_quantized for t in named.values()):
        return None
    if graphs is None or not edges or len(graphs) < 2 or int(graphs.min()) < 0 or int(graphs.max()) + 1 >= len(graphs):
        return None
    nodes = len(graphs)
    own = [
        t for n, t in named.items() if t.is_floating_point() and t.dim() > 1 and len(t) == nodes and not is_target(n)
    ]
    if not own or nodes in {2, *(t.shape[1] for t in edges)}:
        return None
    touched = torch.zeros(nodes, dtype=torch.bool, device=graphs.device)
    for ends in edges:
        touched[ends.flatten()] = True
    marks = {n: t for n, t in named.items() if t.dtype == torch.bool and t.shape == (nodes,)}
    ways = [(name, ~mask if says_closed(name) else mask) for name, mask in marks.items()]
    sizes = torch.bincount(graphs)
    if bool((sizes == sizes[0]).all()):
        ways.append(("", torch.stack([t.flatten(1).any(1) for t in own]).any(0) | touched))
    for name, real in ways:
        left = torch.bincount(graphs[real], minlength=len(sizes))
        ragged = bool((left > 0).all()) and bool((sizes - left != sizes[0] - left[0]).any())
        if ragged and not bool(touched[~real].any()) and all(bool((t[~real] == t[~real][:1]).all()) for t in own):
            return Filled(name, real.to(graphs.device), graphs)
    return None


def _begin(graphs: Tensor) -> Tensor:
    """Where each graph begins and the last one ends."""
    return torch.nn.functional.pad(torch.bincount(graphs).cumsum(0), (1, 0))


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
