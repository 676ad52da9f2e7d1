"""Every way in which a line makes a NaN or Inf, told by three faces; and nothing said of the line mended."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import gnnstab
from gnnstab.probe.operations import repeat
from gnnstab.probe.operations.repeat import objective_of
from gnnstab.probe.replaying.replica import ForwardInputs
from models.edge_programs import EDGE_PROGRAMS
from models.programs import PROGRAMS, Program
from trained import trained

pytestmark = pytest.mark.usefixtures("brief", "untried")
EVERY = PROGRAMS | EDGE_PROGRAMS
EVERY_PROGRAM = pytest.mark.parametrize("program", EVERY.values(), ids=list(EVERY))


def judged(program: Program, face: str, broken: bool) -> Any:
    torch.manual_seed(0)
    model, loss, batch = program.model(broken), program.loss(broken), program.batch(broken)
    if face == "diagnose":
        return gnnstab.diagnose(model, batch=batch, loss=loss, select=["GS502"])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    told = loss if face == "monitor with the loss" else None
    return trained(model, batch, loss, 3, optimizer=optimizer, told=told, select=["GS502"])


@EVERY_PROGRAM
@pytest.mark.parametrize("face", ["monitor with the loss", "monitor", "diagnose"])
def test_cause_and_line_are_named(program: Program, face: str) -> None:
    (finding,) = judged(program, face, True).findings
    assert finding.cause == program.cause
    assert re.search(program.says, finding.message), finding.message
    assert "programs.py" in finding.message
    assert judged(program, face, False).findings == ()


@EVERY_PROGRAM
def test_the_first_operation_and_its_place(program: Program) -> None:
    torch.manual_seed(0)
    found = repeat(program.model(True), ForwardInputs((program.batch(True),)), objective_of(program.loss(True)))
    assert found.origin is not None
    operation = found.origin.operation
    assert operation.name == program.operation
    assert ("backward" if operation.node else operation.place.part) == program.place
    assert operation.place.file.endswith("programs.py")

    torch.manual_seed(0)
    mended = repeat(program.model(False), ForwardInputs((program.batch(False),)), objective_of(program.loss(False)))
    assert mended.origin is None
    assert mended.note == ""
