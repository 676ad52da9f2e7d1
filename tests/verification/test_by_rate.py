"""A run whose own rate made its attention one-hot, or closed its units, is told of the rate; one that began so is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

from gnnstab.monitor._ending import Ending
from gnnstab.probe.optimizer.optimizer_steps import Bench
from gnnstab.records import Finding, LayerFacts
from gnnstab.records.vocabulary import ATTENTION_ENTROPY, OPTIMIZER_MADE, PLACE_DEAD_SHARE
from gnnstab.rules.gs301_attention_explosion import AttentionExplosion
from gnnstab.rules.gs701_dead_units import DeadUnits
from gnnstab.verification.interventions._by_rate import made_by_rate, states_in
from trained import trained

NODES = 40
g = torch.Generator().manual_seed(3)
X, EDGES = torch.randn(NODES, 8, generator=g), torch.randint(0, NODES, (2, 6 * NODES), generator=g)
Y = torch.randn(NODES, generator=g)


class Heard(nn.Module):
    """One layer of attention between two linear ones, without a norm; its queries are ``gain`` times as wide as usual."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inp, self.hear, self.out = nn.Linear(8, 16), TransformerConv(16, 16), nn.Linear(16, 1)
        with torch.no_grad():
            self.hear.lin_query.weight.mul_(gain)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.out(self.hear(self.inp(x).relu(), edge_index).relu()).squeeze(-1)  # type: ignore[no-any-return]


class Twice(nn.Module):
    """Two layers of attention without a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.out = TransformerConv(8, 16), TransformerConv(16, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        states = self.second(self.first(x, edge_index).relu(), edge_index).relu()
        return self.out(states).squeeze(-1)  # type: ignore[no-any-return]


class Units(nn.Module):
    """Units that hear of lengths alone, and whose sum begins too large: all of them are pushed down at first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inp, self.out = nn.Linear(8, 16), nn.Linear(16, 1)
        with torch.no_grad():
            self.out.weight.abs_()
            self.out.bias.fill_(3.0)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.out(self.inp(x.abs()).relu()).squeeze(-1)  # type: ignore[no-any-return]


def loss(output: Tensor, batch: object) -> Tensor:
    return F.mse_loss(output, Y)


def of_lengths(output: Tensor, batch: object) -> Tensor:
    return F.mse_loss(output, 4 * (X.abs() @ torch.linspace(-0.5, 1.0, 8)))


def sharp() -> Finding:
    return AttentionExplosion().finding("sharp", name=ATTENTION_ENTROPY, value=0.1, limit=0.35, layer="hear")


def closed() -> Finding:
    return DeadUnits().finding("closed", name=PLACE_DEAD_SHARE, value=0.9, limit=0.75, layer="inp")


def made(model: nn.Module, finding: Finding, lr: float, kind: Any = torch.optim.AdamW) -> dict[str, Any] | None:
    """What is shown of the rate of a run of 40 steps that has come to this finding."""
    asked = loss if isinstance(model, Heard) else of_lengths
    bench = Bench(model, kind(model.parameters(), lr=lr), [((X, EDGES), {})], [(X, EDGES)], asked)
    layers = (LayerFacts("hear", "TransformerConv", 0, True),) if isinstance(model, Heard) else ()
    found = made_by_rate(states_in([finding]), bench, 40, batch=(X, EDGES), layers=layers, precision="fp32")
    return None if found is None else {**found.detail, "share": found.value}


def test_a_run_is_told_of_the_rate_that_made_its_attention_sharp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ending, "_try_steps", lambda *args: False)  # These ask other things.
    model = Twice()
    before = torch.get_rng_state()
    found = trained(model, (X, EDGES), loss, 30, optimizer=torch.optim.NAdam(model.parameters(), lr=0.1))
    assert torch.equal(before, torch.get_rng_state())
    (cause,) = found.root_causes()
    assert (cause.cause, cause.how, cause.share) == ("learning-rate", "undone", 1.0)
    lower = f"{0.1 / 3:.3g}"
    assert cause.fixes[0].fix == "lower-lr" and f'group["lr"] = {lower}  # in place of 0.1' in cause.fixes[0].change
    warned = [f for f in found.findings if f.severity != "info"]
    assert {f.code: f.explained_by for f in warned} == {"GS301": "GS601", "GS601": None, "GS701": "GS601"}
    (told,) = [f for f in warned if f.code == "GS601"]
    assert (
        told.signal == OPTIMIZER_MADE
        and "at 0.1 and at 0.0333, take attention entropy of first from 0.9" in told.message
    )


@pytest.mark.parametrize(("gain", "lr", "lower"), [(1.0, 0.1, 0.1 / 9), (1.0, 1e-3, None), (300.0, 0.1, None)])
def test_the_rate_is_blamed_for_what_was_not_there_from_the_start_and_stays_away_at_a_lower_one(
    gain: float, lr: float, lower: float | None
) -> None:
    found = made(Heard(gain), sharp(), lr)
    assert (found and found["lower"]) == (None if lower is None else pytest.approx(lower))


@pytest.mark.parametrize(("lr", "blamed"), [(1.0, True), (1e-2, False)])
def test_units_that_the_rate_has_closed_are_told_likewise(lr: float, blamed: bool) -> None:
    found = made(Units(), closed(), lr, torch.optim.Adam)
    assert (found is not None) == blamed
    if found is not None:
        (state,) = found["states"]
        assert found["lower"] == pytest.approx(lr / 9)  # A third ends with closed units as well, if later.
        assert state["began"] < 0.5 < 0.75 < state["made"] and state["lower"] < 0.7 and found["share"] == 1.0
