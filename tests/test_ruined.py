"""What a run has done to its weights is not what began it: a look at the weights alone says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import TransformerConv, global_add_pool

import gnnstab


class Net(nn.Module):
    """Two layers and an answer for each node, or for each graph."""

    def __init__(self, *, pooled: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = TransformerConv(8, 32, heads=2, concat=False), TransformerConv(32, 32, concat=False)
        self.out, self.pooled = nn.Linear(32, 1), pooled

    def forward(self, data: Data) -> Tensor:
        h = self.two(self.one(data.x, data.edge_index).relu(), data.edge_index).relu()
        out: Tensor = self.out(global_add_pool(h, data.batch) if self.pooled else h)
        return out


def graphs() -> Batch:
    g = torch.Generator().manual_seed(0)
    made = [
        Data(x=torch.randn(20, 8, generator=g), edge_index=torch.randint(0, 20, (2, 100), generator=g))
        for _ in range(8)
    ]
    return Batch.from_data_list(made)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("rate", [0.3, 0.003])
def test_a_state_that_training_may_have_made_is_no_root_cause(pooled, rate):
    batch, model = graphs(), Net(pooled=pooled)
    wanted = torch.zeros(8, 1).uniform_(-1, 1) if pooled else batch.x[:, :1]

    def loss(output: Tensor, batch: Data) -> Tensor:
        return nn.functional.mse_loss(output, wanted)

    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(40):
        optimizer.zero_grad()
        loss(model(batch), batch).backward()
        optimizer.step()
    found = gnnstab.diagnose(model, batch=batch, loss=loss, optimizer=optimizer)
    roots = {cause.cause for cause in found.root_causes()}
    assert "unsuitable-init" not in roots
    told = [c for c in found.causes if "Perhaps an outcome of training" in c.reason]
    if rate > 0.1:
        # The rate is in the optimizer, and where its updates have saturated the attention it is the cause.
        assert roots == {"learning-rate"} or "the optimizer took 40 steps" in told[0].reason
    else:
        assert not told


def test_weights_that_are_as_they_were_drawn_are_the_cause():
    batch, model = graphs(), Net(pooled=False)
    with torch.no_grad():
        for weight in (w for w in model.parameters() if w.dim() == 2):
            weight *= 20
    found = gnnstab.diagnose(model, batch=batch, loss=lambda output, b: nn.functional.mse_loss(output, b.x[:, :1]))
    assert "unsuitable-init" in {cause.cause for cause in found.root_causes()}
    assert not [c for c in found.causes if "outcome of training" in c.reason]
