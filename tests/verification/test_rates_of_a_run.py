"""A run that its rate has ruined: its own optimizer proves the rate that its warnings name, from the weights that it began with."""

from __future__ import annotations

import re
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch_geometric.nn import GATConv

import gnnstab
from gnnstab.errors import GnnstabWarning, UsageError
from gnnstab.monitor import _ending
from gnnstab.observation import Request, observe
from gnnstab.probe.optimizer.kept_settings import made_of
from gnnstab.records import Finding
from gnnstab.verification._proof import _searched
from gnnstab.verification._verdict import Verdict
from gnnstab.verification.fix_spec import FixSpec
from gnnstab.verification.own_optimizer import OwnOptimizer


class Net(nn.Module):
    def __init__(self, activate=torch.tanh):
        super().__init__()
        self.first, self.second = GATConv(8, 8), nn.Linear(8, 4)
        self.activate = activate

    def forward(self, x, edge_index):
        return self.second(self.activate(self.first(x, edge_index)))


def batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 8, generator=generator)
    return {"x": x, "edge_index": torch.randint(60, (2, 240), generator=generator)}, x[:, :4].argmax(1)


HIGH = 100.0
SAID = f"SGD(lr={HIGH:g}, momentum=0.9, weight_decay=0.0001)"


def trained(model, steps=6, **more):
    """A run of SGD with momentum at a rate far too high, and all that it warned of."""
    given, labels = batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=HIGH, momentum=0.9, weight_decay=1e-4)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with gnnstab.Monitor(model, optimizer=optimizer, **more) as monitor:
            for _ in range(steps):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(**given), labels)
                loss.backward()
                monitor.loss(loss)
                optimizer.step()
    return monitor, [str(one.message) for one in said if issubclass(one.category, GnnstabWarning)]


def test_a_run_without_a_loss_proves_with_its_own_optimizer_the_one_rate_that_it_names_everywhere(monkeypatch):
    monkeypatch.setattr(_ending, "prove", partial(_ending.prove, seeds=2, steps=20))
    torch.manual_seed(0)
    monitor, said = trained(Net())
    (fix,) = [f for c in monitor.diagnose(verify=True).root_causes() for f in c.fixes if f.fix == "lower-lr"]
    assert fix.verdict == "confirmed", fix
    assert SAID in fix.note
    assert "with the weights that the run began with" in fix.note
    rate = re.search(r"At lr=([\d.]+) ", said[0])[1]
    assert f'group["lr"] = {rate}  # in place of {HIGH:g}' in fix.change
    assert f"at learning rate {rate} in place of {HIGH:g}" in fix.note
    with pytest.raises(UsageError, match=r"monitor\.diagnose has no argument 'lr'; it takes verify, select"):
        monitor.diagnose(verify=True, lr=HIGH)


def test_a_rate_is_told_once_and_what_follows_from_it_is_not_told_at_all():
    torch.manual_seed(0)
    _, said = trained(Net(nn.functional.elu), steps=40)
    assert [text[:5] for text in said][:2] == ["GS601", "GS502"], said
    assert not any(text.startswith(("GS601", "GS301")) for text in said[2:]), said
    assert any("had grown" in text for text in said[1:]), said
    assert not any("no growth" in text for text in said), said


def test_the_trace_of_a_run_brings_its_optimizer_along(tmp_path):
    trained(Net(), trace=tmp_path / "run.gnnstab", on_finding="ignore")
    live = observe(tmp_path / "run.gnnstab", Request(model=Net, batch=batch()[0])).live
    assert live.training["lr"] == HIGH
    own = OwnOptimizer.of(live.training["optimizer"], live.model)
    assert own.words(HIGH, 0.0) == SAID
    assert len(own.groups[0][0]) == len(list(live.model.parameters()))
    for stranger in ("Optimizer", "lr_scheduler", "nothing"):
        assert made_of(stranger, [{"names": None, "settings": {"lr": 1.0}}], live.model) is None
    assert (
        made_of("SGD", [{"names": None, "settings": {"lr": "import os"}}], live.model).param_groups[0]["lr"]
        != "import os"
    )


RISE = Finding(
    "GS601", "learning-rate-too-high", "learning-rate", "error", "high", None, None, 0, "optimizer.loss_rise", 9.0, 1.25, "", ""
)  # fmt: skip


def test_without_a_loss_the_verdict_says_what_to_pass():
    model = Net()
    own = torch.optim.SGD(model.parameters(), lr=HIGH)
    (verdict,) = gnnstab.verify(model, "lower-lr", batch=batch()[0], optimizer=own, finding=RISE, seeds=1, steps=2)
    assert verdict.verdict == "inconclusive"
    assert "pass loss=" in verdict.reason
    assert verdict.before is None


def test_a_rate_that_is_not_low_enough_is_replaced_by_one_that_is_and_that_is_said():
    def trying(fixes, finding):
        rate = fixes[0].options["lr"]
        verdict = "confirmed" if rate < 0.2 else "inconclusive"
        return [
            Verdict(
                "lower-lr", verdict, "so", change=f"lr = {rate:.3g}  # in place of 9", options={"lr": rate}, before=9.0
            )
        ]

    (told,) = trying([FixSpec("lower-lr", {"lr": 0.9})], RISE)
    found = _searched(told, trying, RISE)
    assert found.change == "lr = 0.1  # in place of 9; 0.9, as was warned, is not low enough"
    assert "0.9, which the first steps of the run showed, is not low enough: so" in found.reason
    assert _searched(found, trying, RISE) is found


def test_an_optimizer_is_made_anew_with_all_that_it_was_set_to():
    model = Net()
    groups = [
        {"params": model.first.parameters(), "weight_decay": 0.1},
        {"params": model.second.parameters(), "lr": 0.01},
    ]
    own = OwnOptimizer.of(torch.optim.AdamW(groups, lr=0.1, betas=(0.5, 0.9)), model)
    other = nn.Sequential()
    other.first, other.second, other.added = model.first, model.second, nn.Linear(2, 2)
    made = own.made(other, lr=0.02, eps=1e-6)
    assert type(made) is torch.optim.AdamW
    assert [(g["lr"], g["weight_decay"], g["betas"], g["eps"]) for g in made.param_groups] == [
        (pytest.approx(0.02), 0.1, (0.5, 0.9), 1e-6), (pytest.approx(0.002), 0.01, (0.5, 0.9), 1e-6),
    ]  # fmt: skip
    held = {id(p) for group in made.param_groups for p in group["params"]}
    assert held == {id(p) for p in other.parameters()}, "what a fix adds is moved as well"
    assert OwnOptimizer.of(torch.optim.LBFGS(model.parameters()), model) is None
    assert OwnOptimizer.of(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0), model) is None
