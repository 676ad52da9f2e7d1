"""A file alone does not warn of what training and design may well have meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import HGTConv, TransformerConv

import gnnstab

WIDTH = 8
X = torch.randn(24, WIDTH, generator=torch.Generator().manual_seed(0))
RING = torch.stack([torch.arange(24), torch.arange(24).roll(1)])
BOTH_WAYS = torch.cat([RING, RING.flip(0), torch.stack([torch.arange(24), torch.arange(24).roll(5)])], 1)


class Frozen(nn.Module):
    """A table whose values were loaded and frozen, or whose look-up is lost on the way: a file of both holds the same."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.table, self.conv, self.head = nn.Linear(WIDTH, WIDTH), TransformerConv(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.table.requires_grad_(not frozen)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Nothing comes back to the table."""
        return self.head(self.conv(self.table(x).detach(), edges))  # type: ignore[no-any-return]


def saved(model: nn.Module, folder: Path) -> Path:
    """The file of a short training."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        (model(X, BOTH_WAYS) - X[:, :1]).square().mean().backward()
        optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "file.pt")
    return folder / "file.pt"


@pytest.mark.parametrize("frozen", [True, False])
def test_parameters_that_never_had_a_gradient_are_information_in_a_file(frozen: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Frozen(frozen)
    (found,) = [f for f in gnnstab.diagnose(saved(model, tmp_path)).findings if f.code == "GS604"]
    assert found.severity == "info" and "table.weight" in found.message and "batch=" in found.message
    told = gnnstab.diagnose(model, batch=(X, BOTH_WAYS), loss=lambda out, batch: out.square().mean()).findings
    assert ["error" for f in told if f.code == "GS604"] == ([] if frozen else ["error"])


@pytest.mark.parametrize("trained", [True, False])
def test_a_prior_that_training_has_raised_is_information(trained: bool, tmp_path: Path) -> None:
    torch.manual_seed(2)
    kinds, relation = ["user", "item"], ("user", "buys", "item")
    conv = HGTConv(WIDTH, WIDTH, (kinds, [relation, ("item", "bought", "user")]), heads=2)
    with torch.no_grad():
        for prior in conv.p_rel.values():
            prior.fill_(60)
        if trained:
            for weight in conv.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
    torch.save({"conv." + name: tensor for name, tensor in conv.state_dict().items()}, tmp_path / "file.pt")
    found = [f for f in gnnstab.diagnose(tmp_path / "file.pt").findings if f.code == "GS301"]
    assert {f.severity for f in found} == {"info" if trained else "warning"}


@pytest.mark.parametrize(
    ("made", "severity"), [("trained", "warning"), ("blown up", "error"), ("wide", "warning"), ("as drawn", None)]
)
@pytest.mark.parametrize("counted", [True, False])
def test_sharp_weights_of_a_file_stay_a_warning_where_they_agree_and_where_they_do_not(
    made: str, severity: str | None, counted: bool, tmp_path: Path
) -> None:
    """A file does not tell earned from ruined; weights that leave no gradient are ruined."""
    torch.manual_seed(3)
    conv = TransformerConv(16, 16)
    with torch.no_grad():
        if made in ("trained", "blown up"):
            learned = torch.outer(torch.randn(16), torch.randn(16)) / 4
            for weight in (conv.lin_query.weight, conv.lin_key.weight):
                weight.add_(learned).mul_(10 if made == "blown up" else 1)
        elif made == "wide":
            for weight in (conv.lin_query.weight, conv.lin_key.weight):
                weight.copy_(0.8 * torch.randn(16, 16))
    tensors: dict[str, object] = {f"conv.{name}": tensor for name, tensor in conv.state_dict().items()}
    torch.save({"model": tensors, "global_step": 500} if counted else tensors, tmp_path / "file.pt")
    found = [f for f in gnnstab.diagnose(tmp_path / "file.pt", heads=1).findings if f.code == "GS301"]
    assert {f.severity for f in found} == ({severity} if severity else set())
    assert not any("your data and loss tell" in f.message for f in found)


@pytest.mark.parametrize(
    ("user", "item", "found"), [(-12.0, -14.0, ["warning"]), (-12.0, 1.0, []), (12.0, 14.0, []), (-3.0, -3.0, [])]
)
def test_a_layer_whose_shares_are_all_shut_is_told_from_its_file(
    user: float, item: float, found: list[str], tmp_path: Path
) -> None:
    torch.manual_seed(2)
    conv = HGTConv(WIDTH, WIDTH, (["user", "item"], [("user", "buys", "item"), ("item", "bought", "user")]), heads=2)
    with torch.no_grad():
        conv.skip["user"].fill_(user)
        conv.skip["item"].fill_(item)
    torch.save({"conv." + name: tensor for name, tensor in conv.state_dict().items()}, tmp_path / "file.pt")
    diagnosis = gnnstab.diagnose(tmp_path / "file.pt")
    assert [f.severity for f in diagnosis.findings if f.code == "GS104"] == found
    assert [cause.cause for cause in diagnosis.root_causes()] == ["saturated-gate"] * len(found)
