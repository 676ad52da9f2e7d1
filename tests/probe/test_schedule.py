"""The budget keeps its word on a clock that the test turns."""

from __future__ import annotations

import numpy as np
import pytest

from gnnstab.probe import schedule as module
from gnnstab.probe.schedule import Schedule


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def simulate(
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    *,
    step: float,
    inside: float,
    dispatch: float,
    floor: float,
    full: float,
) -> tuple[float, list[int], Schedule]:
    """Share of the time that recording took, the recorded steps, and the schedule, for costs in milliseconds."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    schedule = Schedule(50, 0.02, beginning=100)
    spent, recorded = 0.0, []
    for number in range(steps):
        light, is_full = schedule.choose(number)
        own = floor + (full if is_full else inside if light else 0.0)
        more = own + (dispatch if light else 0.0)
        clock.now += step + more
        schedule.ended(number, light, is_full, clock.now, own)
        if number >= 200:
            spent += more
        if light:
            recorded.append(number)
    return spent / (step * (steps - 200)), recorded, schedule


@pytest.mark.parametrize(
    ("step", "inside", "dispatch", "floor", "full"),
    [
        (1.0, 0.1, 0.1, 0.01, 3.0),
        (10.0, 0.8, 0.8, 0.08, 30.0),
        (50.0, 1.0, 3.0, 0.1, 50.0),
        (1000.0, 10.0, 1.0, 0.1, 2000.0),
        (1000.0, 1.0, 1.0, 0.1, 20.0),
    ],
)
def test_the_whole_cost_stays_within_the_budget(
    monkeypatch: pytest.MonkeyPatch, step: float, inside: float, dispatch: float, floor: float, full: float
) -> None:
    share, recorded, _ = simulate(
        monkeypatch, 20_000, step=step, inside=inside, dispatch=dispatch, floor=floor, full=full
    )
    assert recorded[:16] == list(range(16))
    assert max(np.diff([n for n in recorded if n <= 100])) <= 8, "the beginning is looked at closely"
    assert len(recorded) > 60, "the budget is there to be used"
    assert share <= 0.0205


def test_what_is_cheap_is_recorded_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    _, recorded, _ = simulate(monkeypatch, 2000, step=1000.0, inside=1.0, dispatch=1.0, floor=0.1, full=5.0)
    assert len(recorded) > 1950


def test_where_the_floor_alone_exceeds_the_budget_hardly_a_step_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    _, recorded, _ = simulate(monkeypatch, 5000, step=1.0, inside=0.5, dispatch=0.5, floor=0.03, full=3.0)
    assert 26 <= len(recorded) < 45


def test_a_schedule_that_is_held_records_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, schedule = simulate(monkeypatch, 300, step=1.0, inside=0.5, dispatch=0.5, floor=0.01, full=3.0)
    schedule.hold("nothing to check")
    schedule.hold("another reason")
    assert [schedule.choose(number)[0] for number in range(300, 310)] == [True] * 10
    assert schedule.held == "nothing to check"


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_in_the_beginning_the_step_after_a_new_largest_number_is_recorded(kind: str) -> None:
    schedule = Schedule(50, 0.02, beginning=100)
    schedule.light_every = 8
    recorded = []
    for number in range(40):
        recorded += [number] * schedule.choose(number)[0]
        schedule.hear(number, **{kind: 10.0 if number in (21, 22, 30) else 20.0 if number == 33 else 3.0})
    assert recorded == [0, 1, 9, 17, 22, 30, 34]


def test_fixed_intervals_keep_to_their_multiples_after_an_event() -> None:
    schedule = Schedule(4)
    full = []
    for number in range(13):
        if number == 6:
            schedule.force()
        light, is_full = schedule.choose(number)
        assert light
        full += [number] * is_full
    assert full == [0, 4, 6, 8, 12]


def test_no_full_tier() -> None:
    schedule = Schedule(0)
    assert [schedule.choose(number) for number in range(3)] == [(True, False)] * 3
    schedule.force()
    assert schedule.choose(3) == (True, True)
    assert schedule.choose(4) == (True, False)


def test_a_finding_has_the_next_steps_recorded() -> None:
    schedule = Schedule(50, 0.02, beginning=100)
    schedule.light_every = 1000
    chosen = []
    for number in range(200, 300):
        if number == 240:
            schedule.watch(number)
        chosen += [number] * schedule.choose(number)[0]
    assert chosen[1:] == list(range(240, 272))


def test_only_a_gradient_many_times_all_before_is_a_leap() -> None:
    schedule = Schedule(50, 0.02, beginning=100)
    leaps = []
    for step, norm in enumerate((3.0, 1.0, 29.0, 300.0, 40.0, 2000.0)):
        schedule.hear(step, None, norm)
        leaps.append(schedule.leapt)
    assert leaps == [False, False, False, True, False, False]
