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


LONG = "encoder_of_the_graph_with_a_name_that_goes_on." * 5


@pytest.mark.parametrize("times", [1, 8])
@pytest.mark.parametrize("nested", [False, True])
def test_a_layer_deep_in_a_network_is_found(times: int, nested: bool, tmp_path: Path) -> None:
    state = TransformerConv(8, 8, heads=2, concat=False).state_dict()
    prefix = f"{LONG * times}convs.0"
    torch.save({prefix: state} if nested else {f"{prefix}.{k}": v for k, v in state.items()}, tmp_path / "deep.pt")
    diagnosis = gnnstab.diagnose(tmp_path / "deep.pt")
    (layer,) = diagnosis.layers
    assert layer.name == ("" if nested else prefix), "the name of a single entry is no prefix"
    assert LONG not in str(diagnosis), "a report shortens what it shows"


def test_names_without_an_end_are_told(tmp_path: Path) -> None:
    state = TransformerConv(8, 8, heads=2, concat=False).state_dict()
    torch.save({f"{LONG * 10}.{k}": v for k, v in state.items()}, tmp_path / "deep.pt")
    assert "8 names of more than 2000 characters" in " ".join(gnnstab.diagnose(tmp_path / "deep.pt").target.notes)


def test_a_layer_deep_in_a_module_that_was_saved_whole_is_found(tmp_path: Path) -> None:
    inner: nn.Module = TransformerConv(8, 8, heads=2, concat=False)
    for _ in range(6):
        inner = nn.ModuleDict({"a_long_name_of_a_part_of_a_network_without_an_end": inner})
    torch.save(inner, tmp_path / "whole.pt")
    assert len(gnnstab.diagnose(tmp_path / "whole.pt").layers) == 1
