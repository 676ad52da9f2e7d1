"""What holds for every measurement: names, device, inputs, generators, degenerate graphs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch_geometric.nn import TransformerConv

from gnnstab.layers import LAYERS, Call
from gnnstab.probe.statistics import (
    Measured,
    activation_measures,
    aggregation_measures,
    attention_measures,
    degree_measures,
    graph_measures,
    node_measures,
)
from gnnstab.records import SIGNALS

DOCS = Path(__file__).parents[3] / "docs" / "signals.md"


def everything(call: Call, conv: TransformerConv, batch: Tensor | None = None) -> dict[str, Measured]:
    size = call.x_target.shape[0]
    assert call.message is not None
    return {
        **node_measures(call.x_target, batch),
        **(graph_measures(batch) if batch is not None else {}),
        **degree_measures(call.index_target, size),
        **aggregation_measures(call.message.index_select(0, call.index_target), call.index_target, size),
        **activation_measures(call.x_target, call.output, batch),
        **attention_measures(call, LAYERS[0], conv, batch),
    }


def tensors_of(call: Call) -> dict[str, Tensor]:
    return {f.name: v for f in dataclasses.fields(call) if isinstance(v := getattr(call, f.name), Tensor)}


def test_every_name_is_in_the_vocabulary_and_explained(made: Callable[..., Any]) -> None:
    found = everything(*made(beta=True), torch.zeros(20, dtype=torch.long))
    assert set(found) <= set(SIGNALS)
    text = DOCS.read_text(encoding="utf-8")
    assert [name for name in SIGNALS if f"`{name}`" not in text] == []


def test_totals_are_scalars_and_heads_are_vectors(made: Callable[..., Any]) -> None:
    for name, value in everything(*made()).items():
        assert value.total is not None
        assert value.total.shape == (), name
        assert value.total.dtype == torch.float64, name
        assert (value.per_head is not None) == name.startswith(
            ("score.", "attention.", "precision.rounding", "precision.fp16")
        )
        assert value.per_head is None or value.per_head.shape == (3,)


@pytest.mark.parametrize("options", [{}, {"beta": True}, {"root_weight": False, "edge_dim": None}])
def test_nothing_waits_for_the_device(made: Callable[..., Any], options: dict[str, Any]) -> None:
    """Fake tensors hold no values: whatever would read one on the host, or size a result by one, raises."""
    call, conv = made(**options)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = dataclasses.replace(call, **{k: mode.from_tensor(v) for k, v in tensors_of(call).items()})
        found = everything(fake, conv, mode.from_tensor(torch.zeros(20, dtype=torch.long)))
        assert len(found) > 30
        with pytest.raises(DataDependentOutputException):
            fake.score.max().item()


def test_inputs_and_generators_stay_as_they_are(made: Callable[..., Any]) -> None:
    call, conv = made(dropout=0.3, beta=True)
    tensors, kept = tensors_of(call), {k: v.clone() for k, v in tensors_of(call).items()}
    state, generator = {k: v.clone() for k, v in conv.state_dict().items()}, torch.get_rng_state()
    everything(call, conv, torch.zeros(20, dtype=torch.long))
    assert all(torch.equal(v, kept[k]) for k, v in tensors.items())
    assert all(torch.equal(v, state[k]) for k, v in conv.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())


def test_gradients_and_autocast_around_do_not_reach_the_numbers(made: Callable[..., Any]) -> None:
    call, conv = made()
    expected = everything(call, conv)
    attached = dataclasses.replace(
        call, **{k: v.requires_grad_() for k, v in tensors_of(call).items() if v.is_floating_point()}
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = everything(attached, conv)
    for name, value in found.items():
        assert not value.total.requires_grad
        assert torch.allclose(value.total, expected[name].total, equal_nan=True), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("nodes", "edges"), [(0, []), (1, []), (1, [(0, 0)]), (4, []), (4, [(0, 1), (1, 2), (2, 3)]), (3, [(0, 1), (2, 1)])]
)
@pytest.mark.parametrize("fill", [None, math.nan, 0.0, 6e4])
def test_degenerate_graphs_never_raise(dtype: torch.dtype, nodes: int, edges: list[Any], fill: float | None) -> None:
    torch.manual_seed(0)
    conv = TransformerConv(3, 2, heads=2, edge_dim=1).to(dtype)
    index = torch.tensor(edges, dtype=torch.long).view(-1, 2).t()

    def make(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype) if fill is None else torch.full(shape, fill, dtype=dtype)

    x, count = make(nodes, 3), index.shape[1]
    call = Call(x, x, index[0], index[1], make(count, 1), make(count, 2), make(count, 2), make(nodes, 4))
    call.message = make(nodes, 4)
    found = everything(call, conv, torch.zeros(nodes, dtype=torch.long))
    assert all(value.total.shape == () for value in found.values())
    if fill is not None and math.isnan(fill) and nodes:
        graph = ("degree.", "graph.", "feature.non_finite", "skip.rms")
        finite = [n for n, v in found.items() if not n.startswith(graph) and torch.isfinite(v.total)]
        assert finite == []


def test_double_precision_stays_double() -> None:
    torch.manual_seed(0)
    x = 1 + 1e-12 * torch.randn(40, 3, dtype=torch.float64)
    assert float(activation_measures(x, x)["smoothness.relative"].total) == pytest.approx(1e-12, rel=0.3)
