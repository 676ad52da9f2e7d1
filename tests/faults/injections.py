"""Every fault: how it is put into a healthy recipe, and at which strengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from faults.recipes import Recipe


@dataclass(frozen=True)
class Injection:
    """One way to break a network."""

    cause: str
    strengths: tuple[float, ...]
    """From weak to strong."""

    inject: Callable[[Recipe, float], Recipe]
    host: Callable[[Recipe], Recipe] = lambda recipe: recipe
    """Turns a healthy recipe into a healthy one that can carry the fault: the twin that the outcome is judged against."""


def _deep(recipe: Recipe, layers: int) -> Recipe:
    """A deep network that trains: pre-norm with an identity path."""
    return recipe.but(structure="pre-norm", layers=layers, activation="relu", norm="", heads=1, nodes=40, graphs=3)


def _flat(recipe: Recipe, layers: int, **changes: object) -> Recipe:
    """The same depth without the identity path."""
    return recipe.but(structure="stack", layers=layers, norm="", **changes)


def _edit(name: str) -> Callable[[Recipe, float], Recipe]:
    return lambda recipe, strength: recipe.but(edits=(*recipe.edits, (name, strength)))


def _crowd(recipe: Recipe) -> Recipe:
    return recipe.but(
        structure="stack", layers=2, embedding="mean+root", graph="complete", nodes=44, graphs=1, norm="", residual=0.0
    )


def _shallow(recipe: Recipe) -> Recipe:
    structure = "stack" if recipe.structure in ("pre-norm", "block") else recipe.structure
    return recipe.but(structure=structure, layers=min(recipe.layers, 4), norm="", residual=0.0)


INJECTIONS: tuple[Injection, ...] = (
    Injection("no-residual", (10, 12, 14, 16), lambda r, s: _flat(r, int(s)), lambda r: _deep(r, 12)),
    Injection(
        "unsuitable-init",
        (1.6, 2.0, 2.5),
        lambda r, s: r.but(init=f"orthogonal:{s}"),
        lambda r: _flat(_deep(r, 8), 8, init="xavier:1.0"),
    ),
    Injection("attention-explosion", (3, 4, 6, 10), _edit("sharpen"), _shallow),
    Injection("sum-aggregation", (30, 44, 60, 80), lambda r, s: r.but(embedding="sum", nodes=int(s)), _crowd),
    Injection("feature-scale", (30, 100, 300, 1000), lambda r, s: r.but(column_scale=s), _shallow),
    Injection(
        "learning-rate",
        (0.05, 0.1, 0.2, 0.4),
        lambda r, s: r.but(lr=s, warm_up=8),
        lambda r: _shallow(r).but(warm_up=8),
    ),
    Injection(
        "adam-epsilon", (0.1, 1.0, 10.0), lambda r, s: r.but(eps=s, warm_up=8), lambda r: _shallow(r).but(warm_up=8)
    ),
    Injection(
        "precision",
        (3000, 6000, 12000),
        lambda r, s: _edit("common-offset")(r, s).but(precision="fp16"),
        lambda r: _shallow(r).but(precision="fp16"),
    ),
    Injection("dead-units", (5, 20, 50), _edit("kill"), lambda r: _shallow(r).but(activation="relu")),
    Injection("isolated-nodes", (0.3, 0.5, 0.7), lambda r, s: r.but(isolated=s, root_weight=False), _shallow),
    Injection(
        "normalization-misuse",
        (2,),
        lambda r, s: r.but(norm="graph", nodes=int(s), graphs=48 // int(s), graph="complete"),
        lambda r: _shallow(r).but(norm="layer", nodes=2, graphs=24, graph="complete"),
    ),
    Injection(
        "oversmoothing",
        (12, 14, 16),
        lambda r, s: _flat(r, int(s), activation="tanh", init="xavier:1.0"),
        lambda r: _deep(r, 12).but(activation="tanh"),
    ),
    Injection("active-clamp", (0.3, 0.1, 0.03), lambda r, s: r.but(clamp=s), _shallow),
    Injection("non-finite-data", (0.05, 0.3), _edit("poison"), _shallow),
    Injection("uninitialized-parameter", (0.5, 1.0), _edit("uninitialised"), _shallow),
    Injection(
        "never-updated-parameter",
        (1,),
        lambda r, s: r.but(detach=True, warm_up=8),
        lambda r: _shallow(r).but(warm_up=8),
    ),
    Injection(
        "saturated-gate",
        (30, 100, 300),
        _edit("saturate-gate"),
        lambda r: _shallow(r).but(beta=True, root_weight=True),
    ),
)
