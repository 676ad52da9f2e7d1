"""A folder of checkpoints from a stranger: what lies beside the good files harms nobody and is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from gnnstab.cli.group import run as command
from torch_geometric.nn import TransformerConv


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good checkpoints of a run."""
    folder = tmp_path / "run"
    folder.mkdir()
    state = {
        f"gnn.{name}": tensor for name, tensor in TransformerConv(8, 8, heads=2, concat=False).state_dict().items()
    }
    for step in (1, 2):
        torch.save({"state_dict": state, "step": step}, folder / f"step{step}.pt")
    return folder


def test_files_that_are_none(folder: Path, tmp_path: Path) -> None:
    """Links to nothing, to themselves and to a device, a pipe and a folder are named and not opened; a link to a file is followed."""
    for name, target in (("gone", "nowhere"), ("loop", "loop.pt"), ("zero", "/dev/zero"), ("linked", "step1.pt")):
        (folder / f"{name}.pt").symlink_to(target)
    os.mkfifo(folder / "pipe.pt")
    (folder / "sub.pt").mkdir()
    assert command(["diagnose", str(folder), "--quiet", f"--output=json={tmp_path / 'found.json'}"]) == 2
    found = json.loads((tmp_path / "found.json").read_text())
    unread = [note.split(":")[0] for note in found["target"]["notes"] if "left out" in note]
    assert found["context"]["checkpoints"] == 3
    assert unread == [f"left out {name}.pt" for name in ("gone", "loop", "pipe", "sub", "zero")]


def test_code_and_odd_names_among_them(
    folder: Path, tmp_path: Path, payload: Any, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "more": payload}, folder / "step3.ckpt")
    (folder / os.fsdecode(b"w\xff.pt")).write_bytes((folder / "step1.pt").read_bytes())
    (folder / "a\nb\x1b[31m.pt").write_bytes(b"epoch,loss\n1,2\n")
    outputs = [f"--output={kind}={tmp_path / kind}" for kind in ("json", "html", "sarif", "junit", "markdown")]
    assert command(["diagnose", str(folder), *outputs]) == 2
    assert not marker.exists()
    notes = json.loads((tmp_path / "json").read_text())["target"]["notes"]
    assert len([note for note in notes if note.startswith("left out")]) == 3
    assert any("running code" in note or "run code" in note for note in notes)
    shown = "".join((tmp_path / kind.split("=")[1]).read_text() for kind in outputs) + capsys.readouterr().out
    assert "\x1b[31m" not in shown
