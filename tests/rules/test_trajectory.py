"""A folder of checkpoints: the limit that a run heads for is told before it is reached."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

import gnnstab
from models.stacks import Stack


def saved(folder: Path, growth: float, steps: int = 6) -> None:
    """Checkpoints every 1000 steps whose query weights have grown by ``growth`` (natural logarithm) each time."""
    torch.manual_seed(0)
    model = Stack(2)
    for i in range(steps):
        torch.save({"model": model.state_dict(), "step": 1000 * i}, folder / f"step{1000 * i}.pt")
        with torch.no_grad():
            for conv in model.convs:
                conv.lin_query.weight *= math.exp(growth)
                conv.lin_query.bias *= math.exp(growth)


def test_a_growing_head_is_told_with_the_step_at_which_it_gets_there(tmp_path: Path) -> None:
    saved(tmp_path, 0.2)
    diagnosis = gnnstab.diagnose(tmp_path, heads=1)
    found = [f for f in diagnosis.findings if f.code == "GS301"]
    assert {f.layer for f in found} == {"convs.0", "convs.1"}
    for finding in found:
        assert (finding.severity, finding.signal, finding.step) == ("info", "logit.frobenius", 5000)
        expected, earliest, latest = map(int, re.findall(r"step (\d+) \(between (\d+) and (\d+)\)", finding.message)[0])
        exact = 5000 + 1000 * math.log(finding.threshold / finding.value) / 0.2
        assert earliest <= expected <= latest
        assert expected == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("growth", [0.0, -0.2])
def test_a_run_that_goes_nowhere_or_back_is_told_nothing(tmp_path: Path, growth: float) -> None:
    saved(tmp_path, growth)
    assert [f for f in gnnstab.diagnose(tmp_path, heads=1).findings if f.code == "GS301"] == []
