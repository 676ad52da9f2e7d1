"""Roles of tensors, numbers at one place, and what is read from an autograd graph, each by a second road."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gnnstab.probe.batches.roles import is_target, value_columns
from gnnstab.probe.places import _autograd as autograd
from gnnstab.probe.places import _numbers as numbers
from gnnstab.probe.places import not_held
from gnnstab.probe.places.survey import _graphs


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6),
        torch.tensor([True, False]),
        torch.arange(6.0),
        torch.eye(4),
        torch.tensor([[3.0, 0.0], [17.0, 1.0]]),
        torch.tensor([[float("nan")], [4.0]]),
        torch.empty(0, 3),
        torch.empty(2, 0, dtype=torch.long),
    ],
)
def test_ids_counts_masks_and_codes_are_no_values(tensor: Tensor) -> None:
    assert not value_columns(tensor).any()


def test_values_are_told_column_by_column() -> None:
    mixed = torch.cat([random(9, 2), torch.arange(9.0)[:, None], torch.full((9, 1), 0.5)], 1)
    assert value_columns(mixed).tolist() == [True, True, False, True]
    assert value_columns(random(7)).tolist() == [True]
    assert value_columns(random(2, 3, 4)).tolist() == [True] * 4


@pytest.mark.parametrize(("last", "known"), [(1, True), (5, True), (6, False), (2**45, False), (-1, False)])
def test_graphs_are_numbered_within_the_rows(last: int, known: bool) -> None:
    graphs = torch.tensor([0, 0, 0, 1, 1, last])
    assert (_graphs([graphs], frozenset({6})) is graphs) == known


def test_targets_are_told_by_their_name() -> None:
    assert is_target("y") and is_target("paper.y") and is_target("batch.Labels")
    assert not is_target("x") and not is_target("y_pos") and not is_target("edge_attr")


def test_difference_of_nodes_per_graph() -> None:
    x, graphs = random(6, 3), torch.tensor([0, 0, 0, 1, 1, 1])
    parts = [x[:3] - x[:3].mean(0), x[3:] - x[3:].mean(0)]
    assert numbers.difference(x, graphs) == pytest.approx(float(torch.cat(parts).norm() / x.norm()), rel=1e-6)
    assert numbers.difference(x, None) == pytest.approx(float((x - x.mean(0)).norm() / x.norm()), rel=1e-6)
    assert numbers.difference(torch.ones(4, 2), None) == 0
    assert math.isnan(numbers.difference(torch.zeros(4, 2), None))
    assert math.isnan(numbers.difference(torch.full((4, 2), float("nan")), None))


def test_column_ratio() -> None:
    x = torch.tensor([[1.0, 1.0, 50.0, 0.0], [1.0, 1.0, 50.0, 0.0]])
    assert numbers.column_ratio(x.double()) == (50.0, 2)
    assert math.isnan(numbers.column_ratio(torch.ones(4, 1).double())[0])


def test_rms_leaves_out_what_is_not_finite() -> None:
    assert numbers.rms(torch.tensor([3.0, float("nan"), 4.0, float("inf")])) == pytest.approx(math.sqrt(12.5))
    assert math.isnan(numbers.rms(torch.tensor([float("nan")])))


def test_dead_channels() -> None:
    result = torch.ones(100, 4)
    result[:, 0] = 0
    result[2:, 1] = 0  # Open in 2 % of the rows.
    result[3:, 2] = 0  # In 3 %.
    assert numbers.dead_share(result) == 0.5
    assert math.isnan(numbers.dead_share(result[:7])) and math.isnan(numbers.dead_share(result[:, :3]))
    assert math.isnan(numbers.dead_share(result * float("nan")))


CLAMPS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp by tensors": lambda x: torch.clamp(x, torch.tensor(-0.5), torch.tensor(0.5)),
    "clamp_min": lambda x: x.clamp_min(0.3),
    "clamp from above": lambda x: x.clamp(max=0.4),
    "hardtanh": lambda x: F.hardtanh(x, -0.2, 0.7),
    "relu6": F.relu6,
    "minimum": lambda x: torch.minimum(x, torch.tensor(0.1)),
    "maximum": lambda x: torch.maximum(x, torch.tensor(0.1)),
    "in place": lambda x: (x * 1).clamp_(-0.5, 0.5),
    "a ReLU by another name": lambda x: x.clamp(min=0),
}


@pytest.mark.parametrize("name", CLAMPS)
def test_what_a_clamp_cuts_is_what_has_no_gradient(name: str) -> None:
    x = (10 * random(40, 5) if name == "relu6" else random(40, 5)).requires_grad_()
    y = CLAMPS[name](x)
    found = autograd.measure(y.grad_fn)
    assert found is not None and found[0] == "place.clamped_share"
    y.sum().backward()
    assert x.grad is not None
    cut = (x.grad == 0) & ((y - x).abs() > 0.01 * x.square().mean().sqrt())
    expected = (cut & (x > 0)) if name in ("relu6", "a ReLU by another name") else cut
    assert found[1] == pytest.approx(float(expected.double().mean()))
    assert (found[1] > 0) == (name != "a ReLU by another name")


@pytest.mark.parametrize(
    ("entries", "low", "high"),
    [([1.0, -1.0, 0.3, 0.0], -1 + 1e-4, 1 - 1e-4), ([0.0, 1.0, 2.0, 0.5], 1e-6, None)],
    ids=["an arc cosine", "a root"],
)
def test_a_guard_cuts_nothing(entries: list[float], low: float, high: float | None) -> None:
    x = torch.tensor(entries)
    assert numbers.cut_share(x, low, high) == 0
    assert numbers.cut_share(x, 10 * x.max().item(), None) == 1, "far beyond a limit"


@pytest.mark.parametrize(
    ("behind", "limit", "flat"),
    [(torch.sigmoid, 15.0, True), (torch.sigmoid, 2.0, False), (torch.tanh, 5.0, True), (torch.exp, 15.0, False)],
)
def test_a_clamp_where_what_reads_it_is_flat_takes_nothing_away(behind: Any, limit: float, flat: bool) -> None:
    clamp = (40 * random(40, 5)).requires_grad_().clamp(-limit, limit)
    reader = behind(clamp).grad_fn
    assert autograd.flat_behind(clamp.grad_fn, [reader]) is flat
    assert not autograd.flat_behind(clamp.grad_fn, [])
    assert not autograd.flat_behind(clamp.grad_fn, [reader, (2 * clamp).grad_fn])


def test_minimum_of_two_states_is_no_clamp() -> None:
    x = random(4, 4).requires_grad_()
    assert autograd.measure(torch.minimum(x, x.flip(0)).grad_fn) is None


def test_a_graph_that_was_freed_says_nothing() -> None:
    y = random(40, 5).requires_grad_().relu()
    assert autograd.measure(y.grad_fn) is not None
    y.sum().backward()
    assert autograd.measure(y.grad_fn) is None


def test_leaves_and_reaching() -> None:
    w, x = random(3, 3).requires_grad_(), random(3, 3)
    h = (x @ w).tanh()
    y = h + h.relu()
    assert [leaf is w for leaf in autograd.leaves([y])] == [True]
    assert autograd.reaches(y.grad_fn, h.grad_fn) and not autograd.reaches(h.grad_fn, y.grad_fn)


def test_what_no_optimizer_holds() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    assert not_held(model, optimizer.param_groups) == {}
    assert not_held(model, []) == {}
    model[1] = torch.nn.Linear(2, 2)
    found = not_held(model, optimizer.param_groups)
    assert found == {"parameters": ["1.weight", "1.bias"], "count": 2, "share": 0.5, "strangers": 2, "held": 4}
