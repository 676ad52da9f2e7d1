"""Node states, messages, channels and clamps against plain recomputations, and what must not be mistaken for them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.nn import TransformerConv

from gnnstab.layers import LAYERS
from gnnstab.probe.statistics import activation_measures, attention_measures
from gnnstab.probe.statistics.activations import (
    clip_share,
    dead_share,
    gate_measures,
    tanh_saturated_share,
    underflow_share,
)
from gnnstab.probe.statistics.smoothness import relative_difference


def totals(numbers: dict[str, Any]) -> dict[str, float]:
    return {name: float(value.total) for name, value in numbers.items()}


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.asarray(values, dtype=np.float64) ** 2)))


@pytest.mark.parametrize("options", [{}, {"concat": True}, {"beta": True}, {"root_weight": False}])
def test_scale_message_skip_and_gate_equal_to_plain_recomputations(
    made: Callable[..., Any], options: dict[str, Any]
) -> None:
    call, conv = made(**options)
    found = totals(attention_measures(call, LAYERS[0], conv))
    assert found["input.rms"] == pytest.approx(rms(call.x_source))
    assert found["input.max_abs"] == pytest.approx(float(call.x_source.abs().max()))
    assert found["output.rms"] == pytest.approx(rms(call.output))
    assert found["output.max_abs"] == pytest.approx(float(call.output.abs().max()))
    assert found["message.rms"] == pytest.approx(rms(call.message))
    if conv.root_weight:
        skip = conv.lin_skip(call.x_target).detach().numpy()
        assert found["skip.rms"] == pytest.approx(rms(skip), rel=1e-6)
        degree = np.bincount(call.index_target.numpy(), minlength=20)
        hubs = degree >= sorted(degree)[-1]
        assert found["hub.message_share"] == pytest.approx(rms(call.message[hubs]) / rms(skip), rel=1e-6)
    else:
        assert not {"skip.rms", "hub.message_share"} & set(found)
    if conv.beta:
        assert found["gate.mean"] == pytest.approx(float(call.gate.double().mean()))
    else:
        assert "gate.mean" not in found


@pytest.mark.parametrize(("options", "known"), [({}, True), ({"root_weight": False}, True), ({"beta": True}, False)])
def test_a_message_that_was_not_observed_is_the_output_without_the_skip(
    made: Callable[..., Any], options: dict[str, Any], known: bool
) -> None:
    call, conv = made(**options)
    found = totals(attention_measures(dataclasses.replace(call, message=None), LAYERS[0], conv))
    assert ("message.rms" in found) == known
    if known:
        assert found["message.rms"] == pytest.approx(rms(call.message), rel=1e-5)


def test_a_hub_hears_little(recorded: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    conv = TransformerConv(5, 4)
    leaves = torch.arange(1, 400)
    chain = torch.stack([leaves, leaves.roll(1)])
    edges = torch.cat([torch.stack([leaves, torch.zeros_like(leaves)]), chain], 1)
    call = recorded(conv, torch.randn(400, 5), edges)
    found = totals(attention_measures(call, LAYERS[0], conv))
    assert found["degree.max"] == 399
    # N/100 = 4 targets, but the fourth largest in-degree is 1: all of that in-degree belong to it.
    assert found["hub.message_share"] == pytest.approx(found["message.rms"] / found["skip.rms"], rel=0.01)
    both = torch.cat([edges, chain, torch.stack([leaves[:3], leaves[3:6]]).repeat(1, 9)], 1)
    call = recorded(conv, torch.randn(400, 5), both)
    hubs = [0, 4, 5, 6]
    expected = rms(call.message[hubs]) / rms(conv.lin_skip(call.x_target).detach())
    assert float(attention_measures(call, LAYERS[0], conv)["hub.message_share"].total) == pytest.approx(
        expected, rel=1e-6
    )


def test_gates_count_as_saturated_at_both_ends() -> None:
    gate = torch.tensor([[0.01], [0.04], [0.06], [0.5], [0.96]])
    assert totals(gate_measures(gate)) == pytest.approx({"gate.mean": 0.314, "gate.saturated_share": 0.6})
    gate[0] = math.nan
    assert all(math.isnan(v) for v in totals(gate_measures(gate)).values())
    assert all(math.isnan(v) for v in totals(gate_measures(gate[:0])).values())
    assert gate_measures(None) == {}


def test_dead_and_constant_channels() -> None:
    output = torch.tensor([[1.0, -1.0, 0.0, -5.0], [-2.0, -3.0, 0.0, 0.1]])
    assert float(dead_share(output)) == 0.5
    x = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.5, 0.0]])
    found = totals(activation_measures(x, output))
    assert found["channels.dead_share"] == 0.5
    assert found["channels.constant_share"] == pytest.approx(2 / 3)
    assert math.isnan(totals(activation_measures(x[:1], output[:1]))["channels.constant_share"])


def test_bipartite_inputs_are_both_covered() -> None:
    x, source = torch.tensor([[3.0, 1.0], [4.0, 1.0]]), torch.tensor([[0.0], [-10.0], [2.0]])
    found = totals(activation_measures(x, x, x_source=source))
    assert found["input.rms"] == pytest.approx(math.sqrt((9 + 1 + 16 + 1 + 0 + 100 + 4) / 7))
    assert found["input.max_abs"] == 10
    assert found["channels.constant_share"] == pytest.approx(1 / 3)


def test_tanh_saturation_needs_every_entry_within_one() -> None:
    x = torch.tensor([[0.98, -0.99, 0.5, 0.0]])
    assert float(tanh_saturated_share(x)) == 0.5
    assert float(tanh_saturated_share(torch.tensor([[0.98, 1.001]]))) == 0
    assert math.isnan(float(tanh_saturated_share(torch.tensor([[0.98, math.nan]]))))
    torch.manual_seed(0)
    z = 2 * torch.randn(500, 8, dtype=torch.float64)
    expected = np.mean(np.abs(np.tanh(z.numpy())) > 0.97)
    assert float(tanh_saturated_share(z.tanh())) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_underflow_counts_subnormal_entries(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([[0.0, tiny, tiny / 2, -tiny / 4]], dtype=dtype)
    assert float(underflow_share(x)) == 0.5


def clamped(limit: float, scale: float = 10.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, float]:
    torch.manual_seed(0)
    x = scale * torch.randn(300, 16)
    return x.clamp(-limit, limit).to(dtype), float((x.abs() >= limit).double().mean())


@pytest.mark.parametrize("limit", [5.0, 10.0, 20.0, 7.3])
def test_an_active_clamp_is_counted(limit: float) -> None:
    x, share = clamped(limit)
    assert share > 0.01
    assert float(clip_share(x)) == pytest.approx(share)


def test_a_clamp_shows_behind_and_before_a_relu_and_when_everything_is_clipped() -> None:
    x, _ = clamped(10.0)
    above = float((x == 10).double().mean())
    assert float(clip_share(x.relu())) == pytest.approx(above)
    assert float(clip_share((1e6 * x).clamp(-10, 10))) == pytest.approx(1.0)
    assert float(clip_share(F.hardtanh(x, -2, 6))) == pytest.approx(float((x >= 6).double().mean()))
    assert float(clip_share(F.relu6(x))) > 0.1


def look_alikes() -> dict[str, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(300, 16)
    kinds = torch.randint(0, 3, (300,))
    return {
        "continuous": x,
        "relu": x.relu(),
        "leaky relu": F.leaky_relu(x),
        "saturated tanh": (30 * x).tanh(),
        "bf16 tanh": (3 * x).bfloat16().tanh(),
        "sigmoid": (50 * x).sigmoid(),
        "bf16 gelu": F.gelu(x.bfloat16()),
        "bf16 silu": F.silu(3 * x.bfloat16()),
        "elu": F.elu(50 * x),
        "selu": F.selu(50 * x),
        "one-hot": F.one_hot(kinds, 3).float(),
        "signs": x.sign(),
        "constant columns": torch.full((300, 4), 2.5) * torch.tensor([1.0, 2.0, 3.0, 4.0]),
        "three kinds of nodes": x[:3][kinds],
        "collapsed nodes": x[:1].expand(300, 16),
        "the same graph twice": torch.cat([x, x]),
        "integer codes": torch.randint(0, 5, (300, 4)).float(),
        "counts and features": torch.cat([x, torch.randint(0, 9, (300, 2))], 1),
        "dropout": F.dropout(x, 0.5),
        "dropout of binary features": F.dropout((x > 1).float(), 0.2),
        "counts of words, scaled": 3.0 * (x > 1),
        "zeros": torch.zeros(10, 4),
    }


@pytest.mark.parametrize("name", look_alikes())
def test_what_is_no_clamp_is_not_counted(name: str) -> None:
    assert float(clip_share(look_alikes()[name])) == 0


def test_a_clamp_cannot_be_told_in_one_column_or_beside_nan() -> None:
    x, _ = clamped(5.0)
    assert math.isnan(float(clip_share(x[:, :1])))
    assert math.isnan(float(clip_share(x[:0])))
    x[3, 3] = math.nan
    assert math.isnan(float(clip_share(x)))


def relative_by_loops(x: Tensor, batch: Tensor) -> float:
    values = []
    for graph in sorted(set(batch.tolist())):
        rows = x.double().numpy()[batch.numpy() == graph]
        if len(rows) >= 2 and np.any(rows):
            values.append(np.linalg.norm(rows - rows.mean(0)) / np.linalg.norm(rows))
    return float(np.mean(values)) if values else math.nan


@given(seed=st.integers(0, 10**6), nodes=st.integers(1, 15), shift=st.floats(-100, 100), gap=st.integers(1, 1000))
@settings(max_examples=30, deadline=None)
def test_smoothness_is_taken_per_graph(seed: int, nodes: int, shift: float, gap: int) -> None:
    torch.manual_seed(seed)
    x, batch = torch.randn(nodes, 3, dtype=torch.float64) + shift, torch.randint(0, 4, (nodes,)) * gap
    assert float(relative_difference(x, batch)) == pytest.approx(relative_by_loops(x, batch), nan_ok=True)
    together = relative_by_loops(x, torch.zeros(nodes))
    assert float(relative_difference(x)) == pytest.approx(together, nan_ok=True)
    assert float(relative_difference(x, batch[:-1])) == pytest.approx(together, nan_ok=True)
    # Scale-free, and blind to the order of the nodes.
    order = torch.randperm(nodes)
    assert float(relative_difference(7 * x[order], batch[order])) == pytest.approx(
        relative_by_loops(x, batch), nan_ok=True
    )


def test_smoothness_sees_collapse_and_leaves_the_undefined_open() -> None:
    row = torch.randn(1, 8)
    assert float(relative_difference(row.expand(50, 8))) < 1e-6
    almost = row + 1e-4 * torch.randn(50, 8)
    assert 3e-5 < float(relative_difference(almost)) < 3e-4
    assert float(relative_difference(torch.tensor([[1.0], [-1.0]]))) == 1
    assert math.isnan(float(relative_difference(torch.zeros(5, 3))))
    assert math.isnan(float(relative_difference(row)))
    spoilt = torch.randn(6, 2)
    spoilt[0, 0] = math.nan
    assert math.isnan(float(relative_difference(spoilt, torch.tensor([0, 0, 0, 1, 1, 1]))))
