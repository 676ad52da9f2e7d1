"""Real layer calls for the tests of the statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.nn import TransformerConv

from gnnstab.layers import Call

Made = tuple[Call, TransformerConv]


def record(conv: TransformerConv, x: Any, edge_index: Tensor, edge_attr: Tensor | None = None) -> Call:
    """Run the layer and keep what it computed, the scores by the textbook formula."""
    source, target = x if isinstance(x, tuple) else (x, x)
    taken: dict[str, Tensor] = {}
    handles = [
        conv.register_message_forward_pre_hook(lambda _, inputs: taken.update(inputs[0])),
        conv.register_aggregate_forward_hook(lambda _, __, out: taken.update(aggregate=out)),
    ]
    gates: list[Tensor] = []
    if conv.lin_beta is not None:
        handles.append(conv.lin_beta.register_forward_hook(lambda _, __, out: gates.append(out.sigmoid())))
    with torch.no_grad():
        output, (_, attention) = conv(x, edge_index, edge_attr, return_attention_weights=True)
        key = taken["key_j"]
        if conv.lin_edge is not None:
            key = key + conv.lin_edge(edge_attr).view(-1, conv.heads, conv.out_channels)
        score = (taken["query_i"] * key).sum(-1) / conv.out_channels**0.5
    for handle in handles:
        handle.remove()
    aggregate = taken["aggregate"].detach()
    message = aggregate.flatten(1) if conv.concat else aggregate.mean(1)
    gate = gates[0] if gates else None
    return Call(source, target, edge_index[0], edge_index[1], edge_attr, score, attention, output, gate, message)


def make_call(seed: int = 0, nodes: int = 20, edges: int = 70, scale: float = 1.0, **options: Any) -> Made:
    """One call of a TransformerConv on a random graph (multi-edges and isolated nodes occur)."""
    torch.manual_seed(seed)
    options = {"heads": 3, "concat": False, "edge_dim": 2, **options}
    conv = TransformerConv(5, 4, **options)
    edge_attr = torch.randn(edges, 2) if options["edge_dim"] else None
    return record(conv, scale * torch.randn(nodes, 5), torch.randint(0, nodes, (2, edges)), edge_attr), conv


@pytest.fixture(scope="session")
def made() -> Callable[..., Made]:
    return make_call


@pytest.fixture(scope="session")
def recorded() -> Callable[..., Call]:
    return record
