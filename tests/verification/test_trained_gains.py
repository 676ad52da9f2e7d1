"""Gains of weights that a run has trained: what it began with is no fault of its initialisation, what no draw has is one."""

from types import SimpleNamespace

import numpy as np
import pytest

from gnnstab.records import LayerFacts, Series, Signal, Signals
from gnnstab.verification.interventions._suspects import unit_gains
from gnnstab.verification.targets import Goal


@pytest.mark.parametrize(
    ("kind", "gain", "suspected"), [("trace", 2.0, False), ("trace", 8.0, True), ("model", 2.0, True)]
)
def test_a_run_may_train_weights_to_a_gain_that_no_draw_has(kind, gain, suspected):
    layer = LayerFacts("conv", "TransformerConv", 0, True, initialisation="unknown")
    signals = Signals(kind, (layer,), (Signal("gain.value", gain, "conv"),))
    case = SimpleNamespace(signals=signals, findings=(), symptoms=(), suffers=lambda *names: True)
    assert [trial.name for trial in unit_gains(case, None)] == ["unit-gains"] * suspected


@pytest.mark.parametrize(("at_first", "suspected"), [(0.9, False), (0.05, True)])
def test_how_weights_were_drawn_is_not_why_attention_that_began_soft_is_sharp(at_first, suspected):
    layer = LayerFacts("conv", "TransformerConv", 0, True, initialisation="unknown")
    series = Series("attention.entropy", "conv", None, np.array([0, 50]), np.array([at_first, 0.05]))
    signals = Signals("trace", (layer,), (Signal("gain.value", 8.0, "conv"),), series=(series,))
    goal = Goal("GS301", "attention.entropy", "conv", 0.35, True, 0.05)
    case = SimpleNamespace(
        signals=signals, findings=(), symptoms=(SimpleNamespace(goal=goal),), suffers=lambda *names: True
    )
    assert [trial.name for trial in unit_gains(case, None)] == ["unit-gains"] * suspected
