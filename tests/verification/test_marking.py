"""What a store's results depend on: the same in every process, and another one with every batch, loss, forward or weight."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.data import Data

from gnnstab.verification._marking import mark_of


def loss(output: Any, batch: Any, weight: float = 1.0) -> Any:
    return weight * output.sum()


def closed(weight: float) -> Callable[[Any], Any]:
    return lambda output: weight * output.sum()


def linear(value: float = 0.0, **options: Any) -> nn.Module:
    layer = nn.Linear(2, 2, **options)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, value)
    return layer


DIFFERENT: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "a batch": (lambda: Data(x=torch.zeros(3000)), lambda: Data(x=torch.cat([torch.zeros(2999), torch.ones(1)]))),
    "one of several": (lambda: [torch.zeros(2)], lambda: [torch.zeros(2), torch.zeros(2)]),
    "a number format": (lambda: torch.zeros(2), lambda: torch.zeros(2, dtype=torch.bfloat16)),
    "an array": (lambda: {"x": np.zeros(2)}, lambda: {"x": np.ones(2)}),
    "a weight": (linear, lambda: linear(1.0)),
    "a class": (lambda: nn.Sequential(nn.ReLU()), lambda: nn.Sequential(nn.Tanh())),
    "an option": (lambda: nn.Dropout(0.1), lambda: nn.Dropout(0.2)),
    "a loss": (lambda: loss, lambda: closed),
    "no loss": (lambda: loss, lambda: None),
    "an argument of a loss": (lambda: partial(loss, weight=1.0), lambda: partial(loss, weight=2.0)),
    "what a loss closes over": (lambda: closed(1.0), lambda: closed(2.0)),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_whatever_changes_the_results_changes_the_mark(what: str) -> None:
    one, other = DIFFERENT[what]
    assert mark_of([one()]) == mark_of([one()])
    assert mark_of([one()]) != mark_of([other()])


def test_code_counts_with_what_it_imports_and_processes_agree(tmp_path: Path) -> None:
    (tmp_path / "inner.py").write_text("def double(x): return 2 * x\n")
    (tmp_path / "own.py").write_text("from torch import nn\nfrom inner import double\nclass Net(nn.Linear): pass\n")
    ask = (
        "import torch; torch.manual_seed(0); import own; from gnnstab.verification._marking import mark_of;"
        "print(mark_of([own.Net(2, 2), own.double]))"
    )

    def mark() -> str:
        path = {"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}", "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run([sys.executable, "-c", ask], env=path, check=True, capture_output=True, text=True).stdout

    first = mark()
    assert mark() == first
    (tmp_path / "inner.py").write_text("def double(x): return 3 * x\n")
    assert mark() != first
