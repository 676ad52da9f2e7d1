"""Models of several kinds of nodes, and edge features that make scores alone: what goes wrong in one kind or one relation."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.nn import GATConv, GATv2Conv

from test_places import NODES, WIDTH, Net, data, loud, seeded
from test_places_gradient import FACES, Face, one
from truth.batches import hetero
from truth.networks import Hetero


def drawn(kind: str) -> Hetero:
    torch.manual_seed(4)
    return Hetero(kind)


@FACES
@pytest.mark.parametrize("kind", ["hgt", "gat"])
def test_units_that_are_closed_for_one_kind_of_nodes(face: Face, kind: str) -> None:
    """Relations that nothing reads are silent as well, and nobody's fault."""
    model = drawn(kind)
    nn.init.constant_(model.inp["item"].bias, -40.0)
    finding = one(face(model, hetero(0)), "GS701")
    assert finding.layer == "inp.item" and finding.cause == "dead-units"
    assert loud(face(drawn(kind), hetero(0))) == []


@FACES
@pytest.mark.parametrize("kind", [GATConv, GATv2Conv])
def test_edge_features_of_a_tree_have_no_part_to_play(face: Face, kind: type[nn.Module]) -> None:
    """They make scores and no messages, and the softmax over one neighbour is 1 whatever the score is."""
    convs = [kind(WIDTH, WIDTH, edge_dim=3, add_self_loops=False) for _ in range(2)]
    edges = torch.stack([torch.randint(0, NODES, (NODES,), generator=seeded(2)), torch.arange(NODES)])
    assert loud(face(Net(convs=convs), data(edge_index=edges, edge_attr=torch.randn(NODES, 3)))) == []
