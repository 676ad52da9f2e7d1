"""The change that is printed is one of what the cause names."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv

from gnnstab import Monitor
from gnnstab.records import Cause

NODES = 16


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = GATConv(5, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.head(self.conv(x, edge_index).relu())


def root(dtype: torch.dtype, loss_of: Callable[[Tensor, int], Tensor]) -> Cause:
    torch.manual_seed(0)
    x, edges = torch.randn(NODES, 5, dtype=dtype), torch.randint(0, NODES, (2, 60))
    model = Net().to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for number in range(5):
            optimizer.zero_grad()
            loss = loss_of(model(x, edges), number)
            loss.backward()
            optimizer.step()
            monitor.loss(loss)
    return monitor.diagnose().root_causes()[0]


def test_an_eps_that_is_0_in_16_bits_is_cured_at_the_weights() -> None:
    labels = torch.randint(0, 3, (NODES,))
    cause = root(torch.float16, lambda out, _: nn.functional.cross_entropy(out.float(), labels))
    advice = cause.fixes[0]
    assert cause.cause == "adam-epsilon"
    assert advice.fix == "fp32-weights" and "model.float()" in advice.change and "eps=1e-4" in advice.change


def test_a_mean_of_nothing_is_cured_by_leaving_it_out() -> None:
    advice = root(torch.float32, lambda out, step: out[: 0 if step == 3 else NODES].square().mean()).fixes[0]
    assert "clamp_min" not in advice.change and ("numel()" in advice.change or "too few entries" in advice.change)


def test_of_several_optimizers_the_one_that_lies_furthest_above_a_usual_rate_is_named() -> None:
    torch.manual_seed(0)
    x, edges, y = torch.randn(NODES, 5), torch.randint(0, NODES, (2, 60)), torch.randn(NODES, 3)
    model = Net()
    optimizers = [
        torch.optim.AdamW(model.conv.parameters(), lr=1e-3),
        torch.optim.SGD(model.head.parameters(), lr=900.0),
    ]
    with Monitor(model, optimizer=optimizers, on_finding="ignore") as monitor:
        for _ in range(12):
            loss = (model(x, edges) - y).square().mean()
            model.zero_grad()
            loss.backward()
            for one in optimizers:
                one.step()
            monitor.loss(loss)
    found = monitor.diagnose()
    (fix,) = [f for c in found.root_causes() if c.cause == "learning-rate" for f in c.fixes if f.fix == "lower-lr"]
    assert fix.change.startswith("# of the SGD of head.weight, head.bias\nfor group in optimizer.param_groups:\n")
    assert '    group["lr"] = 300  # in place of 900\n# else 100, ' in fix.change
    told = [f.message for f in found.findings if f.code == "GS601"]
    assert any("the optimizers (AdamW at 0.001, SGD at 900)" in text for text in told)
