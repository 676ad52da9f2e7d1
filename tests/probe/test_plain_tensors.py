"""What a model would learn if it were a parameter: named with its attributes, and not where the model learns without, or says that it is to stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv

import gnnstab
from gnnstab.monitor import _ending

ROOMS, WIDTH = 96, 12


class Shelf(nn.Module):
    """Eight rows that are looked up by attention; ``held`` says as what the module has them."""

    def __init__(self, held: Callable[[nn.Module, str, Tensor], None]) -> None:
        super().__init__()
        held(self, "marks", torch.randn(8, WIDTH))
        held(self, "rows", torch.randn(8, 3))

    def forward(self, query: Tensor) -> Tensor:
        found: Tensor = torch.softmax(query @ self.marks.t(), -1) @ self.rows
        return found


class Rooms(nn.Module):
    """Temperatures of rooms, each of which is heard with its neighbours, as a mixture of what is on a shelf."""

    def __init__(self, held: Callable[[nn.Module, str, Tensor], None]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hear, self.shelf = GATConv(4, WIDTH), Shelf(held)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.shelf(torch.relu(self.hear(x, edge_index)))
        return out


def as_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    setattr(module, name, nn.Parameter(value))


def as_buffer(module: nn.Module, name: str, value: Tensor) -> None:
    module.register_buffer(name, value)


def asked(held: Callable[[nn.Module, str, Tensor], None], level: float = 6.0) -> gnnstab.Diagnosis:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(ROOMS, 4, generator=g)
    step = torch.arange(ROOMS - 1)
    edges = torch.cat([torch.stack([step, step + 1]), torch.stack([step + 1, step])], 1)
    data = Data(x=x, edge_index=edges, y=level + torch.sign(x[:, :3]))
    model = Rooms(held)
    rate = torch.optim.Adam(model.parameters(), 2e-2)
    return gnnstab.diagnose(model, batch=data, loss=lambda out, d: (out - d.y).square().mean(), optimizer=rate)


def test_plain_tensors_that_would_be_learned_are_the_root() -> None:
    diagnosis = asked(setattr)
    cause = diagnosis.root_causes()[0]
    assert cause.cause == "never-updated-parameter"
    (message,) = (f.message for f in diagnosis.findings if f.code == "GS609")
    assert message.startswith("shelf.marks, shelf.rows are plain tensors")
    assert "self.rows = nn.Parameter(rows)  # shelf" in cause.fixes[0].change


@pytest.mark.parametrize("held", [as_parameter, as_buffer])
def test_parameters_and_what_is_said_to_stay_are_none(held: Callable[[nn.Module, str, Tensor], None]) -> None:
    assert not [f for f in asked(held).findings if f.code in ("GS604", "GS609")]


def test_a_model_that_learns_beside_them_is_left_alone() -> None:
    found = asked(setattr, level=0.0)
    assert not [f for f in found.findings if f.code in ("GS604", "GS609")]


def test_steps_on_copies_that_take_too_long_are_given_up_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ending, "LONGEST", 0.0)
    x, edges = torch.randn(ROOMS, 4), torch.randint(0, ROOMS, (2, 300))
    model = Rooms(setattr)
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(60):
            optimizer.zero_grad()
            loss = (model(x, edges) - 6).square().mean()
            loss.backward()
            optimizer.step()
            monitor.loss(loss)
    diagnosis = monitor.diagnose()
    assert not [f for f in diagnosis.findings if f.code in ("GS609", "GS902")]
    (reason,) = (status.reason for status in diagnosis.rules if status.code == "GS609")
    assert any("given up" in note for note in diagnosis.context["notes"])
    assert "given up" in str(reason) and "gnnstab.diagnose(model, batch, loss, optimizer)" in str(reason)
