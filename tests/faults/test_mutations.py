"""The mutants: each kind finds a place in the healthy programs; training labels them; some are asked about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gnnstab
from faults import mutations
from faults.mutations import MUTATIONS, Mutation, ask, did_damage, matrix, mutant, run
from truth.healthy import HEALTHY, Run

HOSTS = ("one-hot edges", "gps", "tgn", "gat", "pooled")


def named(kind: str, place: str) -> Mutation:
    return next(m for m in MUTATIONS if (m.kind, m.place) == (kind, place))


@pytest.fixture(scope="module")
def healthy() -> Iterator[dict[str, Any]]:
    """What the hosts do as they are, which is the same after all mutations."""
    before = {name: Run.of(HEALTHY[name]).steps(2) for name in HOSTS}
    yield before
    assert {name: Run.of(HEALTHY[name]).steps(2) for name in HOSTS} == before


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.kind} at {m.place}")
def test_every_mutation_changes_a_program_and_leaves_the_gallery_alone(
    mutation: Mutation, healthy: dict[str, Any]
) -> None:
    changed = 0
    for name in HOSTS:
        run = mutant(name, mutation, mutation.strengths[-1])
        try:
            changed += run is not None and run.steps(2) != healthy[name]
        except (RuntimeError, IndexError):  # a place of another shape, which a run leaves out
            continue
    assert changed


@pytest.mark.parametrize(
    ("kind", "place", "strength", "host"),
    [
        ("not finite", "encodings", 1.0, "gps"),
        ("clamped", "layer", 0.01, "tgn"),
        ("rate", "optimizer", 300.0, "gat"),
        ("undefined", "layer", 1.0, "gps"),
        ("scale", "edge features", 1e4, "one-hot edges"),
    ],
)
def test_monitor_and_diagnose_name_it(kind: str, place: str, strength: float, host: str) -> None:
    mutation = named(kind, place)
    assert did_damage(host, mutation, strength)
    said = ask(host, mutation, strength)
    assert {said[face]["roots"][0] for face in ("monitor", "diagnose")} <= set(mutation.roots)


def test_statistics_that_the_bad_forward_has_spoilt_are_not_where_it_came_from() -> None:
    run, heard = mutant("gps", named("not finite", "encodings"), 1.0), []
    assert run is not None
    with gnnstab.Monitor(run.model, optimizer=run.optimizer, on_finding=heard.append) as monitor:
        run.steps(1, monitor.loss)
    assert [f.message.startswith("`pe` holds NaN in row 39") for f in heard if f.code == "GS502"] == [True]


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """NaN shows in the first one; what is kept of whole trainings is not mixed up with these."""
    kept = (mutations.healthy, mutations.of_twin)
    monkeypatch.setattr(mutations, "STEPS", 6)
    for one in kept:
        one.cache_clear()
    yield
    for one in kept:
        one.cache_clear()


@pytest.mark.usefixtures("few_steps", "brief")
def test_a_run_goes_on_where_it_stopped_and_fills_the_matrix(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    run(out, per=1, seconds=60.0, only="not finite encodings")
    lines = out.read_text()
    run(out, per=1, seconds=60.0, only="not finite encodings")
    assert out.read_text() == lines
    assert list(matrix(out))[2:] == ["| not finite | encodings | 2 | 2 | 2 |"]


def test_training_alone_decides() -> None:
    """What costs nothing, or finds no place, is no mutant."""
    nothing = Mutation("nothing", "features", (), lambda run, strength: True)
    assert not did_damage("transformer", nothing, 1.0)
    assert not did_damage("chain", named("not finite", "encodings"), 1.0), "the program has no such place"
