"""Optimizer state becomes numbers per parameter, and is tied to names only where that is certain."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.checkpoint import load, recover
from gnnstab.checkpoint._optimizer import plain_number
from gnnstab.checkpoint.facts import CheckpointFacts
from gnnstab.records import Signal

Save = Callable[..., Path]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(5, 8)
        self.convs = nn.ModuleList(TransformerConv(8, 8, heads=2, concat=False, edge_dim=1) for _ in range(3))
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor, edge_attr: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for conv in self.convs:
            x = conv(x, edge_index, edge_attr).relu()
        return self.norm(x)


def _trained(
    make: Callable[..., torch.optim.Optimizer], steps: int = 30, groups: bool = False
) -> tuple[Net, torch.optim.Optimizer, dict[str, list]]:
    """A network after some steps, its optimizer, and every gradient that it saw."""
    net = Net()
    weights = [p for p in net.parameters() if p.dim() > 1]
    others = [p for p in net.parameters() if p.dim() <= 1]
    optimizer = make([{"params": weights}, {"params": others, "weight_decay": 0.0}] if groups else net.parameters())
    seen: dict[str, list] = {name: [] for name, _ in net.named_parameters()}
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x, edges = torch.randn(20, 5, generator=generator), torch.randint(0, 20, (2, 80), generator=generator)
        loss = net(x, edges, torch.rand(80, 1, generator=generator)).square().sum()
        optimizer.zero_grad()
        (loss + net.embed(x).sum()).backward()
        optimizer.step()
        for name, parameter in net.named_parameters():
            if parameter.grad is not None:
                seen[name].append(parameter.grad.double().numpy().copy())
    return net, optimizer, seen


def _facts(saved: Save, net: nn.Module, optimizer: torch.optim.Optimizer) -> CheckpointFacts:
    return recover(load(saved({"model": net.state_dict(), "optimizer": optimizer.state_dict()})))


def _signals(facts: Any, name: str) -> dict[str, Signal]:
    return {s.detail["parameter"]: s for s in facts.values if s.name == name and "parameter" in s.detail}


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3, betas=(0.9, 0.99), eps=1e-5)


def test_gradients_recovered_from_adam(saved: Save) -> None:
    """Against the weighted mean of the squared gradients that the optimizer really saw."""
    net, optimizer, seen = _trained(_adam)
    facts = _facts(saved, net, optimizer)
    found = _signals(facts, "optimizer.gradient_rms")
    assert set(found) == set(seen)
    for name, gradients in seen.items():
        weight = np.array([0.99 ** (len(gradients) - 1 - i) for i in range(len(gradients))])
        expected = math.sqrt(np.average([np.mean(g**2) for g in gradients], weights=weight))
        assert found[name].value == pytest.approx(expected, rel=1e-4)
        assert found[name].source == "optimizer"
        assert (found[name].detail["lr"], found[name].detail["eps"], found[name].detail["step"]) == (1e-3, 1e-5, 30.0)
    assert found["convs.1.lin_key.bias"].layer == "convs.1"
    assert found["embed.weight"].layer == "embed"


def test_share_below_eps_and_first_step_size(saved: Save) -> None:
    net, optimizer, _ = _trained(_adam)
    facts = _facts(saved, net, optimizer)
    shares, steps = _signals(facts, "optimizer.below_eps_share"), _signals(facts, "optimizer.lr_to_rms")
    for name, parameter in net.named_parameters():
        second = optimizer.state[parameter]["exp_avg_sq"].double().numpy() / (1 - 0.99**30)
        assert shares[name].value == pytest.approx(np.mean(np.sqrt(second) < 1e-5))
        rms = math.sqrt(np.mean(parameter.detach().double().numpy() ** 2))
        assert steps[name].value == pytest.approx(1e-3 / rms)
    # The key bias shifts all scores of a target alike, so that its gradient is nothing but rounding.
    assert shares["convs.0.lin_key.bias"].value > 0.9
    assert shares["convs.0.lin_value.weight"].value < 0.5


@pytest.mark.parametrize(
    "make", [torch.optim.AdamW, lambda p: torch.optim.Adam(p, amsgrad=True), torch.optim.RMSprop, torch.optim.NAdam]
)
def test_other_optimizers_with_a_second_moment(make: Callable[..., torch.optim.Optimizer], saved: Save) -> None:
    net, optimizer, seen = _trained(make)
    facts = recover(load(saved({"net": net.state_dict(), "optim": optimizer.state_dict()})))
    found = _signals(facts, "optimizer.gradient_rms")
    assert set(found) == set(seen)
    name = "convs.0.lin_value.weight"
    assert found[name].value == pytest.approx(math.sqrt(np.mean([np.mean(g**2) for g in seen[name]])), rel=0.5)


def test_sgd_has_no_second_moment(saved: Save) -> None:
    net, optimizer, _ = _trained(lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.9))
    facts = _facts(saved, net, optimizer)
    assert not [s for s in facts.values if s.name.startswith("optimizer.")]
    assert "tied to parameters" in facts.optimizers[0]


def test_never_updated_parameters(saved: Save) -> None:
    net = Net()
    for parameter in net.convs[2].parameters():
        parameter.requires_grad_(False)
    optimizer = _adam(net.parameters())
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter) if name == "embed.bias" else torch.ones_like(parameter)
    optimizer.step()
    facts = _facts(saved, net, optimizer)
    (signal,) = [s for s in facts.values if s.name == "optimizer.never_updated"]
    expected = {"embed.bias"} | {f"convs.2.{name}" for name, _ in net.convs[2].named_parameters()}
    assert signal.value == len(expected)
    assert set(signal.detail["parameters"]) == expected


def test_depth_slope(saved: Save) -> None:
    net = Net()
    optimizer = _adam(net.parameters())
    for name, parameter in net.named_parameters():
        depth = int(name.split(".")[1]) if name.startswith("convs") else 0
        parameter.grad = torch.full_like(parameter, math.exp(0.7 * depth - 3))
    optimizer.step()
    facts = _facts(saved, net, optimizer)
    (slope,) = [s for s in facts.values if s.name == "gradient.slope"]
    assert slope.value == pytest.approx(-0.7, rel=1e-4)
    assert slope.source == "optimizer"


def test_groups_split_by_weight_decay_are_not_guessed(saved: Save) -> None:
    net, optimizer, _ = _trained(_adam, groups=True)
    facts = _facts(saved, net, optimizer)
    for name, signal in _signals(facts, "optimizer.gradient_rms").items():
        second = optimizer.state[dict(net.named_parameters())[name]]["exp_avg_sq"].double() / (1 - 0.99**30)
        assert signal.value == pytest.approx(float(second.mean().sqrt()), rel=1e-6)
    assert "cannot be tied" in facts.optimizers[0] or "ambiguous" in facts.optimizers[0]


def test_names_kept_by_the_optimizer_decide(saved: Save) -> None:
    net, optimizer, _ = _trained(_adam, groups=True)
    state = optimizer.state_dict()
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    for stored, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        stored["param_names"] = [names[id(parameter)] for parameter in group["params"]]
    facts = recover(load(saved({"model": net.state_dict(), "optimizer": state})))
    assert len(_signals(facts, "optimizer.gradient_rms")) == len(names)
    assert "names kept" in facts.optimizers[0]


def test_two_networks_with_an_optimizer_each(saved: Save) -> None:
    content: dict[str, Any] = {}
    for who, steps in (("actor", 5), ("critic", 9)):
        net, optimizer, _ = _trained(_adam, steps)
        content |= {who: net.state_dict(), f"{who}_optimizer": optimizer.state_dict()}
    facts = recover(load(saved(content)))
    steps = {name.split(".")[0]: s.detail["step"] for name, s in _signals(facts, "optimizer.gradient_rms").items()}
    assert steps == {"actor": 5.0, "critic": 9.0}


def test_an_optimizer_of_other_shapes_is_told_not_used(saved: Save, state: dict[str, torch.Tensor]) -> None:
    other = nn.Linear(77, 3)
    optimizer = torch.optim.Adam(other.parameters())
    other(torch.ones(77)).sum().backward()
    optimizer.step()
    facts = recover(load(saved({"model": state, "optimizer": optimizer.state_dict()})))
    assert not [s for s in facts.values if s.source == "optimizer"]
    assert "cannot be tied" in facts.optimizers[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"param_groups": [{"params": [0, [1], {}]}], "state": {0: {"exp_avg_sq": torch.ones(2, 2), "step": "x"}}},
        {
            "param_groups": [{"params": [0], "lr": 10**400, "eps": 10**400}],
            "state": {0: {"step": 10**400, "exp_avg_sq": torch.ones(2, 2)}},
        },
        {"param_groups": [3, {"params": 4}, {"lr": 1}], "state": {}},
        {"param_groups": [{"params": [0], "betas": (0.9,), "eps": "x", "lr": None}], "state": {0: 5}},
        {
            "param_groups": [{"params": [0], "betas": (0.9, 1.0)}],
            "state": {0: {"exp_avg_sq": torch.full((2, 2), torch.nan), "step": 1}},
        },
        {
            "param_groups": [{"params": [0], "lr": torch.empty(1, device="meta")}],
            "state": {0: {"step": torch.empty(1, device="meta")}},
        },
    ],
)
def test_malformed_states_are_harmless(wrong: dict[str, Any], saved: Save) -> None:
    facts = recover(load(saved({"model": {"a.weight": torch.rand(2, 2)}, "optimizer": wrong})))
    assert not [s for s in facts.values if s.name == "optimizer.gradient_rms"]


def test_nan_in_a_moment_is_found(saved: Save) -> None:
    net, optimizer, _ = _trained(_adam, 2)
    state = optimizer.state_dict()
    state["state"][0]["exp_avg_sq"][0, 0] = torch.nan
    facts = recover(load(saved({"model": net.state_dict(), "optimizer": state})))
    bad = {s.detail["parameter"]: s.value for s in facts.values if s.name == "weight.non_finite" and s.value}
    assert bad == {"optimizer.0.exp_avg_sq": 1.0}


def test_a_step_that_is_a_parameter_is_read_without_a_warning() -> None:
    assert plain_number(torch.nn.Parameter(torch.tensor(3.0))) == 3.0


@pytest.mark.parametrize(("name", "bad", "good"), [("lr", -0.1, 0.1), ("momentum", 1.0, 0.9)])
def test_a_setting_that_leaves_its_range_is_told_of_a_file(name: str, bad: float, good: float, saved: Save) -> None:
    net = Net()
    optimizer = torch.optim.SGD(
        [{"params": net.embed.parameters()}, {"params": net.convs.parameters()}], lr=0.1, momentum=0.9
    )
    for value, codes in ((good, []), (bad, ["GS606"])):
        optimizer.param_groups[1][name] = value
        diagnosis = gnnstab.diagnose(saved({"model": net.state_dict(), "optimizer": optimizer.state_dict()}), heads=2)
        assert [f.code for f in diagnosis.at_least("warning")] == codes
        assert all("parameter group 1" in f.message for f in diagnosis.at_least("warning"))
    assert len([f for f in gnnstab.diagnose(net, optimizer=optimizer).findings if f.code == "GS606"]) == 1
