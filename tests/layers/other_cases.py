"""Layers whose attention is watched in a model: every kind with its variants, and what one call of it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

NODES, WIDTH, EDGE, EDGES, HYPEREDGES = 12, 6, 3, 40, 5
METADATA = (["a", "b"], [("a", "r", "b"), ("b", "s", "a"), ("a", "t", "b")])

Arguments = Callable[[], tuple[Any, ...]]


def edges(sources: int = NODES, targets: int = 9) -> Tensor:
    return torch.stack([torch.randint(0, sources, (EDGES,)), torch.randint(0, targets, (EDGES,))])


def plain() -> tuple[Any, ...]:
    return torch.randn(NODES, WIDTH), edges()


def related() -> tuple[Any, ...]:
    return (*plain(), torch.randint(0, 3, (EDGES,)))


def related_features() -> tuple[Any, ...]:
    return (*related(), torch.randn(EDGES, EDGE))


def featured() -> tuple[Any, ...]:
    return (*plain(), torch.randn(EDGES, EDGE))


def typed() -> tuple[Any, ...]:
    x, index = plain()
    kinds, relations = torch.randint(0, 2, (NODES,)), torch.randint(0, 3, (EDGES,))
    return x, index, kinds, relations, torch.randn(EDGES, EDGE)


def placed() -> tuple[Any, ...]:
    x, index = plain()
    return x, torch.randn(NODES, 3), index


def members() -> tuple[Any, ...]:
    return torch.randn(NODES, WIDTH), edges(NODES, HYPEREDGES), None, torch.randn(HYPEREDGES, WIDTH)


def rows() -> tuple[Any, ...]:
    return torch.randn(NODES, WIDTH), torch.arange(NODES) // 4


def pointers() -> tuple[Any, ...]:
    return torch.randn(NODES, WIDTH), None, torch.tensor([0, 3, 3, NODES])


def hetero(widths: tuple[int, int] = (WIDTH, WIDTH)) -> Arguments:
    def arguments() -> tuple[Any, ...]:
        x = {"a": torch.randn(NODES, widths[0]), "b": torch.randn(9, widths[1])}
        sizes = {"a": NODES, "b": 9}
        return x, {one: edges(sizes[one[0]], sizes[one[2]]) for one in METADATA[1]}

    return arguments


def dense(key: int = WIDTH, value: int = WIDTH) -> Arguments:
    return lambda: (torch.randn(NODES, WIDTH), torch.randn(9, key), torch.randn(9, value))


def gate() -> nn.Module:
    return nn.Linear(WIDTH, 1)


OTHERS: tuple[tuple[str, str, Callable[[], Any], Arguments], ...] = (
    ("plain", "SuperGATConv", lambda: pyg.SuperGATConv(WIDTH, 4, heads=3), plain),
    ("product", "SuperGATConv", lambda: pyg.SuperGATConv(WIDTH, 4, heads=3, attention_type="SD", concat=False), plain),
    ("no-loops", "SuperGATConv", lambda: pyg.SuperGATConv(WIDTH, 4, heads=3, add_self_loops=False, dropout=0.5), plain),
    ("plain", "HGTConv", lambda: pyg.HGTConv(WIDTH, 12, METADATA, heads=3), hetero()),
    ("widths", "HGTConv", lambda: pyg.HGTConv({"a": WIDTH, "b": 4}, 12, METADATA, heads=3), hetero((WIDTH, 4))),
    ("residual", "HGTConv", lambda: pyg.HGTConv(WIDTH, WIDTH, METADATA, heads=3), hetero()),
    ("plain", "HANConv", lambda: pyg.HANConv(WIDTH, 12, METADATA, heads=3), hetero()),
    (
        "widths",
        "HANConv",
        lambda: pyg.HANConv({"a": WIDTH, "b": 4}, 12, METADATA, heads=3, dropout=0.5),
        hetero((WIDTH, 4)),
    ),
    ("plain", "RGATConv", lambda: pyg.RGATConv(WIDTH, 4, 3, heads=3), related),
    (
        "within",
        "RGATConv",
        lambda: pyg.RGATConv(WIDTH, 4, 3, heads=3, attention_mechanism="within-relation", num_bases=2),
        related,
    ),
    (
        "product",
        "RGATConv",
        lambda: pyg.RGATConv(WIDTH, 4, 3, heads=3, attention_mode="multiplicative-self-attention", dim=2),
        related,
    ),
    ("edges", "RGATConv", lambda: pyg.RGATConv(WIDTH, 4, 3, heads=3, edge_dim=EDGE, concat=False), related_features),
    ("plain", "AGNNConv", lambda: pyg.AGNNConv(), plain),
    ("fixed", "AGNNConv", lambda: pyg.AGNNConv(requires_grad=False, add_self_loops=False), plain),
    ("plain", "HEATConv", lambda: pyg.HEATConv(WIDTH, 4, 2, 3, 5, EDGE, 4, heads=3), typed),
    (
        "averaged",
        "HEATConv",
        lambda: pyg.HEATConv(WIDTH, 4, 2, 3, 5, EDGE, 4, heads=3, concat=False, bias=False, dropout=0.5),
        typed,
    ),
    ("plain", "PointTransformerConv", lambda: pyg.PointTransformerConv(WIDTH, 4), placed),
    (
        "network",
        "PointTransformerConv",
        lambda: pyg.PointTransformerConv(WIDTH, 4, attn_nn=nn.Linear(4, 4), add_self_loops=False),
        placed,
    ),
    ("plain", "GeneralConv", lambda: pyg.GeneralConv(WIDTH, 4, attention=True, heads=3), plain),
    (
        "product",
        "GeneralConv",
        lambda: pyg.GeneralConv(WIDTH, 4, EDGE, attention=True, heads=3, attention_type="dot_product"),
        featured,
    ),
    ("plain", "HypergraphConv", lambda: pyg.HypergraphConv(WIDTH, 4, use_attention=True, heads=3), members),
    (
        "edge",
        "HypergraphConv",
        lambda: pyg.HypergraphConv(
            WIDTH, 4, use_attention=True, heads=3, attention_mode="edge", concat=False, dropout=0.5
        ),
        members,
    ),
    ("plain", "SoftmaxAggregation", lambda: pyg.SoftmaxAggregation(t=0.5), rows),
    ("learned", "SoftmaxAggregation", lambda: pyg.SoftmaxAggregation(learn=True, channels=WIDTH), rows),
    ("pointers", "SoftmaxAggregation", lambda: pyg.SoftmaxAggregation(semi_grad=True), pointers),
    ("plain", "AttentionalAggregation", lambda: pyg.AttentionalAggregation(gate(), nn.Linear(WIDTH, 4)), rows),
    ("network", "AttentionalAggregation", lambda: pyg.AttentionalAggregation(pyg.MLP([WIDTH, 4, 1])), rows),
    ("plain", "MultiheadAttention", lambda: nn.MultiheadAttention(WIDTH, 3), dense()),
    ("no-bias", "MultiheadAttention", lambda: nn.MultiheadAttention(WIDTH, 3, bias=False, dropout=0.5), dense()),
    ("widths", "MultiheadAttention", lambda: nn.MultiheadAttention(WIDTH, 3, kdim=4, vdim=5), dense(4, 5)),
)
"""(name, kind, layer, arguments of one call); GENConv stands under SoftmaxAggregation, which is its aggregation."""
