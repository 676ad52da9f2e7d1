"""`gnnstab.attention`: the numbers that PyG itself returns, on the edges that were given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GATv2Conv, GPSConv, SAGEConv, TransformerConv

import gnnstab
from gnnstab.errors import UsageError
from probe.layers.generic_models import NODES, WIDTH, Dense, InMessage, Net, graph

HEADS = 2


@pytest.mark.parametrize("kind", [TransformerConv, GATConv, GATv2Conv])
def test_it_is_what_the_layer_returns_in_the_order_of_its_edges(kind: Any) -> None:
    x, edges, _ = graph()
    torch.manual_seed(0)
    layer = kind(WIDTH, 4, heads=HEADS, dropout=0.5)
    (seen,) = gnnstab.attention(layer, (x, edges))
    _, (index, alpha) = layer.eval()(x, edges, return_attention_weights=True)
    assert torch.equal(torch.stack([seen.source, seen.target]), index)
    assert torch.equal(seen.attention, alpha)
    assert (seen.layer, seen.kind, seen.call, tuple(seen.score.shape)) == (kind.__name__, kind.__name__, 0, alpha.shape)
    if kind is TransformerConv:
        assert torch.equal(index, edges)


def test_a_layer_of_another_class() -> None:
    x, edges, _ = graph()
    torch.manual_seed(0)
    layer = InMessage().double()
    (seen,) = gnnstab.attention(layer, {"x": x.double(), "edge_index": edges})
    assert torch.allclose(seen.score, layer.scores(x.double(), edges), rtol=1e-12)
    assert seen.source is not None
    assert torch.equal(torch.stack([seen.source, seen.target]), edges)


@pytest.mark.parametrize("way", ["method", "fused"])
def test_dense_attention_is_a_list_of_pairs(way: str) -> None:
    x = graph()[0].double()
    torch.manual_seed(0)
    layer = Dense(way).double()
    (seen,) = gnnstab.attention(layer, (x,))
    weights = torch.zeros(2, NODES, NODES, dtype=torch.float64)
    weights[:, seen.target, seen.source] = seen.attention.T
    assert len(seen.target) == 10 * NODES
    assert torch.allclose(weights, layer.scores(x).softmax(-1), rtol=1e-12)


def test_keys_are_counted_through_the_graphs_of_a_dense_batch() -> None:
    torch.manual_seed(0)
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True).double(), torch.randn(3, 5, 8).double()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
    (seen,) = gnnstab.attention(layer, {"query": x, "key": x, "value": x, "key_padding_mask": padding})
    expected = layer.eval()(x, x, x, key_padding_mask=padding, average_attn_weights=False)[1]
    weights = torch.zeros(2, 15, 15, dtype=torch.float64)
    weights[:, seen.target, seen.source] = seen.attention.T
    for one in range(3):
        part = slice(5 * one, 5 * one + 5)
        assert torch.allclose(weights[:, part, part], expected[one], rtol=1e-10)
    assert torch.allclose(weights.sum(), torch.tensor(30.0).double())


def test_every_call_of_every_layer_and_the_model_as_it_was() -> None:
    x, edges, _ = graph()
    torch.manual_seed(0)
    model = Net(GPSConv(WIDTH, GATConv(WIDTH, WIDTH), heads=4)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    seen = gnnstab.attention(model, [(x, edges), (x, edges)])
    assert [(one.layer, one.call) for one in seen] == [
        (name, call) for call in (0, 1) for name in ("first", "layer.conv", "layer.attn")
    ]
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(not one.score.requires_grad for one in seen)


def test_what_cannot_be_shown_is_said() -> None:
    x, edges, _ = graph()
    with pytest.raises(UsageError, match="no attention was seen in SAGEConv; it calls no softmax"):
        gnnstab.attention(SAGEConv(WIDTH, 4), (x, edges))
    with pytest.raises(UsageError, match="the forward of GATConv failed on the batch"):
        gnnstab.attention(GATConv(3, 4), (x, edges))
    with pytest.raises(UsageError, match="batch of type int"):
        gnnstab.attention(GATConv(3, 4), 3)


class Scales(nn.Module):
    """Writes into what it is given: a tensor, an array, and a number of an object."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = GATConv(4, 4)

    def forward(self, x: Tensor, edge_index: Tensor, beside: Any) -> Tensor:
        x.mul_(1.5)
        beside["array"] *= 2
        beside["seen"].count += 1
        out: Tensor = self.conv(x, edge_index)
        return out


def test_what_a_forward_writes_into_stays_the_users() -> None:
    x, edges = torch.ones(3, 4), torch.tensor([[0, 1], [1, 2]])
    beside = {"array": np.ones(2), "seen": SimpleNamespace(count=0)}
    assert len(gnnstab.attention(Scales(), (x, edges, beside))) == 1
    assert bool((x == 1).all()) and list(beside["array"]) == [1, 1] and beside["seen"].count == 0
