"""A sum that leaves fp16 and of which the output shows nothing; and an autocast that is over when the look at it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATv2Conv

import gnnstab


class Sized(nn.Module):
    """Divides the states of all nodes by their size, whose squares are added up over a thousand nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.conv, self.out = nn.Linear(4, 16), GATv2Conv(16, 16), nn.Linear(16, 2)

    def forward(self, data: Data) -> Tensor:
        h = 4 * self.inp(data.x)
        h = h / ((h * h).sum() / h.numel() + 1e-3).sqrt()
        return self.out(torch.relu(h + self.conv(h, data.edge_index)))


def points() -> Data:
    g = torch.Generator().manual_seed(3)
    x = 3 * torch.randn(1000, 4, generator=g)
    return Data(x=x, edge_index=torch.randint(0, 1000, (2, 4000), generator=g), y=x[:, :2])


def squared(output: Tensor, data: Data) -> Tensor:
    return nn.functional.mse_loss(output.float(), data.y)


@pytest.mark.parametrize(("precision", "root"), [("fp16", ["precision"]), ("bf16", []), ("fp32", [])])
def test_a_sum_that_leaves_the_format_is_named(precision: str, root: list[str]) -> None:
    torch.manual_seed(0)
    model, data = Sized(), points()
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(8):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                loss = squared(model(data), data)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            monitor.loss(loss)
    assert not torch.is_autocast_enabled("cpu")
    said = [monitor.diagnose(), gnnstab.diagnose(model, batch=data, loss=squared, precision=precision)]
    assert not torch.is_autocast_enabled("cpu")
    assert [[cause.cause for cause in d.root_causes()] for d in said] == [root, root]
    if root:
        assert all("(h * h).sum()" in str(f.message) for d in said for f in d.findings if f.code == "GS501")
