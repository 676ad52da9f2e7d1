"""Numbers of a file that are finite, and that nothing makes: told whatever they belong to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.nn import GATv2Conv

import gnnstab
from gnnstab.checkpoint._scan import scan
from gnnstab.records import Diagnosis
from models.stacks import Stack

Save = Callable[..., Path]


def _codes(diagnosis: Diagnosis) -> set[str]:
    return {finding.code for finding in diagnosis.findings if finding.severity != "info"}


@pytest.mark.parametrize("times", [1e80, 1e160, 1e300])
def test_weights_of_float64_beyond_any_norm(times: float, saved: Save) -> None:
    state = {name: tensor.double() for name, tensor in Stack(2, concat=False, heads=2).state_dict().items()}
    assert "GS605" not in _codes(gnnstab.diagnose(saved(state)))
    state["convs.0.lin_query.weight"] *= times
    found = gnnstab.diagnose(saved(state))
    assert "GS605" in _codes(found) and not found.events, "no value is made that the file does not hold"


@pytest.mark.parametrize("times", [1e-90, 1e-200])
def test_weights_of_float64_that_are_next_to_nothing(times: float, saved: Save) -> None:
    state = {name: tensor.double() for name, tensor in Stack(2, concat=False, heads=2).state_dict().items()}
    state["convs.0.lin_query.weight"] *= times
    assert len(gnnstab.diagnose(saved(state)).layers) == 2


def test_the_size_of_numbers_whose_squares_overflow() -> None:
    assert scan(torch.full((7,), -1e200, dtype=torch.float64)).rms == pytest.approx(1e200)


def _with_head(size: float) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.ModuleDict({"encoder": Stack(2, concat=False, heads=2), "head": nn.Linear(16, 2)})
    with torch.no_grad():
        net["head"].weight.mul_(size)
    return net.state_dict()


@pytest.mark.parametrize(("size", "absurd"), [(1.0, False), (1e4, False), (1e8, True), (1e38, True)])
def test_an_absurd_weight_outside_of_attention(size: float, absurd: bool, saved: Save) -> None:
    found = gnnstab.diagnose(saved(_with_head(size)))
    assert ("GS605" in _codes(found)) is absurd
    assert not absurd or "head.weight" in next(f.message for f in found.findings if f.code == "GS605")


@pytest.mark.parametrize("kept", [None, "1.weight", "0.lin_l.weight"])
def test_a_file_in_which_every_weight_is_zero_is_an_error(kept: str | None, saved: Save) -> None:
    """A last layer that starts at zero, and zeros in front of one, are no such file."""
    net = nn.Sequential(GATv2Conv(8, 8), nn.Linear(8, 2))
    state = {name: tensor if name == kept else torch.zeros_like(tensor) for name, tensor in net.state_dict().items()}
    found = gnnstab.diagnose(saved({"model": state, "epoch": 3}))
    assert [f.severity for f in found.findings if f.code == "GS605"] == ["error"] * (kept is None)


class _Scores(nn.Module):
    """Two columns read off a gated stack."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.norm, self.head = Stack(2, concat=False, heads=2), nn.LayerNorm(16), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        """(N, 2) of (N, 16) features."""
        return self.head(self.norm(self.encoder(x, edge_index)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("part", ["head.weight", "head.bias", "norm.weight"])
@pytest.mark.parametrize("units", [1.0, 1e5])
def test_a_loss_far_above_that_of_zeros_tells_large_units_from_garbage(part: str, units: float, saved: Save) -> None:
    torch.manual_seed(0)
    model = _Scores()
    with torch.no_grad():
        model.get_parameter(part).mul_(1e5 / model.get_parameter(part).square().mean().sqrt())
    x, edges = torch.randn(12, 16), torch.randint(0, 12, (2, 60))
    targets = units * torch.randn(12, 2)
    found = gnnstab.diagnose(
        saved(model.state_dict()), model=_Scores(), batch=(x, edges), loss=lambda out, _: (out - targets).abs().mean()
    )
    told = [f for f in found.findings if f.code == "GS605"]
    assert [f.severity for f in told] == (["warning"] if units == 1 else [])
    assert all(part in f.message and "times that of an output of zeros" in f.message for f in told)


def _trained(rate: float) -> dict[str, Any]:
    model = Stack(2, concat=False, heads=2)
    optimizer = torch.optim.Adam(model.parameters())
    sum((p.square().sum() for p in model.parameters()), torch.zeros(())).backward()
    optimizer.step()
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = rate
    return {"model": model.state_dict(), "optimizer": state}


@pytest.mark.parametrize(("rate", "absurd"), [(1e-3, False), (1.0, False), (1e4, True), (1e30, True)])
def test_a_rate_that_no_step_is_needed_for(rate: float, absurd: bool, saved: Save) -> None:
    assert ("GS601" in _codes(gnnstab.diagnose(saved(_trained(rate))))) is absurd
