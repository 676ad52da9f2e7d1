"""Code of the user's that ends the process, or moves it to another folder, while gnnstab runs it."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from gnnstab.cli.group import run
from torch import nn
from torch_geometric.nn import GATConv

from gnnstab import Monitor, diagnose, verify
from gnnstab.errors import UsageError
from gnnstab.guest import guest
from gnnstab.observation import build, resolve
from gnnstab.verification._sweep import _one

EDGES = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
BATCH = {"x": torch.ones(4, 3), "edge_index": EDGES}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = GATConv(3, 2)

    def forward(self, x, edge_index):
        return self.conv(x, edge_index)


class Quits(Net):
    def forward(self, x, edge_index):
        sys.exit(0)


def no_licence() -> nn.Module:
    raise SystemExit("no licence")


def reads_arguments() -> nn.Module:
    argparse.ArgumentParser().parse_args(["check", "a.pt"])
    return Net()


def moves() -> nn.Module:
    os.chdir(tempfile.gettempdir())
    return Net()


class Moves(Net):
    def forward(self, x, edge_index):
        os.chdir(tempfile.gettempdir())
        return super().forward(x, edge_index)


def loss_that_quits(output, batch):
    quit()


MODULE = """
from test_guest import Moves, Quits, moves, no_licence
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.save(Net().state_dict(), tmp_path / "a.pt")
    torch.save(BATCH, tmp_path / "b.pt")
    (tmp_path / "guest_nets.py").write_text(MODULE)
    (tmp_path / "guest_script.py").write_text("import sys\ndef main():\n    sys.exit()\nmain()\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("guest_nets", "guest_script"):
        sys.modules.pop(name, None)


def test_a_factory_or_module_that_ends_the_process_is_named() -> None:
    with pytest.raises(
        UsageError, match=r"the function no_licence .*SystemExit\('no licence'\), and nothing was judged"
    ):
        build(no_licence)
    with pytest.raises(UsageError, match=r"the function reads_arguments .*it read the command line"):
        build(reads_arguments)


def test_a_script_that_is_imported_is_told_of_its_guard(project: Path) -> None:
    with pytest.raises(UsageError, match=r"^the function main \(line 3 of guest_script.py\).*__main__"):
        resolve("guest_script:main")


def test_a_forward_or_loss_that_ends_the_process_is_named() -> None:
    with pytest.raises(UsageError, match=r"the function (Quits\.)?forward "):
        diagnose(Quits(), BATCH)
    with pytest.raises(UsageError, match="the function loss_that_quits "):
        diagnose(Net(), BATCH, loss=loss_that_quits)
    with pytest.raises(UsageError, match="the function loss_that_quits "):
        verify(Net(), "qk-clip", batch=BATCH, loss=loss_that_quits, seeds=1, steps=1)


def test_an_arm_in_another_process_is_named() -> None:
    with pytest.raises(UsageError, match="the function no_licence "):
        _one("a", no_licence)


def test_ctrl_c_and_what_comes_from_outside_go_on() -> None:
    with pytest.raises(KeyboardInterrupt), guest():
        raise KeyboardInterrupt


@pytest.mark.parametrize("command", ["check", "diagnose", "verify", "scale", "ladder", "replay"])
@pytest.mark.parametrize(
    ("model", "told"),
    [("guest_nets:no_licence", "the function no_licence"), ("guest_script:main", "the function main")],
)
def test_no_command_ends_without_a_verdict(
    project: Path, capfd: pytest.CaptureFixture, command: str, model: str, told: str
) -> None:
    assert run([command, "a.pt", "--model", model, "--batch", "b.pt"]) == 2
    assert f"gnnstab: error: {told}" in " ".join(capfd.readouterr().err.split())


def test_several_targets_name_it_for_each(project: Path, capfd: pytest.CaptureFixture) -> None:
    assert run(["check", "a.pt", "a.pt", "--model", "guest_nets:Quits", "--batch", "b.pt"]) == 2
    assert capfd.readouterr().err.count("forward") == 2


def test_under_a_monitor_the_end_of_the_process_is_the_users_own() -> None:
    model = Quits()
    with pytest.raises(SystemExit), Monitor(model):
        model(**BATCH)


@pytest.mark.parametrize("model", ["moves", "Moves"])
def test_code_that_changes_the_folder_moves_no_file(project: Path, model: str) -> None:
    written = ["--output", "json=out.json", "--baseline", "known.json", "--update-baseline"]
    assert run(["check", "a.pt", "a.pt", "--model", f"guest_nets:{model}", "--batch", "b.pt", *written]) == 0
    assert Path.cwd() == project
    assert (project / "out.json").exists()
    assert (project / "known.json").exists()
