"""What steps on a copy have shown explains a symptom that one edit alone does not undo; and its change is printed."""

from __future__ import annotations

import torch
from torch import nn

from gnnstab import fixes
from gnnstab.records import Finding, Signal, Signals
from gnnstab.verification.interventions._investigation import Investigation
from gnnstab.verification.interventions._symptoms import symptoms_in
from gnnstab.verification.interventions.deciding import decided_findings


def finding(code: str, cause: str, signal: str, value: float, limit: float, by: str | None = None) -> Finding:
    return Finding(code, "", cause, "warning", "high", "look", None, None, signal, value, limit, "", code, by)


def test_sharp_attention_behind_weights_that_steps_have_undone_follows_from_them() -> None:
    sharp = finding("GS302", "attention-explosion", "attention.entropy", 0.01, 0.1, "GS609")
    for signal, explained in (("optimizer.undone", "GS609"), ("place.gain", None)):
        head = finding("GS609", "unsuitable-init", signal, 0.99, 0.5)
        found = Investigation(symptoms_in([sharp]), (0.01,), ())
        assert [f.explained_by for f in decided_findings([sharp, head], found)] == [explained, None]


def test_gates_that_steps_have_opened_get_a_bias_that_opens_them() -> None:
    undone = {"cause": "saturated-gate", "names": ["valves.0", "valves.1"]}
    signals = Signals("model", (), (Signal("optimizer.undone", 0.9, detail=undone),))
    change = fixes.change("reinit-gate", (), signals)
    assert change.splitlines() == [f"nn.init.constant_(model.valves[{i}].bias, 1.5)" for i in range(2)]
    model = nn.Module()
    model.valves = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])
    opened = fixes.apply(model, "reinit-gate", signals=signals)
    assert all(torch.equal(valve.bias, torch.full((3,), 1.5)) for valve in opened.valves)
    assert not any(bool((valve.bias == 1.5).any()) for valve in model.valves)
