"""Unusual inputs and shapes: the same bits with gnnstab, no failure of its own, no alarm."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.nn import DenseGATConv

import gnnstab
from gnnstab.errors import NothingEvaluable, UsageError
from probe.awkward import EMPTY, PROGRAMS, trained

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")


@pytest.mark.parametrize("name", PROGRAMS)
def test_both_faces_watch_it_bit_for_bit_and_say_nothing(name: str) -> None:
    torch.manual_seed(0)
    model, args = PROGRAMS[name]()
    alone, _ = trained(model, args, monitored=False)
    watched, of_run = trained(model, args, monitored=True)
    assert len(alone) == len(watched)
    assert all(torch.equal(a, b) for a, b in zip(alone, watched, strict=True))
    with torch.no_grad():
        model(*args)
    told = [of_run]
    if name == "no nodes":
        with pytest.raises(NothingEvaluable, match="the batch is empty"):
            gnnstab.diagnose(copy.deepcopy(model), batch=args)
    else:
        told.append(gnnstab.diagnose(copy.deepcopy(model), batch=args))
    for diagnosis in told:
        silent = EMPTY.get(name, ())  # Of a graph without edges no gradient arrives, and that is said.
        assert [(f.code, f.message) for f in diagnosis.findings if f.severity != "info" and f.code not in silent] == []


@pytest.mark.parametrize("compiled", [torch.jit.script, lambda m: torch.jit.trace(m, torch.rand(2, 3))])
@pytest.mark.parametrize("face", [gnnstab.Monitor, lambda m: gnnstab.diagnose(m, batch=torch.rand(4, 3))])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model_is_refused_with_what_to_do(compiled: Any, face: Any) -> None:
    with pytest.raises(UsageError, match="as it was before"):
        face(compiled(nn.Linear(3, 3)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripting_a_monitored_model_says_what_to_do() -> None:
    model = DenseGATConv(4, 4)
    with gnnstab.Monitor(model), pytest.raises(AttributeError, match="script the model before the monitor"):
        torch.jit.script(model)
