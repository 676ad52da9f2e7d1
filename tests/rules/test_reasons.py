"""Why a check of a run was not made: what the user's own loop lacks, in words that say what to pass."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.records import Diagnosis
from gnnstab.report import render

pytestmark = pytest.mark.usefixtures("brief")

STEPS = 24


def run(folder: Path, *, loss: bool = True, optimizer: Any = torch.optim.Adam, steps: int = STEPS) -> Diagnosis:
    """A healthy run of one layer, with or without what the monitor may be told."""
    torch.manual_seed(0)
    conv = TransformerConv(4, 4)
    x, edges = torch.randn(20, 4), torch.randint(20, (2, 80))
    steps_of = (optimizer or torch.optim.Adam)(conv.parameters(), lr=1e-2)
    with gnnstab.Monitor(conv, trace=folder / "t.gnnstab", optimizer=steps_of if optimizer else None) as monitor:
        for _ in range(steps):
            steps_of.zero_grad()
            value = nn.functional.mse_loss(conv(x, edges), x)
            value.backward()
            steps_of.step()
            if loss:
                monitor.loss(value)
    return gnnstab.diagnose(folder / "t.gnnstab")


def reasons(diagnosis: Diagnosis) -> dict[str, str]:
    return {rule.code: rule.reason for rule in diagnosis.rules if rule.status == "not-evaluable"}


def test_a_loop_without_the_loss_is_told_so_first(tmp_path: Path) -> None:
    found = run(tmp_path, loss=False)
    assert "monitor.loss(loss)" in reasons(found)["GS607"]
    assert re.search(r"they need monitor\.loss\(loss\),", render(found, "text"))
    assert "monitor.loss(loss)" not in reasons(run(tmp_path))


def test_a_loop_without_the_optimizer_is_told_so_first(tmp_path: Path) -> None:
    found = run(tmp_path, optimizer=None)
    assert {reasons(found)[code] for code in ("GS603", "GS605")} == {
        "no gradients of parameters were seen; pass the optimizer to the monitor"
    }
    assert re.search(r"they need the optimizer,", render(found, "text"))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("steps", [3, STEPS])
def test_what_was_passed_is_not_asked_for(tmp_path: Path, optimizer: Any, steps: int) -> None:
    found = reasons(run(tmp_path, optimizer=optimizer, steps=steps))
    assert not [reason for reason in found.values() if re.search(r"pass.*optimizer|^no loss is known", reason)]
    assert not [reason for reason in found.values() if "was not recorded" in reason], (
        "the name of a signal tells nobody"
    )


def test_nothing_is_said_to_lack_where_the_loss_came_down(tmp_path: Path) -> None:
    found = run(tmp_path, steps=120)
    (hindered,) = (rule for rule in found.rules if rule.code == "GS609")
    assert hindered.status == "not-applicable"
    assert "came down" in hindered.reason
