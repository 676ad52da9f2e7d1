"""Attention is recognised by what a forward computes: exponentials over their sum, altered softmaxes, linear attention."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import DNAConv, GCNConv, models
from torch_geometric.nn.aggr import Set2Set

import gnnstab
from gnnstab.probe.attaching.discovery import find_layers
from gnnstab.probe.layers import DenseSoftmaxRecorder
from gnnstab.probe.state import State
from probe.layers.own_normalisation import (
    DENSE,
    LINEAR,
    NO_ATTENTION,
    OVER_EDGES,
    WIDTH,
    Contrast,
    Masked,
    N,
    adjacency,
    edge_weights,
    edges,
)


class Net(nn.Module):
    """One layer and a read-out."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.out = kind(), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        out: Tensor = self.out(self.layer(x, given))
        return out


def batch(kind: Any) -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    return torch.randn(N, WIDTH), adjacency() if kind in DENSE else edges()


def looked(kind: Any) -> gnnstab.Diagnosis:
    return gnnstab.diagnose(Net(kind), batch=batch(kind), loss=lambda out, _: (out - 1).square().mean())


@pytest.mark.parametrize("kind", OVER_EDGES + DENSE)
def test_attention_is_seen_and_a_healthy_layer_is_called_stable(kind: Any) -> None:
    diagnosis = looked(kind)
    # A mask behind the softmax takes weight away that nothing gives back.
    assert [f.code for f in diagnosis.findings if f.severity != "info"] == (["GS305"] if kind is Masked else [])
    assert [(layer.name, layer.attention) for layer in diagnosis.layers] == [("layer", True)]
    assert {s.layer for s in diagnosis.signals if s.name == "attention.entropy"} == {"layer"}


@pytest.mark.parametrize("kind", OVER_EDGES)
def test_scores_and_weights_over_edges_are_the_layers_own(kind: Any) -> None:
    model, (x, e) = Net(kind).double(), batch(kind)
    if kind.__name__ == "SparseSoftmax":  # A matrix keeps the edges by row and column, equal ones as one.
        e = e[:, (e[1] * N + e[0]).unique(return_inverse=True)[1].argsort()]
        e = torch.unique(e.flip(0), dim=1).flip(0)
    torch.set_default_dtype(torch.float64)
    try:
        (call,) = gnnstab.attention(model, (x.double(), e))
        score = model.layer.scores(x.double(), e)
    finally:
        torch.set_default_dtype(torch.float32)
    if kind.__name__ == "Inverse":
        score = score.clamp(-5, 5)
    assert torch.allclose(call.score[:, 0], score, rtol=1e-9)
    assert torch.allclose(call.attention[:, 0], edge_weights(score, e), rtol=1e-9)
    assert torch.equal(call.target, e[1])
    assert call.source is not None
    assert torch.equal(call.source, e[0])


@pytest.mark.parametrize("kind", OVER_EDGES + DENSE + LINEAR)
def test_the_run_stays_the_same_to_the_bit(kind: Any) -> None:
    x, given = batch(kind)
    found = []
    for watched in (False, True):
        model = Net(kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gnnstab.Monitor(model, optimizer=optimizer) if watched else nullcontext() as monitor:
            for _ in range(5):
                optimizer.zero_grad()
                model(x, given).square().mean().backward()
                optimizer.step()
        if monitor is not None:
            assert monitor.diagnose().coverage.layers_expected == 1
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("kind", NO_ATTENTION)
def test_exponentials_for_other_ends_are_no_attention(kind: Any) -> None:
    diagnosis = looked(kind)
    assert not diagnosis.layers
    assert diagnosis.coverage.layers_expected == 0


def test_a_softmax_that_weighs_nothing_is_told_where_no_attention_was_recognised() -> None:
    diagnosis = looked(Contrast)
    assert diagnosis.context["normalising"] == ("layer",)
    assert "softmax-like normalisation seen in layer" in str(diagnosis).replace("\n", " ")


@pytest.mark.parametrize("kind", LINEAR)
def test_linear_attention_is_blind_by_name_and_reason(kind: Any) -> None:
    diagnosis = looked(kind)
    (note,) = diagnosis.coverage.blind
    assert (note.layer, note.site) == ("layer", f"scores of {kind.__name__}")
    assert "linear attention has no softmax" in note.reason
    assert diagnosis.coverage.layers_expected == 1


class Readout(nn.Module):
    """PyG's attention over the nodes of a graph, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.readout = GCNConv(WIDTH, WIDTH), Set2Set(WIDTH, 2)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        out: Tensor = self.readout(self.conv(x, e), torch.zeros(N, dtype=torch.long))
        return out


class Jumping(nn.Module):
    """PyG's attention of a node over its own earlier states."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = DNAConv(WIDTH, 2)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        out: Tensor = self.conv(torch.stack([x, x.relu()], 1), e)
        return out


@pytest.mark.parametrize(("kind", "name"), [(Readout, "readout"), (Jumping, "conv.multi_head")])
def test_attention_that_pyg_writes_out_is_seen(kind: Any, name: str) -> None:
    torch.manual_seed(0)
    diagnosis = gnnstab.diagnose(kind(), batch=batch(kind), loss=lambda out, _: out.square().mean())
    assert [layer.name for layer in diagnosis.layers if layer.attention] == [name]
    assert diagnosis.coverage.layers_observed == 1


@pytest.mark.parametrize("kind", ["GCN", "GAT", "GIN", "GraphSAGE", "PNA"])
def test_no_forward_of_known_layers_is_looked_into(kind: str) -> None:
    more = {"aggregators": ["mean"], "scalers": ["identity"], "deg": torch.tensor([1, 2])} if kind == "PNA" else {}
    model = getattr(models, kind)(WIDTH, WIDTH, 2, **more)
    assert not [one for one in find_layers(model, State()) if isinstance(one, DenseSoftmaxRecorder)]
