"""Every kind of attention through all faces: monitor, model with a batch, bare file, compiler; all count the same layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GATv2Conv, GPSConv, Sequential, TransformerConv

import gnnstab

KINDS = pytest.mark.parametrize("kind", [TransformerConv, GATConv, GATv2Conv], ids=lambda kind: kind.__name__)


class Net(nn.Module):
    """Two layers for node classification, healthy."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = kind(16, 8, heads=4), kind(32, 4, concat=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x, edge_index)), edge_index)


def graph() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(100, 16), torch.randint(0, 100, (2, 600)), torch.randint(0, 4, (100,))


def counted(diagnosis: gnnstab.Diagnosis) -> tuple[int, int]:
    return diagnosis.coverage.layers_observed, diagnosis.coverage.layers_expected


def both_faces(
    net: nn.Module, x: Tensor, edge_index: Tensor, y: Tensor, lr: float, steps: int, schedule: int
) -> tuple[gnnstab.Diagnosis, gnnstab.Diagnosis]:
    """Of a look with the batch, and of so many steps of Adam with a monitor."""
    looked = gnnstab.diagnose(net, batch=(x, edge_index), loss=lambda out, _: nn.functional.cross_entropy(out, y))
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    with gnnstab.Monitor(net, optimizer=optimizer, schedule=schedule) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x, edge_index), y).backward()
            optimizer.step()
    return looked, monitor.diagnose()


@KINDS
def test_a_healthy_model_is_seen_and_stable_with_a_batch_and_in_training(kind: Any) -> None:
    for diagnosis in both_faces(Net(kind), *graph(), lr=5e-3, steps=20, schedule=5):
        assert counted(diagnosis) == (2, 2)
        assert not [f for f in diagnosis.findings if f.severity != "info"]
        assert {layer.kind for layer in diagnosis.layers if layer.attention} == {kind.__name__}
        for name in ("attention.entropy", "score.within_std", "message.rms", "attention.entropy_unit_input"):
            assert {s.layer for s in diagnosis.signals if s.name == name} == {"first", "second"}, name
        (gate,) = [cause for cause in diagnosis.causes if cause.cause == "beta-disabled"]
        assert gate.status == ("present" if kind is TransformerConv else "absent")


@pytest.mark.parametrize(
    ("make", "status", "told"),
    [
        (lambda: GATConv(16, 16), "present", "0 of 2 layers have their own linear skip (residual=True)"),
        (lambda: GATConv(16, 16, residual=True), "present", "2 of 2 layers have their own linear skip (residual=True)"),
        (lambda: TransformerConv(16, 16), "present", "2 of 2 layers have their own linear skip (root_weight=True)"),
        (lambda: GPSConv(16, GATConv(16, 16), heads=2), "absent", "an identity path leads around 4 of 4 layers"),
    ],
    ids=["gat", "gat-residual", "transformer", "gps"],
)  # fmt: skip
def test_the_cause_of_a_missing_path_knows_the_branches_of_a_kind(make: Any, status: str, told: str) -> None:
    x, edge_index, _ = graph()
    net = Sequential("x, edge_index", [(make(), "x, edge_index -> x"), (make(), "x, edge_index -> x")])
    causes = {cause.cause: cause for cause in gnnstab.diagnose(net, batch=(x, edge_index)).causes}
    assert causes["no-residual"].status == status
    assert told in causes["no-residual"].reason
    assert causes["no-dropout"].status == "present"
    assert not [cause for cause in causes.values() if cause.status == "root-cause"]


@KINDS
def test_a_bare_file_shows_the_same_layers(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(Net(kind).state_dict(), path)
    diagnosis = gnnstab.diagnose(path, heads=None if kind is not TransformerConv else 4)
    assert counted(diagnosis) == (2, 2)
    assert [layer.kind for layer in diagnosis.layers] == [kind.__name__] * 2
    assert [layer.heads for layer in diagnosis.layers] == [4, 1 if kind is not TransformerConv else 4]
    assert not [f for f in diagnosis.findings if f.severity != "info"]
