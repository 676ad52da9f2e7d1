"""Layers of every kind in `LAYERS`, for the tests that run over the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.nn import GATConv, GATv2Conv, TransformerConv

from layers.other_cases import EDGE, NODES, OTHERS, WIDTH, Arguments
from layers.other_cases import METADATA as METADATA

ADDITIVE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("plain", {}),
    ("averaged", {"concat": False}),
    ("edges", {"edge_dim": EDGE}),
    ("no-loops", {"add_self_loops": False, "negative_slope": 0.1}),
    ("residual", {"residual": True, "concat": False}),
    ("no-bias", {"bias": False}),
    ("dropout", {"dropout": 0.5}),
)
"""Options that GATConv and GATv2Conv share."""


class Case(NamedTuple):
    """One configuration of a layer."""

    name: str
    kind: str
    make: Callable[[], Any]
    edge_attr: bool = False
    bipartite: bool = False
    arguments: Arguments | None = None


def _conv(**options: Any) -> Callable[[], Any]:
    return lambda: TransformerConv(WIDTH, 4, heads=3, **options)


CASES = (
    Case("plain", "TransformerConv", _conv()),
    Case("averaged", "TransformerConv", _conv(concat=False)),
    Case("edges", "TransformerConv", _conv(concat=False, edge_dim=EDGE), edge_attr=True),
    Case("gate", "TransformerConv", _conv(concat=False, beta=True)),
    Case("no-bias", "TransformerConv", _conv(concat=False, bias=False)),
    Case("no-skip", "TransformerConv", _conv(concat=False, root_weight=False)),
    Case("dropout", "TransformerConv", _conv(concat=False, dropout=0.5)),
    Case("bipartite", "TransformerConv", lambda: TransformerConv((WIDTH, 5), 4, heads=3, concat=False), bipartite=True),
    *(
        Case(
            name,
            kind.__name__,
            lambda kind=kind, o=options: kind(WIDTH, 4, heads=3, **o),
            edge_attr="edge_dim" in options,
        )
        for kind in (GATConv, GATv2Conv)
        for name, options in ADDITIVE
    ),
    Case("bipartite", "GATConv", lambda: GATConv((WIDTH, 5), 4, heads=3, add_self_loops=False), bipartite=True),
    Case("bipartite", "GATv2Conv", lambda: GATv2Conv((WIDTH, 5), 4, heads=3), bipartite=True),
    Case("shared", "GATv2Conv", lambda: GATv2Conv(WIDTH, 4, heads=3, share_weights=True)),
    *(Case(name, kind, make, arguments=arguments) for name, kind, make, arguments in OTHERS),
)


def made(case: Case) -> tuple[Any, tuple[Any, ...]]:
    """A layer and the arguments of one call, from a fixed seed."""
    torch.manual_seed(0)
    layer = case.make()
    if case.arguments is not None:
        with torch.no_grad():
            for one in layer.parameters():
                one.uniform_(-0.5, 0.5)  # RGATConv leaves a parameter uninitialised.
        return layer, case.arguments()
    edges = torch.stack([torch.randint(0, NODES, (40,)), torch.randint(0, 9, (40,))])
    x: Any = torch.randn(NODES, WIDTH)
    if case.bipartite:
        x = (x, torch.randn(9, 5))
    edge_attr = torch.randn(40, EDGE) if case.edge_attr else None
    return layer, (x, edges) if edge_attr is None else (x, edges, edge_attr)


def called(layer: Any, arguments: tuple[Any, ...]) -> Tensor:
    """The output, from a fixed random state."""
    torch.manual_seed(1)
    out = layer(*arguments)
    out = out[0] if isinstance(out, tuple) else out
    return torch.cat(list(out.values())) if isinstance(out, dict) else out
