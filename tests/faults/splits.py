"""What development and the held-out parts draw from: different families, not different random seeds."""

from __future__ import annotations

import random

from faults.injections import INJECTIONS, Injection
from faults.recipes import Recipe

FAMILIES: dict[str, dict[str, tuple[object, ...]]] = {
    "development": {
        "structure": ("stack", "stack", "pre-norm"),
        "graph": ("random", "ring"),
        "width": (16, 24),
        "activation": ("relu", "tanh"),
        "heads": (1, 2),
        "degree": (6, 8),
    },
    "held-out": {
        "structure": ("stack", "jumping", "wide-heads", "block", "shared"),
        "graph": ("small-world", "communities", "geometric"),
        "width": (12, 20, 32),
        "activation": ("leaky_relu", "gelu", "silu", "relu"),
        "heads": (1, 3, 4),
        "degree": (4, 10),
    },
    "held-out-cures": {
        "structure": ("stack", "jumping", "wide-heads", "block", "shared"),
        "graph": ("preferential", "grid"),
        "width": (14, 18, 28),
        "activation": ("elu", "gelu", "relu"),
        "heads": (1, 2, 3),
        "degree": (6, 8),
    },
    "held-out-cures-2": {
        "structure": ("stack", "jumping", "wide-heads", "block", "shared"),
        "graph": ("small-world", "geometric", "grid"),
        "width": (10, 22, 26),
        "activation": ("elu", "silu", "relu"),
        "heads": (1, 2, 5),
        "degree": (5, 7),
    },
}

DRAW = {
    "development": "development",
    "held-out": "held-out, second",
    "held-out-cures": "held-out for cures",
    "held-out-cures-2": "held-out for cures, second",
}
"""What the draws of a split are seeded with. A part that was opened and led to a change is spent: the next one is drawn anew."""

HARD_HEALTHY: tuple[dict[str, object], ...] = (
    {"structure": "pre-norm", "layers": 10},
    {"warm_up": 90},
    {"identifier": True},
    {"graph": "tree"},
    {"init": "orthogonal:1.0"},
    {"structure": "stack", "layers": 2, "embedding": "mean+root", "graph": "complete", "nodes": 60, "graphs": 1},
    {"dropout": 0.1},
    {"beta": True, "layers": 3},
    {"structure": "stack", "layers": 3, "residual": 1.0},
    {"warm_up": 40, "lr": 1e-2},
)


def healthy(split: str, index: int) -> Recipe:
    """The index-th healthy recipe of a split; every second one is a hard negative."""
    draw = random.Random(f"{DRAW[split]} {index}")
    family = FAMILIES[split]
    recipe = Recipe(
        seed=index,
        layers=draw.choice((2, 3, 4)),
        nodes=draw.choice((20, 28)),
        graphs=2,
        edge_dim=draw.choice((None, 2)),
        lr=draw.choice((3e-3, 5e-3)),
        **{name: draw.choice(values) for name, values in family.items()},  # type: ignore[arg-type]
    )
    return recipe.but(**HARD_HEALTHY[index // 2 % len(HARD_HEALTHY)]) if index % 2 else recipe


def single(split: str, injection: Injection, index: int) -> tuple[Recipe, Recipe]:
    """(healthy twin, faulty recipe) for one fault; the strengths take turns."""
    twin = injection.host(healthy(split, 2 * index))
    strength = injection.strengths[index % len(injection.strengths)]
    faulty = injection.inject(twin, strength)
    return twin, faulty.but(faults=((injection.cause, strength),))


PAIRS = (
    ("attention-explosion", "feature-scale"),
    ("attention-explosion", "dead-units"),
    ("sum-aggregation", "attention-explosion"),
    ("learning-rate", "feature-scale"),
    ("isolated-nodes", "attention-explosion"),
    ("active-clamp", "attention-explosion"),
)


def pair(split: str, first: str, second: str, index: int) -> tuple[Recipe, Recipe]:
    """(healthy twin, recipe with two faults), both at their strongest but one."""
    by_cause = {i.cause: i for i in INJECTIONS}
    one, two = by_cause[first], by_cause[second]
    twin = one.host(two.host(healthy(split, 2 * index)))
    strengths = (one.strengths[-2], two.strengths[-2])
    faulty = two.inject(one.inject(twin, strengths[0]), strengths[1])
    return twin, faulty.but(faults=((first, strengths[0]), (second, strengths[1])))
