"""A clamp that ends the model and keeps it from its targets, in a diagnosis that sees no entry cut yet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

import gnnstab


class Waits(nn.Module):
    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hear, self.leave, self.end = TransformerConv(6, 16), nn.Linear(16, 1), end
        nn.init.constant_(self.leave.bias, 0.5)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.leave(self.hear(x, edge_index).relu() / 4).squeeze(1)
        return self.end(out)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda out: out.clamp(0, 1), "keeps its output at or above 0 and at or below 1"),
        (lambda out: out.clamp(max=1), "keeps its output at or below 1"),
        (lambda out: out.clamp(-10, 10), ""),
        (lambda out: out, ""),
    ],
)
@pytest.mark.parametrize("error", [nn.functional.mse_loss, nn.functional.l1_loss])
def test_targets_beyond_the_limits_of_a_clamp_at_the_end(
    error: Callable[[Tensor, Tensor], Tensor], end: Callable[[Tensor], Tensor], said: str
) -> None:
    g = torch.Generator().manual_seed(0)
    x, edges = torch.randn(40, 6, generator=g), torch.randint(0, 40, (2, 160), generator=g)
    data = {"x": x, "edge_index": edges, "y": 2.5 + 1.7 * torch.randn(40, generator=g)}
    found = gnnstab.diagnose(Waits(end), batch=data, loss=lambda out, _: error(out, data["y"]))
    told = [f.message for f in found.findings if f.code == "GS703" and f.severity == "warning"]
    assert [said in message for message in told] == [True] * bool(said), told
    assert [root.cause for root in found.root_causes()] == ["active-clamp"] * bool(said)
