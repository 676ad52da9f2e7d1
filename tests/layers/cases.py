"""Layers of every kind in `LAYERS` with their variants, and what one call of each is given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.nn.models.attentive_fp import GATEConv

from gnnstab.layers import Layer, layer_named
from gnnstab.probe.attaching.softmax_tap import Tap
from listening import Listener

NODES, WIDTH, EDGE, EDGES, HYPEREDGES, HEADS = 12, 6, 3, 40, 5, 3
METADATA = (["a", "b"], [("a", "r", "b"), ("b", "s", "a"), ("a", "t", "b")])

Arguments = Callable[[], tuple[Any, ...]]


def edges(sources: int = NODES, targets: int = 9) -> Tensor:
    return torch.stack([torch.randint(0, sources, (EDGES,)), torch.randint(0, targets, (EDGES,))])


def plain() -> tuple[Any, ...]:
    return torch.randn(NODES, WIDTH), edges()


def bipartite() -> tuple[Any, ...]:
    return (torch.randn(NODES, WIDTH), torch.randn(9, 5)), edges()


def featured() -> tuple[Any, ...]:
    return (*plain(), torch.randn(EDGES, EDGE))


def related() -> tuple[Any, ...]:
    return (*plain(), torch.randint(0, 3, (EDGES,)))


def related_features() -> tuple[Any, ...]:
    return (*related(), torch.randn(EDGES, EDGE))


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


class Case(NamedTuple):
    """One configuration of a layer, and the arguments of one call."""

    name: str
    layer: Callable[..., Any]
    widths: tuple[Any, ...]
    options: Mapping[str, Any] = {}
    """Further arguments of the constructor; three heads where the kind has any."""

    given: Arguments = plain
    bare: bool = False
    """True for a layer without a term of the node itself, which GS402 names: of its graph a third of the nodes has no edge."""

    @property
    def kind(self) -> str:
        return str(self.layer.__name__)  # type: ignore[attr-defined]

    @property
    def adapter(self) -> Layer:
        return layer_named(self.kind)


WITHIN = {"attention_mechanism": "within-relation", "num_bases": 2}
PRODUCT = {"attention_mode": "multiplicative-self-attention", "dim": 2}

CASES = (
    Case("plain", pyg.TransformerConv, (WIDTH, 4)),
    Case("averaged", pyg.TransformerConv, (WIDTH, 4), {"concat": False}),
    Case("edges", pyg.TransformerConv, (WIDTH, 4), {"concat": False, "edge_dim": EDGE}, featured),
    Case("gate", pyg.TransformerConv, (WIDTH, 4), {"concat": False, "beta": True}),
    Case("no-bias", pyg.TransformerConv, (WIDTH, 4), {"concat": False, "bias": False}),
    Case("no-skip", pyg.TransformerConv, (WIDTH, 4), {"concat": False, "root_weight": False}),
    Case("dropout", pyg.TransformerConv, (WIDTH, 4), {"concat": False, "dropout": 0.5}),
    Case("bipartite", pyg.TransformerConv, ((WIDTH, 5), 4), {"concat": False}, bipartite),
    *(
        case
        for kind in (pyg.GATConv, pyg.GATv2Conv)
        for case in (
            Case("plain", kind, (WIDTH, 4)),
            Case("averaged", kind, (WIDTH, 4), {"concat": False}),
            Case("edges", kind, (WIDTH, 4), {"edge_dim": EDGE}, featured),
            Case("no-loops", kind, (WIDTH, 4), {"add_self_loops": False, "negative_slope": 0.1}),
            Case("residual", kind, (WIDTH, 4), {"residual": True, "concat": False}),
            Case("no-bias", kind, (WIDTH, 4), {"bias": False}),
            Case("dropout", kind, (WIDTH, 4), {"dropout": 0.5}),
        )
    ),
    Case("bipartite", pyg.GATConv, ((WIDTH, 5), 4), {"add_self_loops": False}, bipartite),
    Case("bipartite", pyg.GATv2Conv, ((WIDTH, 5), 4), {}, bipartite),
    Case("shared", pyg.GATv2Conv, (WIDTH, 4), {"share_weights": True}),
    Case("plain", pyg.SuperGATConv, (WIDTH, 4)),
    Case("product", pyg.SuperGATConv, (WIDTH, 4), {"attention_type": "SD", "concat": False}),
    Case("no-loops", pyg.SuperGATConv, (WIDTH, 4), {"add_self_loops": False, "dropout": 0.5}, bare=True),
    Case("plain", GATEConv, (WIDTH, WIDTH, EDGE), {}, featured, bare=True),
    Case("dropout", GATEConv, (WIDTH, WIDTH, EDGE), {"dropout": 0.5}, featured, bare=True),
    Case("plain", pyg.HGTConv, (WIDTH, 12, METADATA), {}, hetero()),
    Case("widths", pyg.HGTConv, ({"a": WIDTH, "b": 4}, 12, METADATA), {}, hetero((WIDTH, 4))),
    Case("residual", pyg.HGTConv, (WIDTH, WIDTH, METADATA), {}, hetero()),
    Case("plain", pyg.HANConv, (WIDTH, 12, METADATA), {}, hetero()),
    Case("widths", pyg.HANConv, ({"a": WIDTH, "b": 4}, 12, METADATA), {"dropout": 0.5}, hetero((WIDTH, 4))),
    Case("plain", pyg.RGATConv, (WIDTH, 4, 3), {}, related, bare=True),
    Case("within", pyg.RGATConv, (WIDTH, 4, 3), WITHIN, related, bare=True),
    Case("product", pyg.RGATConv, (WIDTH, 4, 3), PRODUCT, related, bare=True),
    Case("edges", pyg.RGATConv, (WIDTH, 4, 3), {"edge_dim": EDGE, "concat": False}, related_features, bare=True),
    Case("plain", pyg.AGNNConv, ()),
    Case("fixed", pyg.AGNNConv, (), {"requires_grad": False, "add_self_loops": False}),
    Case("plain", pyg.HEATConv, (WIDTH, 4, 2, 3, 5, EDGE, 4), {}, typed),
    Case("averaged", pyg.HEATConv, (WIDTH, 4, 2, 3, 5, EDGE, 4), {"concat": False, "bias": False}, typed),
    Case("plain", pyg.PointTransformerConv, (WIDTH, 4), {}, placed),
    Case("network", pyg.PointTransformerConv, (WIDTH, 4, None, nn.Linear(4, 4)), {"add_self_loops": False}, placed),
    Case("plain", pyg.GeneralConv, (WIDTH, 4), {"attention": True}),
    Case("product", pyg.GeneralConv, (WIDTH, 4, EDGE), {"attention": True, "attention_type": "dot_product"}, featured),
    Case("plain", pyg.HypergraphConv, (WIDTH, 4, True), {}, members),
    Case("edge", pyg.HypergraphConv, (WIDTH, 4, True, "edge"), {"concat": False, "dropout": 0.5}, members),
    Case("plain", pyg.SoftmaxAggregation, (0.5,), {}, rows),
    Case("learned", pyg.SoftmaxAggregation, (), {"learn": True, "channels": WIDTH}, rows),
    Case("pointers", pyg.SoftmaxAggregation, (), {"semi_grad": True}, pointers),
    Case("plain", pyg.AttentionalAggregation, (nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 4)), {}, rows),
    Case("network", pyg.AttentionalAggregation, (pyg.MLP([WIDTH, 4, 1]),), {}, rows),
    Case("plain", nn.MultiheadAttention, (WIDTH, HEADS), {}, dense()),
    Case("no-bias", nn.MultiheadAttention, (WIDTH, HEADS), {"bias": False, "dropout": 0.5}, dense()),
    Case("widths", nn.MultiheadAttention, (WIDTH, HEADS), {"kdim": 4, "vdim": 5}, dense(4, 5)),
)
"""The first of a kind is its plain variant; GENConv stands under SoftmaxAggregation, which is its aggregation."""

RECOMPUTED = [case for case in CASES if type(case.adapter).scores is not Layer.scores]
"""Of kinds whose adapters compute the scores once more from the weights."""

OTHERS = [case for case in CASES if case not in RECOMPUTED]


def made(case: Case) -> tuple[Any, tuple[Any, ...]]:
    """A layer and the arguments of one call, from a fixed seed."""
    torch.manual_seed(0)
    heads = {"heads": HEADS} if "heads" in case.adapter.defaults else {}
    layer = copy.deepcopy(case.layer(*case.widths, **heads, **case.options))  # Networks of the table stay as they are.
    if case not in RECOMPUTED:
        with torch.no_grad():
            for one in layer.parameters():
                one.uniform_(-0.5, 0.5)  # RGATConv leaves a parameter uninitialised.
    return layer, case.given()


def called(layer: Any, arguments: tuple[Any, ...]) -> Tensor:
    """The output, from a fixed random state."""
    torch.manual_seed(1)
    out = layer(*arguments)
    out = out[0] if isinstance(out, tuple) else out
    return torch.cat(list(out.values())) if isinstance(out, dict) else out


def watched(layer: Any, arguments: tuple[Any, ...]) -> tuple[Tensor, Listener]:
    """The output, and what a tap has shown of the call."""
    listener = Listener()
    tap = Tap.attach(layer, listener)
    output = called(layer, arguments)
    tap.detach(listener)
    return output, listener


def over(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Parameters of a test that runs over these cases."""
    return pytest.mark.parametrize("case", cases, ids=lambda c: f"{c.kind}-{c.name}")
