"""Which cases the benchmark of cures takes, and how it counts them."""

import math

from faults.bench import cure_jobs
from faults.cures import contradicted, cures_table


def _truth(cause: str, strength: float, number: int, **changes: object) -> dict:
    row = {"job": f"{cause} {number}", "kind": "single", "took": True, "causes": [cause]}
    return {**row, "recipe": {"faults": [[cause, strength]], "edits": []}, **changes}


def test_causes_and_strengths_take_turns_and_only_what_is_asked_for_is_taken():
    rows = [_truth("a", 1.0, n) for n in range(5)] + [_truth("a", 2.0, n) for n in range(5, 7)]
    rows += [_truth("b", 1.0, n) for n in range(2)] + [_truth("c", 1.0, 0), _truth("a", 3.0, 9, took=False)]
    names = [name for name, _ in cure_jobs(rows, 3, "a,b")]
    assert names == ["a 0", "b 0", "a 5", "b 1", "a 1"]
    assert [name for name, _ in cure_jobs(rows, 1)] == ["a 0", "b 0", "c 0"]


def _cured(
    verdict: str | None, restored: bool = False, longer: tuple[float, float] = (0.5, 0.9), **more: object
) -> dict:
    row = {"causes": ["a"], "fix": verdict and "beta", "verdict": verdict, "restored": restored, **more}
    return {**row, "longer": longer} if verdict == "confirmed" else row


def test_what_is_not_offered_a_fix_counts_among_all_cases_and_not_among_those_offered():
    rows = [_cured("confirmed", True), _cured("confirmed", False), _cured("made-worse", True), _cured(None)]
    assert "| a | `beta` | 4 | 3 | 2 | 2 | 0.33 (0.06–0.79) | 0.25 (0.05–0.70) | 0 of 2 |" in cures_table(rows)
    assert "(by hand)" in cures_table([_cured("not-tested", by_hand=True)])


def test_a_fix_that_a_longer_training_leaves_behind_is_contradicted():
    assert contradicted(_cured("confirmed", longer=(0.9, 0.8)))
    assert not contradicted(_cured("confirmed", longer=(0.9, 0.87)))
    assert contradicted(_cured("confirmed", longer=(0.1, -math.inf)))
    assert not contradicted(_cured("confirmed", longer=(-math.inf, -math.inf)))
