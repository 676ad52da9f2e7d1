"""Poolings that add up the nodes of a graph: seen where PyG's ``global_add_pool`` reduces, and turned into means for a trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn.pool import glob
from torch_geometric.utils import scatter

_SUMS = ("sum", "add")


@contextmanager
def poolings_watched(*, mean: bool = False) -> Iterator[list[int]]:
    """Inside, the number of nodes of the largest graph of every pooling by a sum is noted; ``mean`` has it take the mean."""
    seen: list[int] = []

    def watched(src: Tensor, index: Tensor, *args: Any, reduce: str = "sum", **kwargs: Any) -> Tensor:
        if reduce in _SUMS and index.numel():
            seen.append(int(torch.bincount(index).max()))
            reduce = "mean" if mean else reduce
        result: Tensor = scatter(src, index, *args, reduce=reduce, **kwargs)
        return result

    before, glob.scatter = glob.scatter, watched
    try:
        yield seen
    finally:
        glob.scatter = before
