"""Where a tensor of the batch holds what is not finite: row, column and graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from gnnstab.probe.operations._naming import TensorNames

NAN = float("nan")


def spoilt(shape: tuple[int, ...], *places: tuple[int, ...]) -> Tensor:
    tensor = torch.zeros(shape)
    for place in places:
        tensor[place] = NAN
    return tensor


def graphs(*places: tuple[int, int]) -> Batch:
    """Three graphs of four nodes each, with NaN at these places of the twelve rows."""
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    batch = Batch.from_data_list([Data(x=torch.zeros(4, 3), edge_index=edges) for _ in range(3)])
    batch.x = spoilt((12, 3), *places)
    return batch


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (spoilt((9, 4), (5, 2)), "`x` holds NaN in row 5, column 2"),
        (spoilt((9, 4), (5, 2), (7, 3)), "`x` holds NaN in rows 5, 7, columns 2, 3"),
        (spoilt((9, 4), *((5, column) for column in range(4))), "`x` holds NaN in row 5"),
        (spoilt((9, 8), *((5, column) for column in range(6))), "`x` holds NaN in row 5"),
        (spoilt((9,), (5,)), "`x[5]` holds NaN"),
        (spoilt((9, 2, 2), (5, 1, 0)), "`x` holds NaN in row 5"),
    ],
)
def test_a_column_is_told_where_not_all_hold_it(x: Tensor, said: str) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    (found,) = TensorNames(Model(), (x,)).non_finite()
    assert found.words == said


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ([(6, 1)], "`x` holds NaN in row 6, column 1 (graph 1)"),
        ([(0, 1), (11, 1)], "`x` holds NaN in rows 0, 11, column 1 (graphs 0, 2)"),
        ([], None),
    ],
)
def test_the_graph_of_a_row_is_told_where_the_batch_knows_it(places: list[tuple[int, int]], said: str | None) -> None:
    class Model(nn.Module):
        def forward(self, data: Batch) -> Tensor:
            return data.x

    found = TensorNames(Model(), (graphs(*places),)).non_finite()
    assert [one.words for one in found] == ([said] if said else [])
