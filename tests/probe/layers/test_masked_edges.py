"""Edges that a large negative number takes away before the softmax count as none; scores that have grown that far count."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import softmax

import gnnstab


class Switched(MessagePassing):
    """Attention over those edges that are not switched off."""

    def __init__(self, off: float, gain: float) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.lin, self.att, self.off, self.gain = nn.Linear(6, 6), nn.Parameter(torch.randn(12)), off, gain

    def forward(self, x: Tensor, edge_index: Tensor, switched: Tensor) -> Tensor:
        out: Tensor = self.propagate(edge_index, x=self.lin(x), switched=switched)
        return out

    def message(self, x_i: Tensor, x_j: Tensor, switched: Tensor, index: Tensor, size_i: int) -> Tensor:
        score = self.gain * (torch.cat([x_i, x_j], 1).tanh() @ self.att) + self.off * switched
        return x_j * softmax(score, index, num_nodes=size_i).unsqueeze(1)


class Net(nn.Module):
    def __init__(self, off: float, gain: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.out = Switched(off, gain), nn.Linear(6, 1)

    def forward(self, data: Data) -> Tensor:
        return self.out(data.x + self.conv(data.x, data.edge_index, data.switched)).squeeze(1)


@pytest.mark.parametrize(
    ("off", "gain", "masked"), [(-1e9, 1.0, True), (-1e4, 1.0, True), (0.0, 1e6, False), (-1e9, 1e8, False)]
)
def test_what_a_mask_has_taken_away_is_not_measured(off: float, gain: float, masked: bool) -> None:
    g = torch.Generator().manual_seed(1)
    edges = torch.cat([torch.arange(40).repeat(2, 1), torch.randint(0, 40, (2, 200), generator=g)], 1)
    switched = torch.cat([torch.zeros(40), (torch.rand(200, generator=g) < 0.2).float()])
    data = Data(x=torch.randn(40, 6, generator=g), edge_index=edges, switched=switched, y=torch.zeros(40))
    found = gnnstab.diagnose(Net(off, gain), batch=data, loss=lambda out, d: (out - d.y).square().mean())
    largest, degree = (
        next(s.value for s in found.signals if s.name == name and s.layer == "conv")
        for name in ("score.max_abs", "degree.mean")
    )
    assert (largest < 20) is masked
    assert degree == pytest.approx((240 - (int(switched.sum()) if masked else 0)) / 40)
    assert ("GS501" in {f.code for f in found.findings}) is not masked
