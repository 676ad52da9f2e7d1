"""One graph of a batch that is out of scale: what it rounds away is undone with its scale, and its rows are named."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import TransformerConv, global_mean_pool

import gnnstab

GRAPHS, NODES = 16, 20


class Crystals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = TransformerConv(8, 16), TransformerConv(16, 16)
        self.tell = nn.Linear(16, 2)

    def forward(self, data: Data) -> Tensor:
        h = self.first(data.x, data.edge_index).relu()
        out: Tensor = self.tell(global_mean_pool(self.second(h, data.edge_index).relu(), data.batch))
        return out


def graph(number: int, scale: float) -> Data:
    g = torch.Generator().manual_seed(number)
    x = torch.randn(NODES, 8, generator=g)
    edges = torch.randint(0, NODES, (2, 4 * NODES), generator=g)
    return Data(x=x * scale, edge_index=edges, y=(x.mean() > 0).long().reshape(1))


@pytest.mark.parametrize("scale", [1e4, 1.0])
def test_rows_out_of_scale_are_the_root_also_where_steps_bear_them(scale: float) -> None:
    batch = Batch.from_data_list([graph(i, scale if i == 5 else 1.0) for i in range(GRAPHS)])
    model = Crystals()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    found = gnnstab.diagnose(model, batch=batch, loss=lambda o, d: F.cross_entropy(o, d.y), optimizer=optimizer)
    roots = [(root.cause, root.how) for root in found.root_causes()]
    assert roots == ([("feature-scale", "undone")] if scale > 1 else [])
    told = [f.message for f in found.findings if f.code == "GS406"]
    assert all("by 20 rows alone (100 to 119); the others have 1.0" in message for message in told)
