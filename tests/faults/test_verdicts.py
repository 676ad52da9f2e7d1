"""What the tool says about a small fixed part of the development split, cause by cause."""

from __future__ import annotations

import pytest

from faults.detectors import accused, by_gnnstab, prepared
from faults.families import FAMILIES
from faults.injections import INJECTIONS
from faults.recipes import Recipe
from faults.splits import healthy, single
from test_contradictions import contradictions

CASES = (
    ("unsuitable-init", 0),
    ("attention-explosion", 3),
    ("sum-aggregation", 0),
    ("feature-scale", 3),
    ("learning-rate", 3),
    ("adam-epsilon", 5),
    ("precision", 3),
    ("dead-units", 3),
    ("isolated-nodes", 3),
    ("normalization-misuse", 3),
    ("active-clamp", 5),
    ("non-finite-data", 3),
    ("uninitialized-parameter", 4),
    ("never-updated-parameter", 9),
    ("saturated-gate", 3),
)
"""Cause and index within the development split: shallow ones, so that all together take seconds."""


def said(recipe: Recipe) -> tuple[set[str], list[str]]:
    """Accused causes and root causes of a diagnosis no two sentences of which exclude one another."""
    diagnosis = by_gnnstab(*prepared(recipe))
    assert contradictions(diagnosis) == []
    return accused(diagnosis), [cause.cause for cause in diagnosis.root_causes()]


@pytest.mark.parametrize(("cause", "index"), CASES, ids=[cause for cause, _ in CASES])
def test_the_injected_cause_and_no_other_is_accused(cause: str, index: int) -> None:
    _, faulty = single("development", next(i for i in INJECTIONS if i.cause == cause), index)
    assert said(faulty) == ({cause}, [cause])


@pytest.mark.parametrize("index", [0, 1, 4, 5, 10])
def test_nothing_is_accused_in_a_healthy_network(index: int) -> None:
    assert said(healthy("development", index)) == (set(), [])


IN_EVERY_FAMILY = (
    *("attention-explosion", "feature-scale", "learning-rate", "non-finite-data", "active-clamp"),
    *("never-updated-parameter", "adam-epsilon"),
)
"""Faults that stand in what every kind of attention has: its scores, the data, the optimizer, what goes around it."""


def of_family(family: str) -> Recipe:
    """A healthy network of three layers."""
    return healthy("development", 0).but(
        attention=family, edge_dim=None, structure="stack", layers=3, heads=2, width=16
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_healthy_network_of_every_family_is_left_alone(family: str) -> None:
    assert said(of_family(family)) == (set(), [])


@pytest.mark.parametrize("cause", IN_EVERY_FAMILY)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_injected_cause_is_accused_in_every_family(family: str, cause: str) -> None:
    injection = next(i for i in INJECTIONS if i.cause == cause)
    found, roots = said(injection.inject(injection.host(of_family(family)), injection.strengths[-1]))
    assert found == {cause}
    assert cause in roots
