"""Unusual inputs and shapes: the same bits with gnnstab, no failure of its own, no alarm."""

from __future__ import annotations

import copy

import pytest
import torch

import gnnstab
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
    of_batch = gnnstab.diagnose(copy.deepcopy(model), batch=args)
    for diagnosis in (of_run, of_batch):
        silent = EMPTY.get(name, ())  # Of a graph without edges no gradient arrives, and that is said.
        assert [(f.code, f.message) for f in diagnosis.findings if f.severity != "info" and f.code not in silent] == []
