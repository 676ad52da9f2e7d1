"""Programs that no rule was written for: Monitor, `diagnose` and the command line name the same root, and no other."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from gnnstab.cli.group import run as command

import gnnstab
from gnnstab.probe.buffering import device_copy
from gnnstab.records import Diagnosis
from gnnstab.report import summary
from truth.programs import PROGRAMS, Pooled, Program, Shifted

STEPS = 14


def faces(program: Program, broken: bool, trace: Path, device: str = "cpu") -> dict[str, Diagnosis]:
    """What a Monitor says after a short training, and `diagnose` before it."""
    torch.manual_seed(1)
    model, loss = program.net(broken).to(device), program.loss(broken)
    batches = [batch.to(device) for batch in program.batches(broken)]
    fresh = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=program.rate(broken))
    with gnnstab.Monitor(model, optimizer=optimizer, loss=loss, trace=trace, on_finding="ignore") as monitor:
        for step in range(STEPS):
            batch = batches[step % len(batches)]
            optimizer.zero_grad()
            value = loss(model(batch), batch)
            monitor.loss(value)
            value.backward()
            optimizer.step()
            if not math.isfinite(float(value.detach())):
                break
    trial = torch.optim.Adam(fresh.parameters(), lr=program.rate(broken))
    said = {"monitor": monitor.diagnose()}
    said["diagnose"] = gnnstab.diagnose(fresh, batch=batches[0], loss=loss, optimizer=trial)
    return said


def roots(diagnosis: Diagnosis) -> list[str]:
    return [cause.cause for cause in diagnosis.root_causes()]


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_root_is_named_and_no_other(name: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]
    said = faces(program, True, tmp_path / "run.gnnstab")
    expected = {"monitor": [program.root], "diagnose": [program.root] if program.before_training else []}
    assert {face: roots(diagnosis) for face, diagnosis in said.items()} == expected
    by_hand = program.net in (Pooled, Shifted)  # attends once more, in its own forward
    assert {d.coverage.layers_observed for d in said.values()} == {3 if by_hand else 2}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_repaired_program_is_silent(name: str, tmp_path: Path) -> None:
    said = faces(PROGRAMS[name], False, tmp_path / "run.gnnstab")
    assert {face: [f.code for f in d.findings if f.severity != "info"] for face, d in said.items()} == {
        "monitor": [],
        "diagnose": [],
    }
    assert {face: summary.verdict(d)[0] for face, d in said.items()} == {"monitor": "STABLE", "diagnose": "STABLE"}


@pytest.mark.parametrize(
    "name", ["time differences in seconds", "an output that is held back", "a gain that nobody wrote"]
)
@pytest.mark.parametrize("broken", [True, False])
def test_the_command_line_says_the_same(
    name: str, broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = PROGRAMS[name]
    torch.manual_seed(1)
    model, batch = program.net(broken), program.batches(broken)[0]
    torch.save(model.state_dict(), tmp_path / "model.pt")
    torch.save(batch, tmp_path / "batch.pt")
    (tmp_path / "mine.py").write_text(
        f"from truth.programs import PROGRAMS\n\n\ndef net():\n    return PROGRAMS[{name!r}].net({broken})\n\n\n"
        f"loss = PROGRAMS[{name!r}].loss({broken})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    given = ["--model", "mine:net", "--batch", str(tmp_path / "batch.pt"), "--loss", "mine:loss"]
    command(["diagnose", str(tmp_path / "model.pt"), *given, "--format", "json"])
    shown = json.loads(capsys.readouterr().out)
    said = gnnstab.diagnose(model, batch=batch, loss=program.loss(broken))
    assert [c["cause"] for c in shown["causes"] if c["status"] == "root-cause"] == roots(said)
    assert roots(said) == ([program.root] if broken else [])
    assert shown["coverage"]["layers_observed"] == said.coverage.layers_observed == 2


@pytest.mark.parametrize(
    "name", ["NaN in an edge feature of one batch", "log of a softmax", "root of a distance to itself"]
)
def test_numbers_that_come_a_step_late_tell_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device: the update has spoilt the weights before the step is known to be bad."""
    monkeypatch.setattr(device_copy, "is_on_host", lambda tensor: False)
    assert roots(faces(PROGRAMS[name], True, tmp_path / "run.gnnstab")["monitor"]) == [PROGRAMS[name].root]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_device_is_told_the_same(name: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]
    said = faces(program, True, tmp_path / "run.gnnstab", "cuda")
    failures = {face: [f.message for f in d.findings if f.code == "GS902"] for face, d in said.items()}
    assert failures == {"monitor": [], "diagnose": []}
    expected = {"monitor": [program.root], "diagnose": [program.root] if program.before_training else []}
    assert {face: roots(diagnosis) for face, diagnosis in said.items()} == expected
