"""What code of the user's prints, logs and packs on copies: the run says and does it once."""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from torch import Tensor

from gnnstab.errors import GnnstabWarning
from gnnstab.unheard import unheard
from side_by_side import Net, Run, graph, unnoticed

X, EDGES = graph()
Y = torch.randn(len(X), 1, generator=torch.Generator().manual_seed(5))


class Talking(Net):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        print("forward")
        logging.getLogger("user").warning("forward")
        return super().forward(x, edge_index)


def loss(output: Tensor, batch: Any = None) -> Tensor:
    sys.stdout.write("loss\n")
    return (output - Y).square().mean()


def trained(run: Run, steps: int = 4) -> None:
    torch.manual_seed(3)
    model = Talking()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with run.watching(model, optimizer=optimizer, loss=loss):
        for _ in range(steps):
            optimizer.zero_grad()
            value = loss(model(X, EDGES))
            value.backward()
            optimizer.step()
    run.keep(*model.parameters())


def test_prints_and_log_records_of_copies_are_heard_by_nobody(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    stream, handle = sys.stdout, logging.Logger.callHandlers
    run = unnoticed(trained)
    assert (
        capsys.readouterr().out.splitlines() == ["forward", "loss"] * 8 and run.warned == []
    )  # Both runs of four steps.
    assert [record.message for record in caplog.records] == ["forward"] * 8
    assert sys.stdout is stream and logging.Logger.callHandlers is handle


def test_tensors_are_packed_for_the_run_alone() -> None:
    packed: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor.numel())
        return tensor

    def loop(run: Run) -> None:
        packed.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trained(run)
            run.keep(torch.tensor(packed))
        assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None

    unnoticed(loop)


def test_warnings_of_copies_are_not_shown_and_those_of_gnnstab_are() -> None:
    quiet = ContextVar("quiet", default=False)
    quiet.set(True)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with unheard(quiet):
            warnings.warn("on a copy", UserWarning, stacklevel=1)
            warnings.warn("told", GnnstabWarning, stacklevel=1)
        warnings.warn("by the run", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["told", "by the run"]


def test_other_threads_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = ContextVar("quiet", default=False)
    heard = io.StringIO()
    monkeypatch.setattr(sys, "stdout", heard)
    quiet.set(True)
    with unheard(quiet), unheard(quiet):
        print("here")
        sys.stdout.writelines(["here too\n"])
        thread = threading.Thread(target=print, args=("elsewhere",))
        thread.start()
        thread.join()
        sys.stdout = mine = io.StringIO()
    assert heard.getvalue() == "elsewhere\n" and sys.stdout is mine
