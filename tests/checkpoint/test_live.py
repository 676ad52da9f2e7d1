"""A module in memory tells what its file would tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch_geometric.nn import GATv2Conv

import gnnstab
from gnnstab.checkpoint import load, recover, recover_model
from gnnstab.checkpoint._live import entries
from models.informarl import DATA, load_actor
from models.stacks import Stack


def test_a_module_tells_what_its_file_tells() -> None:
    live = recover_model(load_actor("agents7_default"))
    stored = recover(load(DATA / "agents7_default" / "actor.pt"))
    spectral = {s.layer: s.value for s in live.values if s.name == "logit.spectral_qk" and s.head == 0}
    in_file = {s.layer: s.value for s in stored.values if s.name == "logit.spectral_qk" and s.head == 0}
    assert len(spectral) == 3
    assert list(spectral.values()) == pytest.approx(list(in_file.values()))
    assert all(layer.dropout == 0.0 for layer in live.layers)
    assert all(layer.dropout is None for layer in stored.layers)


def test_the_optimizer_state_is_tied_to_names() -> None:
    model = load_actor("agents7_default")
    # Handed over in reverse: order alone would tie the moments to the wrong parameters.
    optimizer = torch.optim.Adam(reversed(list(model.parameters())), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    optimizer.step()
    facts = recover_model(model, optimizer=optimizer)
    values = [s for s in facts.values if s.name == "optimizer.gradient_rms"]
    assert values
    assert all(s.value == pytest.approx(0.25, rel=1e-3) for s in values)
    names = {name for name, _ in model.named_parameters()}
    assert {s.detail["parameter"] for s in values} <= names


def _sharpened(factor):
    """A file of a network whose queries are so much larger than they were drawn, and what makes the network."""

    def make():
        torch.manual_seed(0)
        return Stack(3, 16)

    tensors = make().state_dict()
    return {k: v * factor if "lin_query" in k else v for k, v in tensors.items()}, make


@pytest.mark.parametrize("factor", [30.0, 1.0])
def test_a_model_without_a_batch_takes_nothing_from_what_its_file_alone_shows(factor, saved):
    tensors, make = _sharpened(factor)
    path = saved(tensors)
    options = {"heads": make().convs[0].heads}
    alone, with_model = gnnstab.diagnose(path, **options), gnnstab.diagnose(path, model=make)
    said = [{(f.code, f.layer, f.severity) for f in d.at_least("warning")} for d in (alone, with_model)]
    assert said[0] <= said[1]
    assert any(code == "GS301" for code, _, _ in said[0]) == (factor > 1)


class Extra(nn.Module):
    """Has a state of its own beside parameters and buffers."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.layer, self.state = GATv2Conv(4, 4), state

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.layer(x, edge_index)

    def get_extra_state(self) -> Any:
        return self.state


@pytest.mark.parametrize("state", [None, {"a": 1}, "text", torch.zeros(2)], ids=str)
def test_a_state_that_is_no_tensor_is_passed_over(state: Any) -> None:
    model = Extra(state)
    assert {f.code for f in gnnstab.diagnose(model).findings} == {
        f.code for f in gnnstab.diagnose(model.layer).findings
    }


def test_no_hook_of_a_state_dict_is_called() -> None:
    model, calls = Extra(None), []
    optimizer = torch.optim.Adam(model.parameters())
    model.register_state_dict_pre_hook(lambda *args: calls.append("before"))
    model.register_state_dict_post_hook(lambda *args: calls.append("after"))
    optimizer.register_state_dict_pre_hook(lambda *args: calls.append("before"))
    optimizer.register_state_dict_post_hook(lambda *args: calls.append("after"))
    gnnstab.diagnose(model, optimizer=optimizer)
    assert calls == []


class Computed(nn.Module):
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        Computed.calls += 1
        self.seen += 1
        return weight * (3 + 0.001 * Computed.calls) + 0 * torch.randn_like(weight)


def test_a_weight_that_is_computed_is_read_as_it_is_and_counts_nothing() -> None:
    model = GATv2Conv(4, 4)
    parametrize.register_parametrization(model.lin_l, "weight", Computed())
    part = model.lin_l.parametrizations.weight
    before = Computed.calls, float(part[0].seen), torch.get_rng_state()
    gnnstab.diagnose(model)
    assert (Computed.calls, float(part[0].seen)) == before[:2] and torch.get_rng_state().equal(before[2])
    tensors = dict(entries(model))
    assert tensors["lin_l.weight"].allclose(3 * part.original, rtol=1e-2)
    assert tensors.keys() == model.state_dict().keys()
