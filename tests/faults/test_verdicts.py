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


def injected(family: str, cause: str) -> Recipe:
    """The network of a family with the strongest fault of a cause."""
    injection = next(i for i in INJECTIONS if i.cause == cause)
    return injection.inject(injection.host(of_family(family)), injection.strengths[-1])


@pytest.mark.parametrize(
    ("family", "cause"),
    [(f, c) for f in FAMILIES for c in IN_EVERY_FAMILY if (f, c) != ("GPSConv", "attention-explosion")],
)
def test_the_injected_cause_is_accused_in_every_family(family: str, cause: str) -> None:
    found, roots = said(injected(family, cause))
    assert found == {cause}
    assert cause in roots


def test_sharp_attention_beside_a_convolution_that_learns_as_well_is_information() -> None:
    """GPSConv has a way around its attention: steps with softer scores on a copy get no further, and the numbers stand in the report."""
    diagnosis = by_gnnstab(*prepared(injected("GPSConv", "attention-explosion")))
    assert accused(diagnosis) == set()
    (softer,) = [s for s in diagnosis.signals if s.name == "optimizer.softer"]
    assert softer.value < 1 and softer.detail["best"] < 0.05 * softer.detail["first"]
    assert {(f.severity, f.layer) for f in diagnosis.findings if f.code == "GS301"} == {
        ("info", f"convs.{i}.attn") for i in range(3)
    }
