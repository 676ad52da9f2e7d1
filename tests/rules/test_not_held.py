"""An optimizer that holds other tensors than the model: whose they are, and the line that builds it of the model's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv

import gnnstab
from models.stacks import random_batch


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = GATv2Conv(8, 8)
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.out(self.inner(x, edge_index).relu())


def of_a_copy(model: Net) -> Iterator[Tensor]:
    return copy.deepcopy(model).parameters()


def before_the_last_layer_was_replaced(model: Net) -> Iterator[Tensor]:
    held = list(model.parameters())
    model.out = nn.Linear(8, 1)
    return iter(held)


def of_the_last_layer_and_of_a_critic(model: Net) -> Iterator[Tensor]:
    return iter([*model.out.parameters(), *nn.Linear(3, 1).parameters()])


@pytest.mark.filterwarnings("ignore:gnnstab. the optimizer holds no parameter", "ignore::gnnstab.errors.GnnstabWarning")
@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (of_a_copy, "none of the 8 tensors that the optimizer holds belongs to the model"),
        (before_the_last_layer_was_replaced, "6 of 8 tensors that the optimizer holds belong to the model"),
        (of_the_last_layer_and_of_a_critic, "2 of 4 tensors that the optimizer holds belong to the model"),
    ],
)
def test_whose_tensors_the_optimizer_holds_and_the_line_that_builds_it(
    parameters: Callable[[Net], Iterator[Tensor]], said: str
) -> None:
    torch.manual_seed(0)
    model, batch = Net(), random_batch(12, 4, 8)
    optimizer = torch.optim.RMSprop(parameters(model), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=optimizer) as monitor:
        for _ in range(3):
            loss = model(**batch).square().mean()
            model.zero_grad()
            loss.backward()
            monitor.loss(loss)
            optimizer.step()
    diagnosis = monitor.diagnose()
    (message,) = [f.message for f in diagnosis.findings if f.signal == "place.not_held"]
    assert said in message, message
    assert message.count("none of") == (parameters is of_a_copy)
    (change,) = [fix for cause in diagnosis.causes for fix in cause.fixes if fix.fix == "reconnect"]
    assert "\noptimizer = torch.optim.RMSprop(model.parameters(), lr=lr)\n" in f"\n{change.change}\n"
