"""Initialisations are recognised while fresh, graded while young, and never claimed on what is neither."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

from gnnstab.checkpoint import recover
from gnnstab.checkpoint._fingerprint import Fingerprint, fingerprint, prevailing_label, shared_label
from gnnstab.checkpoint.threads import one_thread
from stored import stored

SHAPES = [(16, 16), (48, 16), (64, 64), (256, 64), (64, 256)]
init = nn.init


def _weight(shape: tuple[int, int], fill: Callable[[Tensor], object], seed: int) -> Tensor:
    torch.manual_seed(seed)
    weight = torch.empty(shape)
    fill(weight)
    return weight


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gain", [0.5, 1.0, math.sqrt(2), 5 / 3])
def test_orthogonal_with_its_gain(shape: tuple[int, int], gain: float) -> None:
    for seed in range(10):
        found = fingerprint(_weight(shape, lambda w: init.orthogonal_(w, gain), seed))
        assert (found.family, found.pristine) == ("orthogonal", True)
        assert found.gain == pytest.approx(gain, rel=1e-4)
    assert found.label == f"orthogonal({gain:.2f})"


SCHEMES: list[tuple[Callable[[Tensor], object], str, list[tuple[int, int]]]] = [
    (lambda w: init.kaiming_uniform_(w, a=math.sqrt(5)), "pyg-default", SHAPES),
    (init.xavier_uniform_, "xavier-uniform(1.00)", SHAPES),
    (init.xavier_normal_, "xavier-normal(1.00)", [(96, 64)]),
    (init.kaiming_normal_, "he-normal(1.00)", [(96, 64)]),
]


@pytest.mark.parametrize(("fill", "label", "shape"), [(f, name, shape) for f, name, many in SCHEMES for shape in many])
def test_a_scheme_is_recognised(fill: Callable[[Tensor], object], label: str, shape: tuple[int, int]) -> None:
    assert [fingerprint(_weight(shape, fill, seed)).label for seed in range(40)].count(label) >= 39


@pytest.mark.parametrize("depth", [2, 8])
def test_depth_scaled_xavier(depth: int) -> None:
    gain = 1 / math.sqrt(1 + depth)
    found = [fingerprint(_weight((64, 128), lambda w: init.xavier_uniform_(w, gain), seed)) for seed in range(20)]
    assert sum(f.family == "xavier-uniform" and abs(f.gain - gain) < 0.01 for f in found) >= 19


def test_one_head_of_an_orthogonal_matrix_is_not_orthogonal() -> None:
    """The reason why the stacked matrix is looked at."""
    stacked = _weight((48, 16), init.orthogonal_, 0)
    assert fingerprint(stacked).family == "orthogonal"
    assert fingerprint(stacked[:16]).family != "orthogonal"


@pytest.mark.parametrize(
    "weight", [torch.randn(1, 200), torch.randn(3, 2), torch.randn(200, 3), torch.full((10, 10), torch.nan)]
)
def test_too_small_or_broken_to_tell(weight: Tensor) -> None:
    assert fingerprint(weight).family != "orthogonal"


def test_constant_matrices_have_a_name_of_their_own() -> None:
    assert fingerprint(torch.zeros(10, 10)).label == "constant"


@pytest.mark.parametrize("seed", range(20))
def test_trained_weights_are_unknown(seed: int) -> None:
    """A matrix with an outlying direction, as training leaves it."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(64, 32, generator=generator) * 0.1 + 0.3 * torch.outer(
        torch.randn(64, generator=generator), torch.randn(32, generator=generator)
    )
    assert fingerprint(weight).label == "unknown"


def _network(fill: Callable[[Tensor], object]) -> nn.ModuleDict:
    torch.manual_seed(0)
    convs = nn.ModuleList(TransformerConv(32, 32, heads=2, concat=False) for _ in range(2))
    head = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 32))
    for linear in head:
        fill(linear.weight)
    return nn.ModuleDict({"convs": convs, "head": head})


def _facts(net: nn.Module, **more: object):
    return recover(stored(net, **more))


def test_a_fresh_network() -> None:
    facts = _facts(_network(lambda w: init.orthogonal_(w, math.sqrt(2))))
    assert [layer.initialisation for layer in facts.layers] == ["pyg-default", "pyg-default"]
    assert facts.linear_initialisation == "orthogonal(1.41)"
    assert facts.linear_layers == 3
    assert facts.trained is False
    assert "initial distribution" in facts.trained_reason


@one_thread()
def test_a_few_steps_of_adam_are_light_training_and_many_are_unknown() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 64)
    init.orthogonal_(linear.weight)
    optimizer = torch.optim.Adam(linear.parameters(), lr=1e-3)
    target = torch.randn(64, 64)
    labels = {}
    for step in range(1, 1501):
        x = torch.randn(8, 64)
        loss = (linear(x) - torch.tanh(x @ target)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (1, 30, 1500):
            labels[step] = fingerprint(linear.weight)
    assert labels[1].label == "orthogonal(1.00)"
    assert labels[30].family == "orthogonal"
    assert labels[30].label.endswith("lightly trained")
    assert labels[1500].label == "unknown"


def test_signs_of_training() -> None:
    net = _network(init.xavier_uniform_)
    assert _facts(net, progress={"epoch": 3}).trained is True
    assert "epoch = 3" in _facts(net, progress={"epoch": 3}).trained_reason
    assert _facts(net, progress={"epoch": 0}).trained is False
    net["norm"] = nn.LayerNorm(8)
    assert _facts(net).trained is False
    net["norm"].weight.data[0] += 1e-3
    facts = _facts(net)
    assert facts.trained is True
    assert "norm.weight" in facts.trained_reason


def test_no_evidence_is_no_answer() -> None:
    net = _network(init.xavier_uniform_)
    for parameter in net.parameters():
        parameter.data.copy_(torch.randn_like(parameter) ** 3)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    assert _facts(net).trained is None


def test_labels_of_groups() -> None:
    fresh, light = Fingerprint("orthogonal", 1.0, True), Fingerprint("orthogonal", 1.02, False)
    assert shared_label([fresh, fresh]) == "orthogonal(1.00)"
    assert shared_label([fresh, light]) == "orthogonal(1.01), lightly trained"
    assert shared_label([fresh, Fingerprint("orthogonal", 0.01, True)]) == "mixed"
    assert shared_label([fresh, Fingerprint("unknown")]) == "unknown"
    assert shared_label([]) == "unknown"
    assert prevailing_label([fresh, fresh, Fingerprint("orthogonal", 0.01, True)]) == "orthogonal(1.00)"
    assert prevailing_label([fresh, Fingerprint("unknown"), Fingerprint("unknown")]) == "unknown"
