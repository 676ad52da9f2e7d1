"""Files that would run code when unpickled: none of it may run."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gnnstab.checkpoint import load, recover
from gnnstab.errors import GnnstabError, LoadError, UnsafeFileError
from strangers import Payload


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "it_ran"


def _bytes(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _hostile(payload: Payload) -> dict[str, bytes]:
    tensors = {"layer.weight": torch.rand(4, 4)}
    lightning = {"state_dict": tensors, "pytorch-lightning_version": "2.2.0", "callbacks": {"early": payload}}
    return {
        "reduce.pt": _bytes(payload),
        "nested.pt": _bytes({"state_dict": tensors, "args": {"deep": [1, (payload,)]}}),
        "key.pt": _bytes({"state_dict": tensors, "best": {"x": payload}, "epoch": 3}),
        "lightning.ckpt": _bytes(lightning),
        "old_format.pth": _bytes({"state_dict": tensors, "x": payload}, _use_new_zipfile_serialization=False),
        "plain_pickle.pt": pickle.dumps({"a": payload}, protocol=4),
        "protocol_4.pt": _bytes({"state_dict": tensors, "x": payload}, pickle_protocol=4),
        "no_suffix": _bytes(payload),
    }


@pytest.mark.parametrize("name", sorted(_hostile(Payload(Path("x")))))
def test_code_in_a_file_never_runs(name: str, marker: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(_hostile(Payload(marker))[name])
    with pytest.raises(UnsafeFileError) as caught:
        load(path)
    assert not marker.exists()
    message = str(caught.value)
    assert all(part in message for part in ("mkdir", "--unsafe-load", "dangerous", name))
    assert "\n" not in message


def test_the_payload_works_where_it_is_allowed_to(marker: Path, tmp_path: Path) -> None:
    """The tests above could not fail if the payload were harmless."""
    path = tmp_path / "x.pt"
    path.write_bytes(_hostile(Payload(marker))["nested.pt"])
    load(path, unsafe=True)
    assert marker.exists()


@pytest.mark.parametrize("content", ["reduce.pt", "plain_pickle.pt", "old_format.pth"])
def test_a_pickle_that_claims_to_be_safetensors_is_refused_unread(content: str, marker: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(_hostile(Payload(marker))[content])
    for unsafe in (False, True):
        with pytest.raises(LoadError, match=r"named \.safetensors but holds a torch archive or a pickle"):
            load(path, unsafe=unsafe)
    assert not marker.exists()


def test_pickle_of_protocol_0_looks_like_text_and_is_refused(marker: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(pickle.dumps(Payload(marker), protocol=0))
    with pytest.raises(LoadError, match="text file"):
        load(path)
    assert not marker.exists()


def test_an_environment_variable_does_not_open_the_door(marker: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(_hostile(Payload(marker))["reduce.pt"])
    code = f"from gnnstab.checkpoint import load; load({str(path)!r})"
    environment = {**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "UnsafeFileError" in done.stderr
    assert not marker.exists()


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import TransformerConv

        self.conv = TransformerConv(8, 4, heads=2, concat=True, dropout=0.25)


def _importable(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    """Pickle finds classes by module name, under which pytest does not register this file."""
    monkeypatch.setitem(sys.modules, kind.__module__, sys.modules.get(kind.__module__, type(sys)(kind.__module__)))
    monkeypatch.setattr(sys.modules[kind.__module__], kind.__name__, kind, raising=False)


@pytest.mark.parametrize("unsafe", [False, True])
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}], ids=str)
def test_a_pickled_module_tells_its_settings(
    options: dict[str, Any], unsafe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with and without its code; without, nothing of it runs."""
    _importable(monkeypatch, _Net)
    path = tmp_path / "module.pt"
    net = _Net()
    torch.save({"model": net}, path, **options)
    if not unsafe:
        monkeypatch.delattr(sys.modules[_Net.__module__], "_Net")
    checkpoint = load(path, unsafe=unsafe)
    assert {name: tensor.tolist() for name, tensor in checkpoint.tensors.items()} == {
        name: tensor.tolist() for name, tensor in net.state_dict().items()
    }
    facts = recover(checkpoint)
    assert [(x.name, x.heads, x.concat, x.dropout, x.get("root_weight")) for x in facts.layers] == [
        ("conv", 2, True, 0.25, True)
    ]
    assert any("whole module" in note for note in facts.notes)


def test_torchscript_is_a_program(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    torch.jit.script(nn.Linear(2, 2)).save(str(path))
    with pytest.raises(UnsafeFileError, match="TorchScript"):
        load(path)


def test_calls_that_fill_the_memory_are_refused_before_they_are_made(tmp_path: Path) -> None:
    class Filler:
        def __reduce__(self) -> tuple[Any, ...]:
            return bytearray, (10**13,)

    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(2, 2), "x": Filler()}, path)
    with pytest.raises(LoadError, match="bytearray"):
        load(path)


def test_every_error_is_one_of_ours(marker: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(_bytes({"x": Payload(marker)})[:-30])
    with pytest.raises(GnnstabError):
        load(path)
