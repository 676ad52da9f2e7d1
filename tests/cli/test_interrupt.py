"""Ctrl-C at any moment ends a command with 130 and without a verdict, also where something swallows the exception."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from gnnstab.cli import interrupt
from gnnstab.cli.group import run
from joblib.externals.loky import get_reusable_executor

NETWORK = """
import os
import signal

import torch
from torch_geometric.nn import TransformerConv


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = TransformerConv(4, 4)

    def forward(self, x, edge_index):
        return self.conv(1000 * x, edge_index)


def error(output, batch):
    return output.square().mean()


def here(output, batch):
    os.kill(os.getpid(), signal.SIGINT)
    return error(output, batch)


def swallowed(output, batch):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        pass
    return error(output, batch)


def in_a_worker(output, batch):
    main = int(os.environ["GNNSTAB_TEST_MAIN"])
    try:
        # Once: a second signal could arrive when the command has ended, and would then end the tests.
        first = os.getpid() != main and os.open(os.environ["GNNSTAB_TEST_ONCE"], os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        first = False
    if first:
        os.kill(main, signal.SIGINT)
    return error(output, batch)
"""

VERIFY = ("verify", "--fix", "residual", "--steps", "2")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder with a network and a batch; Ctrl-C raises there as at a terminal, whatever started the tests."""
    (tmp_path / "interrupted_network.py").write_text(NETWORK, encoding="utf-8")
    x, edges = torch.randn(12, 4), (1 - torch.eye(12)).nonzero().T
    torch.save({"x": x, "edge_index": edges}, tmp_path / "batch.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "interrupted_network", raising=False)
    monkeypatch.setenv("GNNSTAB_TEST_MAIN", str(os.getpid()))
    monkeypatch.setenv("GNNSTAB_TEST_ONCE", str(tmp_path / "interrupted"))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("loss", ["here", "swallowed"])
@pytest.mark.parametrize("command", [VERIFY, ("ladder", "--steps", "2"), ("diagnose", "weights.pt", "--verify")], ids=lambda c: c[0])  # fmt: skip
def test_no_verdict_after_ctrl_c(desk, capfd, command, loss):
    if command[0] == "diagnose":
        from interrupted_network import Net

        torch.save(Net().state_dict(), "weights.pt")
    _ends_without_a_verdict(capfd, *command, "--jobs", "1", loss=loss)


def test_no_verdict_after_ctrl_c_while_other_processes_work(desk, capfd):
    # Processes that an earlier test has left know nothing of this folder.
    get_reusable_executor().shutdown(wait=True)
    _ends_without_a_verdict(capfd, *VERIFY, "--jobs", "2", loss="in_a_worker")


def _ends_without_a_verdict(capfd, *command, loss):
    case = ("--model", "interrupted_network:Net", "--batch", "batch.pt", "--loss", f"interrupted_network:{loss}")
    assert run([*command, *case]) == 130
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "gnnstab: interrupted" in shown.err.splitlines()


def test_a_command_that_nobody_interrupts_knows_nothing_of_the_one_before(desk):
    with pytest.raises(KeyboardInterrupt), interrupt.listening():
        os.kill(os.getpid(), signal.SIGINT)
    assert interrupt.pressed()
    assert run(["rules", "--select", "GS301"]) == 0
    assert not interrupt.pressed()
