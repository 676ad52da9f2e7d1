"""A bare checkpoint's layers keep their names, whatever a rebuilt module may not be called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch_geometric.nn import TransformerConv

import gnnstab


@pytest.mark.parametrize("name", ["convs", "paths", "forward", "train", "layers", "T_destination", "0"])
def test_every_layer_is_there_once_under_its_own_name(name: str, tmp_path: Path) -> None:
    state = {
        f"{name}.{i}.{key}": value
        for i in range(2)
        for key, value in TransformerConv(8, 8, heads=2, concat=False).state_dict().items()
    }
    torch.save(state, tmp_path / "actor.pt")
    diagnosis = gnnstab.diagnose(tmp_path / "actor.pt")
    assert [layer.name for layer in diagnosis.layers] == [f"{name}.0", f"{name}.1"]
    seen = {(s.layer, s.source) for s in diagnosis.signals if s.layer is not None}
    assert seen == {(f"{name}.{i}", source) for i in range(2) for source in ("weights", "synthetic")}
    assert diagnosis.coverage.layers_expected == 2


def test_a_file_that_is_one_layer_alone(tmp_path: Path) -> None:
    conv: nn.Module = TransformerConv(8, 8, heads=2, concat=False)
    torch.save(conv.state_dict(), tmp_path / "layer.pt")
    diagnosis = gnnstab.diagnose(tmp_path / "layer.pt", heads=2)
    assert [layer.name for layer in diagnosis.layers] == [""]
    assert diagnosis.coverage.layers_expected == 1
