"""The live rules: early, once, bounded, and silent on healthy runs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gnnstab.records.rises import Overshoot
from gnnstab.records.vocabulary import LOSS_GROWTH, OPTIMIZER_LR_JUMP
from gnnstab.rules._tracks import WINDOW
from gnnstab.rules.live import LiveEngine
from gnnstab.signals.optimisation import step_signals
from gnnstab.trace._arrays import STEP_DTYPE
from live_engine import follow

NOTHING = np.empty(0)


def test_scores_that_grow_are_reported_once_before_they_overflow() -> None:
    found = follow(LiveEngine(), range(300), lambda i: math.exp(0.1 * i))
    assert [f.code for f in found] == ["GS301"]
    assert found[0].step is not None
    assert found[0].step < 60
    assert found[0].layer == "conv"
    assert "per step" in found[0].message


def test_growth_is_per_step_also_where_steps_are_left_out() -> None:
    every = follow(LiveEngine(), range(300), lambda i: math.exp(0.1 * i))
    some = follow(LiveEngine(), range(0, 300, 4), lambda i: math.exp(0.1 * i))
    assert some[0].value == pytest.approx(every[0].value) == pytest.approx(math.expm1(0.1))
    assert follow(LiveEngine(), range(0, 3000, 10), lambda i: 60 + math.exp(0.01 * i)) == []


def test_a_blow_up_within_a_few_steps_is_seen_at_once() -> None:
    found = follow(LiveEngine(), range(4), output=lambda i: 10.0 ** (5 * i), loss=lambda i: 10.0 ** (6 * i))
    assert {(f.code, f.signal, f.step) for f in found} == {("GS601", "output.rms", 1), ("GS601", "loss", 1)}


@pytest.mark.parametrize("seed", range(10))
def test_healthy_noise_is_silent(seed: int) -> None:
    noise = random.Random(seed)
    found = follow(
        LiveEngine(),
        range(400),
        lambda i: (5 + 40 * (1 - math.exp(-i / 100))) * math.exp(noise.gauss(0, 0.15)),
        loss=lambda i: (0.05 + 20 * math.exp(-i / 5)) * math.exp(noise.gauss(0, 0.5)),
        grad_norm=lambda i: (1 + 50 * math.exp(-i / 3)) * math.exp(noise.gauss(0, 0.4)),
        output=lambda i: 1 + noise.random(),
    )
    assert found == []


def test_one_spike_is_a_hard_batch_and_several_are_not() -> None:
    spikes: set[int] = {40}
    assert follow(LiveEngine(), range(100), grad_norm=lambda i: 50.0 if i in spikes else 1.0) == []
    spikes = {40, 60, 80}
    found = follow(LiveEngine(), range(100), grad_norm=lambda i: 50.0 if i in spikes else 1.0)
    assert [(f.code, f.step) for f in found] == [("GS603", 80)]


def test_spikes_below_the_first_gradients_are_convergence() -> None:
    def norm(i: int) -> float:
        return 100.0 * 0.95**i * (20.0 if i in {60, 70, 80, 90} else 1.0)

    assert norm(60) > 10 * norm(59)
    assert follow(LiveEngine(), range(100), grad_norm=norm) == []


@pytest.mark.parametrize(
    ("norm", "told"),
    [
        (lambda i: 2.0 if i < 12 or i % 9 == 0 else 1e-6, False),
        (lambda i: 40.0 if i in {60, 70, 80} else 2.0 if i < 12 else 1e-6, True),
        (lambda i: 0.5 * (1 + 1e-7 * (i % 3)) if i < 12 or i % 9 == 0 else 0.01, False),
        (lambda i: 40.0 if i in {60, 70, 80} else 0.5 if i < 12 else 0.01, True),
    ],
    ids=["rare gradients", "a burst after rare ones", "clipped", "a burst after clipped ones"],
)
def test_rare_gradients_as_large_as_the_first_are_no_spikes(norm: Callable[[int], float], told: bool) -> None:
    found = follow(LiveEngine(), range(100), grad_norm=norm)
    assert [f.code for f in found] == ["GS603"] * told
    rows = np.zeros(100, dtype=STEP_DTYPE)
    rows["step"], rows["lr"], rows["loss"], rows["grad_norm"] = (
        range(100),
        np.nan,
        np.nan,
        [norm(i) for i in range(100)],
    )
    (spike,) = [s for s in step_signals(rows) if s.name == "gradient.spike"]
    assert spike.detail["above_start"] is told


def test_large_first_gradients_and_skipped_steps_are_normal() -> None:
    engine = LiveEngine()
    assert follow(engine, range(30), grad_norm=lambda i: 1e4 if i == 0 else 1.0) == []
    for step in range(30, 40):
        assert engine.update(step, (), NOTHING, grad_norm=math.inf, skipped=True) == []


@pytest.mark.parametrize(("skipped", "told"), [(range(40, 41), []), (range(40, 60), ["GS601"]), (range(0), ["GS601"])])
def test_the_loss_of_one_skipped_step_is_its_batch_and_of_more_the_run(skipped: range, told: list[str]) -> None:
    """The scaler skips a batch that overflows; in the twins it skips all that follow, or none."""
    engine = LiveEngine()
    found = [
        f.code
        for i in range(60)
        for f in engine.update(i, (), NOTHING, loss=1e5 if i == 40 or i in skipped else 0.5, skipped=i in skipped)
    ]
    assert found == told


def test_a_loss_that_can_be_negative_is_not_judged() -> None:
    assert follow(LiveEngine(), range(200), loss=lambda i: -0.01 if i < 50 else 5.0) == []


def test_a_loss_that_is_lost_again() -> None:
    found = follow(LiveEngine(), range(100), loss=lambda i: 1.0 if i < 20 else (0.01 if i < 60 else 3.0))
    assert [(f.code, f.signal) for f in found] == [("GS601", "loss")]
    assert found[0].step is not None
    assert 60 <= found[0].step <= 75


@pytest.mark.parametrize(("decay", "told"), [(0.93, []), (1.0, ["GS601"]), (1.1, ["GS601"])])
def test_a_loss_that_leaps_is_told_unless_it_is_learned_down_from_there(decay: float, told: list[str]) -> None:
    """A second task joins at step 60: it is learned, it is not, or the run diverges from it."""

    def loss(i: int) -> float:
        return (0.8**i + 0.02 if i < 60 else 8 * decay ** (i - 60)) * (1 + 0.2 * math.sin(3 * i))

    found = follow(LiveEngine(), range(110), loss=loss, grad_norm=lambda i: loss(i) ** 0.5)
    assert [f.code for f in found if f.code == "GS601"] == told
    assert all(f.step is not None and f.step <= 75 for f in found)


def test_fp16_headroom_is_projected() -> None:
    engine = LiveEngine(precision="fp16", channels={"conv": 16})
    found = follow(engine, range(200), lambda i: 10 * math.exp(0.03 * i))
    found = [f for f in found if f.signal == "precision.fp16_headroom"]
    overflow = math.log(65504 / 4 / 10) / 0.03
    assert len(found) == 1
    assert found[0].step is not None
    assert overflow - 60 < found[0].step < overflow
    assert "65 504" in found[0].message


def test_bf16_rounds_early_and_fp32_does_not() -> None:
    assert [f.signal for f in follow(LiveEngine(precision="bf16"), range(5), lambda i: 40.0)] == ["precision.rounding"]
    assert follow(LiveEngine(precision="fp32"), range(5), lambda i: 40.0) == []
    grown = follow(LiveEngine(precision="bf16"), range(40), lambda i: 1.0 + i, loss=lambda i: 0.95**i)
    assert [(f.signal, f.severity) for f in grown] == [("precision.rounding", "info")], "it learns all the same"


def test_non_finite_values_are_left_to_their_own_event() -> None:
    assert (
        follow(LiveEngine(), range(50), lambda i: math.nan, loss=lambda i: math.inf, grad_norm=lambda i: math.nan) == []
    )


@pytest.mark.parametrize("size", [0.0, 1.0, 50.0, 90.0])
def test_memory_is_bounded(size: float) -> None:
    engine = LiveEngine()
    follow(engine, range(5 * WINDOW), loss=lambda i: 1.0, grad_norm=lambda i: 1.0, output=lambda i: size)
    assert len(engine._tracks) == 4
    assert len(engine._quiet._held) < 2 * WINDOW
    assert all(len(track.values) <= WINDOW for track in engine._tracks.values())


@pytest.mark.parametrize("seed", range(5))
def test_what_was_too_small_to_be_judged_is_remembered(seed: int) -> None:
    noise = random.Random(seed)
    scores = [math.exp(0.02 * i + noise.gauss(0, 0.05)) for i in range(400)]
    outputs = [1.0 if i < 390 else 5e3 for i in range(400)]

    def tell(quiet: bool) -> list[tuple[str, int | None, float]]:
        engine = LiveEngine()
        if not quiet:
            engine._quiet_below = 0.0
        found = follow(engine, range(400), lambda i: scores[i], output=lambda i: outputs[i])
        return [(f.code, f.step, f.value) for f in found]

    assert tell(quiet=True) == tell(quiet=False) != []


@pytest.mark.parametrize(
    ("rates", "steps"),
    [
        ([1e-3] * 20 + [1e-2] * 5, [20]),
        ([1e-3] * 20 + [3e-3] * 5, []),
        ([1e-2] * 10 + [1e-4] * 10 + [1e-2] * 5, []),
        ([1e-6 + 1e-3 * min(i, 50) / 50 for i in range(60)], []),
        ([0.0] * 3 + [1e-3] * 20, []),
        ([1e-3 * 1.2**i for i in range(30)], []),
    ],
)
def test_a_rate_that_jumps_beyond_all_before(rates: list[float], steps: list[int]) -> None:
    engine = LiveEngine()
    found = [f for i, lr in enumerate(rates) for f in engine.update(i, (), NOTHING, lr=lr)]
    assert [(f.code, f.step) for f in found] == [("GS606", step) for step in steps]
    rows = np.zeros(len(rates), dtype=STEP_DTYPE)
    rows["step"], rows["lr"], rows["loss"], rows["grad_norm"] = range(len(rates)), rates, np.nan, np.nan
    (jump,) = [s for s in step_signals(rows) if s.name == OPTIMIZER_LR_JUMP]
    assert [jump.step] * (jump.value >= 10) == steps


@pytest.mark.parametrize(
    ("before", "after", "at", "usual", "told"),
    [
        (1e-4, 1e-3, 30, 1e-3, []),
        (0.01, 0.1, 400, 0.1, []),
        (1e-3, 1e-2, 30, 1e-3, ["GS606"]),
        (1e-5, 2e-4, 30, 1e-3, ["GS606"]),
        (1e-4, 1e-3, 600, 1e-3, ["GS606"]),
        (1e-4, 1e-3, 30, 0.0, ["GS606"]),
    ],
    ids=["Adam", "SGD", "beyond the usual", "twentyfold", "late", "no usual rate"],
)
def test_an_early_tenfold_step_up_to_a_usual_rate_is_a_warm_up(
    before: float, after: float, at: int, usual: float, told: list[str]
) -> None:
    engine = LiveEngine(usual=usual)
    found = [f.code for i in range(at + 5) for f in engine.update(i, (), NOTHING, lr=before if i < at else after)]
    assert found == told


def test_the_first_losses_with_a_large_move_name_the_rate() -> None:
    losses = [0.70, 0.84, 1.10, 1.78, 0.87, 0.71]

    def told(moved: float | None) -> list[tuple[str, str]]:
        engine = LiveEngine()
        found = []
        for i, loss in enumerate(losses):
            found += engine.update(i, (), NOTHING, moved=moved if i == 0 else None, lr=0.05)
            found += engine.loss(i, loss, 0.05)
        return [(f.code, f.signal) for f in found]

    assert told(13.0) == [("GS601", "loss.first_rise")]
    assert told(0.5) == told(None) == []


def test_the_growth_of_the_first_steps_is_not_extrapolated() -> None:
    def settling(i: int) -> float:
        return 20 + 2000 * (1 - math.exp(-i / 12))

    def signals(scores: Any) -> set[str]:
        return {f.signal for f in follow(LiveEngine(precision="fp16"), range(200), scores)}

    assert signals(settling) == {"precision.rounding"}
    assert "precision.fp16_headroom" in signals(lambda i: settling(0) * 1.06**i)


def test_updates_that_overshoot_are_told_once_and_only_when_it_lasts() -> None:
    def told(values: list[float], adaptive: bool = False) -> list[int]:
        engine = LiveEngine()
        found = [
            f
            for i, v in enumerate(values)
            if not math.isnan(v)
            for f in engine.update(i, (), NOTHING, lr=0.1, overshoot=Overshoot(i, v, adaptive=adaptive))
        ]
        assert all((f.code, f.signal) == ("GS601", "optimizer.overshoot") for f in found)
        return [f.step for f in found if f.step is not None]

    assert told([1.0, 1.6, 1.7, 0.9, 1.8, 1.9, 2.5]) == [4]
    assert told([1.0, 1.6, 1.0, 1.6] * 5) == []
    assert told([1.0, 1.6, 1.7, 0.9, 1.8, 2.1, 2.5, 2.2], adaptive=True) == [7]
    uphill = math.nan  # Momentum carries the update uphill, which has no value.
    assert told([1.6, 1.7, uphill, 1.9, uphill, uphill, 1.8, 2.5, uphill, 2.6]) == [3]
    assert told([1.6, uphill, 1.7, uphill, uphill, 1.9, 1.8, uphill, uphill, 2.6]) == []
    engine = LiveEngine()
    assert [f for i in range(9) for f in engine.update(i, (), NOTHING, lr=0.1, overshoot=Overshoot(1, 9.0))] == []
    # While the loss falls an overshoot along single batches does no harm.
    engine = LiveEngine()
    assert [
        f
        for i in range(40)
        for f in engine.update(i, (), NOTHING, lr=0.1, loss=0.97**i, overshoot=Overshoot(i, 1.8 if i > 15 else 0.5))
    ] == []


GROWS: dict[str, tuple[Callable[[int], float], Callable[[int], float]]] = {
    "nothing bounds the objective": (lambda i: -0.1 * 1.06**i, lambda i: 0.3 * 1.06**i),
    "the features grow": (lambda i: 2 * 0.8**i + 0.3 * 1.04**i, lambda i: 8 * 0.8**i + 1.06**i),
    "below its start, and fourfold": (
        lambda i: 2 * 0.8**i + 0.45 * 1.13 ** (i - 48),
        lambda i: 8 * 0.8**i + 0.3 * 1.1**i,
    ),
}
LATE: tuple[Callable[[int], float], Callable[[int], float]] = (
    lambda i: 0.8**i + 0.04 * 0.97 ** (min(i, 60) - 60) * 1.4 ** max(i - 60, 0),
    lambda i: 2 * 0.9**i + 0.2 * 0.97 ** (min(i, 60) - 60) * 1.4 ** max(i - 60, 0),
)
SETTLES: dict[str, tuple[Callable[[int], float], Callable[[int], float]]] = {
    "a likelihood that is learned": (
        lambda i: -3 * (1 - math.exp(-i / 25)),
        lambda i: 2 + 20 * (1 - math.exp(-i / 25)),
    ),
    "a task that gets harder": (lambda i: 1 + 4 * min(i, 25) / 25, lambda i: 1 + 4 * min(i, 25) / 25),
    "the loss alone": (lambda i: 0.3 * 1.04**i if i < 90 else 10.0, lambda i: 1.0),
    "three jumps at the end of a plateau": (
        lambda i: (4.5 if i in (57, 58, 59) else 0.2) * (1 + 0.2 * math.sin(7 * i)) if i > 8 else 2.0,
        lambda i: (9.0 if i in (57, 58, 59) else 0.4) * (1 + 0.2 * math.sin(5 * i)) if i > 8 else 4.0,
    ),
    "a second task that is learned": (
        lambda i: 0.8**i + (0.03 if i < 60 else 10 * 0.95 ** (i - 60)) * (1 + 0.3 * math.sin(2.4 * i)),
        lambda i: 3 * 0.8**i + (0.15 if i < 60 else 8 * 0.96 ** (i - 60)) * (1 + 0.3 * math.sin(2.4 * i)),
    ),
    "a run that has converged": (lambda i: 2 * 0.8**i + 0.001 * 1.08**i, lambda i: 1 + 0.05 * 1.1**i),
    "back to where it began": (lambda i: 5 * 0.8**i + 0.3 * 1.02**i, lambda i: 50 * 0.8**i + 1.02**i),
}


@pytest.mark.parametrize(("loss", "norm"), GROWS.values(), ids=GROWS)
def test_loss_and_gradient_that_grow_and_go_on_are_told_live_and_of_the_trace(
    loss: Callable[[int], float], norm: Callable[[int], float]
) -> None:
    found = [f for f in follow(LiveEngine(), range(60), loss=loss, grad_norm=norm) if f.code == "GS607"]
    assert [(f.signal, f.cause) for f in found] == [("loss.growth", "")]
    assert found[0].step is not None
    assert 23 <= found[0].step <= 50
    assert ("Nothing bounds it" in found[0].message) == (loss(40) < 0)
    assert growth_of_run(loss, norm) > 0


@pytest.mark.parametrize(("loss", "norm"), SETTLES.values(), ids=SETTLES)
def test_growth_that_ends_or_that_one_of_them_has_alone_is_not_told(
    loss: Callable[[int], float], norm: Callable[[int], float]
) -> None:
    assert "GS607" not in {f.code for f in follow(LiveEngine(), range(80), loss=loss, grad_norm=norm)}
    assert growth_of_run(loss, norm) == 0


def test_what_runs_away_from_its_first_steps_is_told_before_a_slower_growth_would_be() -> None:
    found = follow(LiveEngine(), range(40), loss=lambda i: 2 * 1.2**i, grad_norm=lambda i: 3 * 1.25**i)
    assert [(f.code, f.step) for f in found if f.code == "GS607"] == [("GS607", 15)]


def test_what_runs_away_after_a_calm_is_told_before_the_line_through_both_would_be() -> None:
    """At step 60 a run begins to grow by 40 % a step; a twin that jumps and learns is among `SETTLES`."""
    found = follow(LiveEngine(), range(90), loss=LATE[0], grad_norm=LATE[1])
    assert [f.code for f in found][:1] == ["GS607"]
    assert found[0].step is not None
    assert found[0].step <= 70
    assert LATE[0](found[0].step) < LATE[0](0)


@pytest.mark.parametrize(("clipped_at", "told"), [(5.0, ["GS607"]), (1.0, [])])
def test_slow_growth_behind_the_noise_of_the_batches_is_told_by_blocks(clipped_at: float, told: list[str]) -> None:
    """A norm that is clipped from the first step on says nothing; one that has risen to the clip does."""
    found = follow(
        LiveEngine(),
        range(100),
        loss=lambda i: 2 * 1.015**i * (3.0, 1.2, 0.3, 1.0)[i % 4],
        grad_norm=lambda i: min(2 * 1.05**i, clipped_at),
    )
    assert [f.code for f in found] == told
    assert all("gradient norm" not in f.message for f in found)


@pytest.mark.parametrize(("pace", "share"), [(0.0, 0.0), (0.02, 0.9)])
def test_a_slow_growth_stands_out_of_the_noise_of_the_batches(pace: float, share: float) -> None:
    """Six medians of losses around a constant rise one after the other in a run now and then."""
    found = 0
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(size=120)
        engine, logs = LiveEngine(), 0.1 * noise + pace * np.arange(120) + 0.3 * (np.arange(120) % 4)
        told = follow(engine, range(120), loss=lambda i, ln=logs: math.exp(ln[i]), grad_norm=lambda i: 1 + 1e-3 * i)
        found += "GS607" in {f.code for f in told}
    assert share * 40 <= found <= (40 if share else 0)


def growth_of_run(loss: Callable[[int], float], norm: Callable[[int], float], steps: int = 60) -> float:
    rows = np.zeros(steps, dtype=STEP_DTYPE)
    rows["step"], rows["lr"] = range(steps), np.nan
    rows["loss"], rows["grad_norm"] = [loss(i) for i in range(steps)], [norm(i) for i in range(steps)]
    (growth,) = [s for s in step_signals(rows) if s.name == LOSS_GROWTH]
    return growth.value
