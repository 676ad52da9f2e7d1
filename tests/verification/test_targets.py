"""What a fix has to move, and in which direction."""

import pytest

from faults.detectors import by_gnnstab, prepared
from faults.injections import INJECTIONS
from faults.splits import single
from gnnstab.verification.targets import goal_of
from test_contradictions import contradictions


@pytest.mark.parametrize("index", [0, 2])
def test_a_network_whose_nodes_became_alike_is_healthy_above_the_line_that_it_fell_below(index):
    """Of the first one half of the differences are gone, of the second nineteen in twenty: two lines of one rule."""
    _, faulty = single("development", next(i for i in INJECTIONS if i.cause == "oversmoothing"), index)
    # A stack that learns by more steps than a trial takes has it as information.
    diagnosis = by_gnnstab(*prepared(faulty))
    assert contradictions(diagnosis) == []
    (finding,) = [f for f in diagnosis.findings if f.code == "GS704"]
    goal = goal_of(finding)
    assert goal.rises
    assert not goal.crossed(finding.value)
    assert goal.crossed(0.8)
    assert goal.effect(finding.value, 0.8) > 1
