"""The rules on real trained networks and on references of the field that are known to be healthy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

from gnnstab.checkpoint import load, recover, recover_model
from gnnstab.probe.measure import measure
from gnnstab.records import Cause, Finding, Signals
from gnnstab.rules import causes, run
from gnnstab.rules.explanation import is_warning
from gnnstab.signals import from_checkpoint, from_trace, join
from models.informarl import DATA, load_actor, sample_batch


def observed(model: nn.Module, batch: dict[str, Tensor], precision: str = "fp32") -> Signals:
    return join(from_trace(measure(model, batch, precision=precision)), from_checkpoint(recover_model(model)))


def judged(signals: Signals) -> tuple[list[Finding], dict[str, Cause]]:
    outcome = run(signals)
    found = causes(outcome.findings, outcome.statuses, signals)
    return [f for f in outcome.findings if is_warning(f)], {cause.cause: cause for cause in found}


def test_the_healthy_actor_is_silent() -> None:
    warnings, found = judged(observed(load_actor("healthy_3agents"), sample_batch(3)))
    assert warnings == []
    assert found["attention-explosion"].status == "absent"


def test_seven_agents_saturate_through_the_sum() -> None:
    warnings, found = judged(observed(load_actor("agents7_default"), sample_batch(7)))
    assert [(f.code, f.layer, f.severity, f.explained_by) for f in warnings] == [
        ("GS302", "gnn.gnn1", "warning", "GS401"),
        ("GS401", "gnn.embed_layer", "warning", None),
    ]
    assert [name for name, cause in found.items() if cause.status == "root-cause"] == ["sum-aggregation"]
    assert {name: found[name].status for name in ("no-dropout", "beta-disabled", "no-residual", "unsuitable-init")} == {
        "no-dropout": "present",
        "beta-disabled": "present",
        "no-residual": "present",
        "unsuitable-init": "not-evaluable",
    }


def test_a_large_learning_rate_has_ruined_the_attention() -> None:
    warnings, found = judged(observed(load_actor("agents7_lr7e-3_saturated"), sample_batch(7)))
    assert ("GS302", "error") in {(f.code, f.severity) for f in warnings}
    assert found["attention-explosion"].codes == ("GS301", "GS302")


def test_the_overflow_of_fp16_is_located() -> None:
    warnings, found = judged(observed(load_actor("agents7_lr7e-2_amp16_nan_crash"), sample_batch(7), "fp16"))
    (first,) = [f for f in warnings if f.code == "GS502"]
    assert (first.layer, first.cause, first.severity) == ("gnn.gnn2.1", "precision", "error")
    assert "stage score" in first.message
    assert "made here" in first.message
    assert found["precision"].status == "root-cause"


@pytest.mark.parametrize(
    ("file", "codes"),
    [
        ("healthy_3agents/actor.pt", set()),
        ("healthy_3agents/critic.pt", set()),
        ("agents7_default/actor.pt", set()),
        ("agents7_default/critic.pt", set()),
        ("agents7_lr7e-3_saturated/actor.pt", {"GS301"}),
        ("agents7_lr7e-2_amp16_nan_crash/actor.pt", {"GS301"}),
    ],
)
def test_sharpened_attention_of_a_file_alone_is_information(file: str, codes: set[str]) -> None:
    """Healthy files of other tasks are sharper than these ruined ones."""
    outcome = run(from_checkpoint(recover(load(DATA / file))))
    assert {f.code for f in outcome.findings if f.code == "GS301"} == codes
    assert not [f for f in outcome.findings if is_warning(f)]


class Stack(nn.Module):
    """Attention layers in a row with what the field puts around them."""

    def __init__(self, convs: list[TransformerConv], width: int, *, norm: str = "", residual: bool = False) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm else nn.Identity() for _ in convs)
        self.norm, self.residual = norm, residual

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = conv(norm(x) if self.norm == "before" else x, edge_index)
            h = norm(h) if self.norm == "after" else h
            x = x + h.relu() if self.residual else h.relu()
        return x


class Lookup(nn.Module):
    """Looks the first column up in an embedding."""

    def __init__(self, nodes: int, body: nn.Module) -> None:
        super().__init__()
        self.lookup, self.body = nn.Embedding(nodes, 32), body

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.body((self.lookup(x[:, 0].long()) + x[:, 1:33]) / 2**0.5, edge_index)
        return out


def random_graph(nodes: int, degree: int) -> Tensor:
    source = torch.randint(nodes, (nodes * degree,))
    return torch.stack([source, torch.arange(nodes).repeat_interleave(degree)])


def tree(nodes: int) -> Tensor:
    """Every node but the root listens to its parent."""
    child = torch.arange(1, nodes)
    return torch.stack([(child - 1) // 2, child])


def unimp() -> nn.Module:
    return Stack([TransformerConv(32, 8, heads=4, beta=True, dropout=0.3) for _ in range(3)], 32, norm="after")


def tgn() -> nn.Module:
    return Stack([TransformerConv(32, 16, heads=2, dropout=0.1)], 32)


def deep_pre_norm() -> nn.Module:
    return Stack([TransformerConv(32, 32) for _ in range(12)], 32, norm="before", residual=True)


def orthogonal() -> nn.Module:
    model = Stack([TransformerConv(32, 32) for _ in range(3)], 32)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.orthogonal_(parameter, 2**0.5)
    return model


def sharp() -> nn.Module:
    """One layer whose attention is concentrated, as the best small networks have it."""
    model = Stack([TransformerConv(32, 32)], 32)
    with torch.no_grad():
        model.convs[0].lin_query.weight *= 2.2
        model.convs[0].lin_key.weight *= 2.2
    return model


@pytest.mark.parametrize("make", [unimp, tgn, deep_pre_norm, orthogonal, sharp])
@pytest.mark.parametrize("graph", ["sparse", "dense", "tree", "large", "id column"])
def test_known_good_references_stay_silent(make: Callable[[], nn.Module], graph: str) -> None:
    torch.manual_seed(7)
    nodes = 200 if graph == "large" else 40
    x = torch.randn(nodes, 32)
    edges = tree(nodes) if graph == "tree" else random_graph(nodes, 20 if graph == "dense" else 8)
    model = make()
    if graph == "id column":
        # An id that the network looks up: large as a number, harmless as an input.
        model = Lookup(nodes, model)
        x = torch.cat([torch.arange(nodes).float()[:, None], x], dim=1)
    warnings, _ = judged(observed(model, {"x": x, "edge_index": edges}))
    allowed = {"GS105"} if graph == "tree" else set()
    assert {f.code for f in warnings} <= allowed, [f.message for f in warnings]
