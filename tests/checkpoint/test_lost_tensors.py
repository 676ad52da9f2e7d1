"""A tensor that is an attribute of another one, or a key, is counted as not looked at; one that stands elsewhere too is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gnnstab
from attacks import call, storage, tensor, text, written
from gnnstab.report.summary import not_covered

OTHER = tensor((1,), (1,))
STATE = b"}" + text("extra") + OTHER + b"s"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"

LOST = {
    "a key of a dict": b"}" + OTHER + b"K\x01s",
    "an attribute of a tensor": tensor() + STATE + b"b",
    "an attribute of a dict": call("collections.OrderedDict") + STATE + b"b",
    "an attribute of a tensor of another class": call(
        "torch._tensor._rebuild_from_type_v2",
        REBUILD,
        b"cmine\nSub\n",
        b"(" + storage(4) + b"K\x00K\x02K\x02\x86K\x02K\x01\x86\x89}t",
        STATE,
    ),
    "an attribute of a parameter": call("torch._utils._rebuild_parameter_with_state", tensor(), b"\x88", b"}", STATE),
}


def told(path: Path) -> int:
    return sum("attributes of tensors or keys" in note for note in gnnstab.diagnose(path).target.notes)


@pytest.mark.parametrize("name", LOST)
def test_what_vanishes_is_counted(name: str, tmp_path: Path) -> None:
    diagnosis = gnnstab.diagnose(written(tmp_path / "x.pt", LOST[name]))
    assert "1 tensor not judged, attributes of tensors or keys of dicts" in diagnosis.target.notes
    assert "1 stored tensor" in not_covered(diagnosis)


class Tagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.lin.weight.tag = self.lin.bias  # type: ignore[assignment]


def whole_optimizer() -> Any:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer}


TWINS: dict[str, Callable[[], Any]] = {
    "an attribute that is a parameter of the file": lambda: dict(Tagged().named_parameters()),
    "a whole module": Tagged,
    "a whole optimizer, whose state has parameters for keys": whole_optimizer,
    "a state dict": lambda: nn.BatchNorm1d(4).state_dict() | nn.Linear(4, 4).state_dict(),
}


@pytest.mark.parametrize("name", TWINS)
def test_what_stands_elsewhere_is_not(name: str, tmp_path: Path) -> None:
    torch.save(TWINS[name](), tmp_path / "x.pt")
    assert told(tmp_path / "x.pt") == 0


@pytest.mark.parametrize("unsafe", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_a_storage_that_no_tensor_gives_a_shape_is_counted(listed: bool, unsafe: bool, tmp_path: Path) -> None:
    storage = torch.full((4,), torch.nan).untyped_storage()
    content = {"lin.weight": torch.ones(3, 3), "x": [storage] if listed else storage}
    torch.save(content, tmp_path / "a.pt")
    found = gnnstab.diagnose(tmp_path / "a.pt", unsafe=unsafe)
    assert f"1 tensor not judged, storages without a shape: {'x.0' if listed else 'x'}" in found.target.notes
    assert "1 stored tensor" in str(found)
    torch.save(content | {"x": torch.ones(2)}, tmp_path / "a.pt")
    assert "stored tensor" not in str(gnnstab.diagnose(tmp_path / "a.pt", unsafe=unsafe))
