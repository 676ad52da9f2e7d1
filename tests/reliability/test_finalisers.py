"""Models that clean up when they die are not copied: a dead copy would remove what is the run's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gnnstab
from gnnstab.errors import GnnstabError
from side_by_side import Net, Run, graph, unnoticed

X, EDGES = graph()


class CleansUp(Net):
    """Keeps its features in a folder, which it removes when it dies."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        assert self.folder.is_dir()
        return super().forward(x, edge_index)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, FileNotFoundError):  # The other run of the test has the same folder.
            self.folder.rmdir()


class Scratch:
    """The same, as a part of a model."""

    __del__ = CleansUp.__del__

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)


def keeps_scratch(folder: Path) -> Net:
    model = Net()
    model.caches = [Scratch(folder)]  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("make", [CleansUp, keeps_scratch])
def test_models_that_clean_up_when_they_die(make: Callable[[Path], Net], tmp_path: Path) -> None:
    def loop(run: Run) -> None:
        model = make(tmp_path / "cache")
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        with run.watching(model, optimizer=optimizer, loss=lambda output: output.square().mean()):
            for _ in range(6):
                optimizer.zero_grad()
                model(X, EDGES).square().mean().backward()
                optimizer.step()
        run.keep(*model.parameters())
        with pytest.raises(GnnstabError, match="has a __del__"):
            gnnstab.diagnose(model, batch=(X, EDGES))
        assert (tmp_path / "cache").is_dir()

    unnoticed(loop)
