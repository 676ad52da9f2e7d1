"""`gnnstab check` on healthy models of several kinds of attention: it exits 0, and counts what the other faces count."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gnnstab.cli.group import run
from torch import Tensor, nn
from torch_geometric.nn import SuperGATConv
from torch_geometric.nn.attention import PerformerAttention, SGFormerAttention

import gnnstab
from probe.layers.generic_models import WIDTH, Dense, InMessage, graph

NETWORK = """
from torch import nn, relu
import torch
from torch_geometric.nn import GATConv, GATv2Conv, GPSConv
from probe.layers.generic_models import Dense, InMessage

class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.first, self.layer, self.out = GATConv(16, 4, heads=4), layer, nn.Linear(16, 4)

    def forward(self, x, edge_index):
        x = relu(self.first(x, edge_index))
        x = x + (self.layer(x) if isinstance(self.layer, Dense) else self.layer(x, edge_index))
        return self.out(x)

def make(layer):
    torch.manual_seed(0)
    return Net(layer())

def gat(): return make(lambda: GATConv(16, 4, heads=4))
def gatv2(): return make(lambda: GATv2Conv(16, 4, heads=4))
def gps(): return make(lambda: GPSConv(16, GATConv(16, 16), heads=4))
def own(): return make(InMessage)
def dense(): return make(Dense)
"""


@pytest.mark.parametrize(("name", "layers"), [("gat", 2), ("gatv2", 2), ("gps", 3), ("own", 2), ("dense", 2)])
def test_a_healthy_model_passes_the_check(
    name: str, layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "healthy_nets.py").write_text(NETWORK, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "healthy_nets", raising=False)
    import healthy_nets

    model = getattr(healthy_nets, name)()
    torch.save(model.state_dict(), "weights.pt")
    x, edge_index, _ = graph()
    torch.save({"x": x, "edge_index": edge_index}, "batch.pt")
    code = run(
        ["check", "weights.pt", "--model", f"healthy_nets:{name}", "--batch", "batch.pt", "--output", "json=out.json"]
    )
    told = capsys.readouterr().out
    assert code == 0, told
    assert told.startswith("STABLE")
    seen = json.loads(Path("out.json").read_text(encoding="utf-8"))["coverage"]
    looked = gnnstab.diagnose(model, batch=(x, edge_index)).coverage
    assert (seen["layers_observed"], seen["layers_expected"]) == (layers, layers)
    assert (looked.layers_observed, looked.layers_expected) == (layers, layers)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: nn.ModuleList([Dense(), Dense()]), "weights alone do not show 2 layers"),
        (InMessage, "weights alone do not show 1 layer"),
        (lambda: SuperGATConv(8, 8, heads=2), "weights alone do not show 1 layer"),
        (lambda: nn.ModuleDict({"to_qkv": nn.Linear(8, 24)}), "weights alone do not show 1 layer"),
        (lambda: nn.ModuleDict({"wq": nn.Linear(8, 8), "out": nn.Linear(8, 8)}), "no attention recognised in the weights"),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)), "no attention recognised in the weights"),
    ],
    ids=["dense", "message", "supergat", "packed", "query-alone", "mlp"],
)  # fmt: skip
def test_attention_that_a_file_does_not_show_is_one_calm_line(
    make: Callable[[], nn.Module],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing but finite weights was seen, which is not enough to pass a gate: the exit code is that of nothing judged."""
    monkeypatch.chdir(tmp_path)
    torch.save(make().state_dict(), "weights.pt")
    assert run(["check", "weights.pt"]) == 3
    assert capsys.readouterr().out == f"NOT EVALUABLE  weights.pt: {told}; pass --model --batch\n"
    diagnosis = gnnstab.diagnose("weights.pt")
    assert f"{told}; pass model= batch=" in str(diagnosis)
    assert [f.severity for f in diagnosis.findings] == ["info"] * diagnosis.coverage.layers_expected


@pytest.mark.parametrize("kind", [SGFormerAttention, PerformerAttention])
def test_linear_attention_is_named_and_never_none_of_none(kind: type[nn.Module]) -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = kind(WIDTH, 2, 8) if kind is SGFormerAttention else kind(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.attend(x.unsqueeze(0))[0]

    diagnosis = gnnstab.diagnose(Linear(), batch=(graph()[0],))
    assert (diagnosis.coverage.layers_observed, diagnosis.coverage.layers_expected) == (0, 1)
    (note,) = [blind for blind in diagnosis.coverage.blind if blind.layer == "attend"]
    assert kind.__name__ in note.site
    assert "linear attention has no softmax" in note.reason
    assert not [f for f in diagnosis.findings if f.severity != "info"]
