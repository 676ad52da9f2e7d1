"""Gains of weights that a run has trained: what it began with is no fault of its initialisation, what no draw has is one."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.nn import HGTConv, Linear, TransformerConv

import gnnstab
from gnnstab.records import LayerFacts, Series, Signal, Signals
from gnnstab.verification.interventions._suspects import unit_gains
from gnnstab.verification.targets import Goal


@pytest.mark.parametrize(
    ("kind", "gain", "suspected"), [("trace", 2.0, False), ("trace", 8.0, True), ("model", 2.0, True)]
)
def test_a_run_may_train_weights_to_a_gain_that_no_draw_has(kind, gain, suspected):
    layer = LayerFacts("conv", "TransformerConv", 0, True, initialisation="unknown")
    signals = Signals(kind, (layer,), (Signal("gain.value", gain, "conv"),))
    case = SimpleNamespace(signals=signals, findings=(), symptoms=(), suffers=lambda *names: True)
    assert [trial.name for trial in unit_gains(case, None)] == ["unit-gains"] * suspected


@pytest.mark.parametrize(("at_first", "suspected"), [(0.9, False), (0.05, True)])
def test_how_weights_were_drawn_is_not_why_attention_that_began_soft_is_sharp(at_first, suspected):
    layer = LayerFacts("conv", "TransformerConv", 0, True, initialisation="unknown")
    series = Series("attention.entropy", "conv", None, np.array([0, 50]), np.array([at_first, 0.05]))
    signals = Signals("trace", (layer,), (Signal("gain.value", 8.0, "conv"),), series=(series,))
    goal = Goal("GS301", "attention.entropy", "conv", 0.35, True, 0.05)
    case = SimpleNamespace(
        signals=signals, findings=(), symptoms=(SimpleNamespace(goal=goal),), suffers=lambda *names: True
    )
    assert [trial.name for trial in unit_gains(case, None)] == ["unit-gains"] * suspected


class Mail(nn.Module):
    """Letters that towns write to one another by two carriers."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        carriers = [("town", "by_rail", "town"), ("town", "by_air", "town")]
        self.enter, self.conv, self.leave = Linear(6, 36), HGTConv(36, 36, (["town"], carriers), heads=2), Linear(36, 3)
        for p in self.parameters():
            if p.dim() > 1 and p.numel() > 2:
                nn.init.normal_(p, 0.0, deviation / p.shape[-1] ** 0.5)

    def forward(self, data: HeteroData) -> Tensor:
        states = self.conv({"town": self.enter(data["town"].x).relu()}, data.edge_index_dict)
        out: Tensor = self.leave(states["town"])
        return out


def mail() -> HeteroData:
    data, target = HeteroData(), torch.arange(80).repeat_interleave(4)
    data["town"].x, data["town"].y = torch.randn(80, 6), torch.randint(0, 3, (80,))
    for carrier in ("by_rail", "by_air"):
        data["town", carrier, "town"].edge_index = torch.stack([torch.randint(80, (320,)), target])
    return data


@pytest.mark.parametrize(("deviation", "roots"), [(6.0, ["unsuitable-init"]), (1.0, [])])
def test_scores_of_three_maps_are_large_because_all_maps_were_drawn_so(deviation: float, roots: list[str]) -> None:
    model, data = Mail(deviation), mail()
    found = gnnstab.diagnose(model, batch=data, loss=lambda out, b: nn.functional.cross_entropy(out, b["town"].y))
    assert [cause.cause for cause in found.root_causes()] == roots


@pytest.mark.parametrize(("deviation", "roots"), [(6.0, ["unsuitable-init"]), (1.0, [])])
def test_a_file_tells_that_all_maps_were_drawn_too_large(tmp_path: Path, deviation: float, roots: list[str]) -> None:
    torch.manual_seed(0)
    other = TransformerConv(48, 12, heads=4)
    for p in other.parameters():
        nn.init.normal_(p, 0.0, deviation / 48**0.5)
    for name, model in (("mail", Mail(deviation)), ("other", other)):
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
        assert [cause.cause for cause in gnnstab.diagnose(tmp_path / f"{name}.pt").root_causes()] == roots
