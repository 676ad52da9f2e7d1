"""Names of the tensors of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData

from gnnstab.probe.attaching.stand_in import StandIn
from gnnstab.probe.batches.named_tensors import named_tensors

X, EDGES = torch.ones(3, 2), torch.tensor([[0, 1], [1, 2]])


class Net(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor, *, weights: Tensor | None = None) -> Tensor:
        return x


def test_a_data_gives_its_own_names() -> None:
    data = Data(x=X, edge_index=EDGES, y=torch.zeros(3), train_mask=torch.ones(3, dtype=torch.bool), name="no tensor")
    assert set(named_tensors((data,))) == {"x", "edge_index", "y", "train_mask"}
    assert named_tensors((data,))["x"] is data.x


def test_a_data_beside_another_argument_keeps_its_name() -> None:
    data = Data(x=X, edge_index=EDGES)
    assert set(named_tensors((data, X))) == {"0.x", "0.edge_index", "1"}


def test_kinds_of_nodes_and_edges() -> None:
    data = HeteroData()
    data["paper"].x = X
    data["author", "writes", "paper"].edge_index = EDGES
    assert set(named_tensors((data,))) == {"paper.x", "author__writes__paper.edge_index"}
    assert set(named_tensors((), {"x_dict": {"paper": X}, "edges": {("a", "to", "b"): EDGES}})) == {
        "x_dict.paper",
        "edges.a__to__b",
    }


def test_positional_arguments_are_called_as_the_forward_calls_them() -> None:
    assert list(named_tensors((X, EDGES), {"weights": X}, Net())) == ["x", "edge_index", "weights"]
    assert list(named_tensors((X, EDGES))) == ["0", "1"]


def test_containers_within_containers() -> None:
    assert list(named_tensors(({"a": [X, {"b": X}], "c": 3},))) == ["a.0", "a.1.b"]
    assert list(named_tensors(((X, EDGES),))) == ["0", "1"]
    assert named_tensors() == {}


def test_a_single_positional_tensor_has_a_name() -> None:
    assert list(named_tensors((X,), model=Net())) == ["x"]


def test_a_watched_forward_still_says_what_it_takes() -> None:
    class Where(nn.Module):
        def forward(self, x: Tensor, pos: Tensor) -> Tensor:
            return x + pos

    model = Where()
    stand_in = StandIn(model)
    stand_in.put()
    assert list(named_tensors((torch.zeros(2), torch.ones(2)), model=model)) == ["x", "pos"]
    stand_in.remove()
