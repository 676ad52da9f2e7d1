"""Programs that weigh edges by a softmax, of which a mask takes the self-loops as well; the mended ones leave them open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric.utils import softmax

from models.programs import NODES, Net, Program, batch, mse

SOURCES, TARGETS = torch.arange(NODES).repeat(NODES), torch.arange(NODES).repeat_interleave(NODES)


def _whole(scores: Tensor, index: Tensor, num_nodes: int) -> Tensor:
    return softmax(scores, index, num_nodes=num_nodes)


def _in_parts(scores: Tensor, index: Tensor, num_nodes: int) -> Tensor:
    weights = torch.exp(scores)
    return weights / torch.zeros(num_nodes).index_add(0, index, weights)[index]


def _of_earlier(broken: bool, weigh: Callable[..., Tensor]) -> Callable[[Tensor, Any], Tensor]:
    """Each node reads those before it, and of these alone the first one has none."""

    def end(out: Tensor, data: Any) -> Tensor:
        late = SOURCES >= TARGETS if broken else SOURCES > TARGETS
        scores = (out[SOURCES] * out[TARGETS]).sum(-1).masked_fill(late, float("-inf"))
        weights = weigh(scores, TARGETS, NODES)
        return torch.zeros_like(out).index_add(0, TARGETS, weights[:, None] * out[SOURCES])

    return end


def _program(weigh: Callable[..., Tensor], operation: str, says: str) -> Program:
    return Program(
        lambda broken: Net(end=_of_earlier(broken, weigh)), lambda broken: batch(), lambda broken: mse,
        operation, "masking", "model", rf"every score of a target is −inf.*at 12 of 144 entries: {says}.*self-loop",
    )  # fmt: skip


EDGE_PROGRAMS = {
    "a mask of edges that takes the self-loops": _program(_whole, "sub", r"−inf − \(−inf\) = NaN"),
    "exponentials of edges that a mask takes": _program(_in_parts, "div", "0 / 0 = NaN"),
}
