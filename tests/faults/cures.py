"""Does the fix that gnnstab recommends first cure what was broken? The verdict of `verify`, and training as the judge.

A cure counts when the fixed network, trained as the benchmark trains, comes within `DAMAGE` of the healthy twin's R². A
`confirmed` is contradicted when three times as long a training leaves the fixed network behind the one without the fix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

import gnnstab
from faults.detectors import by_gnnstab, prepared
from faults.metrics import wilson
from faults.outcome import DAMAGE, STEPS, quality_of
from faults.recipes import Case, Recipe, build, graph
from gnnstab import fixes
from gnnstab.errors import FixError
from gnnstab.records import Cause, Diagnosis, Finding

Row = dict[str, Any]

LONGER = 3
"""A longer training has so many times the benchmark's steps."""

BEHIND = 0.05
"""R² by which a longer training has to leave the fixed network behind to contradict a confirmed fix."""

OTHERS = (3, 4, 5, 6, 7)
"""Streams of further graphs for `verify`: a loader yields more than one batch. Stream 2 is the test of the benchmark."""

SEEDS, VERIFY_STEPS = 5, STEPS
"""As many seeds as `verify` takes by default, and as many steps as the benchmark gives."""


def first_fix(diagnosis: Diagnosis) -> tuple[Cause, str] | None:
    """The cause that the diagnosis names first, a root cause before a contributing one, and its first fix."""
    named = [*diagnosis.root_causes(), *(c for c in diagnosis.causes if c.status == "contributing")]
    return next(((c, c.fixes[0].fix) for c in named if c.fixes), None)


def cure_row(row: Row, recipe: Recipe) -> Row:
    """One faulty network: what is recommended, what `verify` says of it, and what training says."""
    case, optimizer = prepared(recipe)
    # What a user would do: the first recommendation, against the finding that led to it, with as many batches to judge by
    # as to train on.
    diagnosis = by_gnnstab(case, optimizer)
    said: Row = {"root": [c.cause for c in diagnosis.root_causes()], "fix": None, "verdict": None}
    chosen = first_fix(diagnosis)
    if chosen is None:
        return {**row, **said}
    cause, name = chosen
    graphs = [case.data, *(graph(recipe, stream) for stream in OTHERS)]

    def loss(output: torch.Tensor, batch: Any) -> torch.Tensor:
        own = next((g for g in graphs if batch["x"] is g.x), case.data)
        return (output.float().squeeze(-1) - own.y).square().mean()

    (verdict,) = gnnstab.verify(
        case.model, name, batch=[case.arguments(g) for g in graphs], loss=loss, precision=recipe.precision, lr=recipe.lr,
        eps=recipe.eps, seeds=SEEDS, steps=VERIFY_STEPS, factory=lambda: another(recipe), finding=symptom(diagnosis, cause),
    )  # fmt: skip
    said |= {"accused": cause.cause, "fix": name, "verdict": verdict.verdict, "reason": verdict.reason}
    said |= {"signal": verdict.signal, "effect": verdict.effect, "pairs": verdict.seeds}
    said |= {"own": verdict.loss_change, "unseen": verdict.unseen_change}
    try:
        short = trained(recipe, name, diagnosis, STEPS)
    except FixError:
        # A change of the data or of the code, which is printed and cannot be tried here.
        return {**row, **said, "by_hand": True, "restored": False}
    said |= {"fixed": short, "restored": short >= row["healthy"] - DAMAGE}
    if verdict.verdict == "confirmed":
        said["longer"] = [trained(recipe, fix, diagnosis, LONGER * STEPS) for fix in (None, name)]
    return {**row, **said}


def symptom(diagnosis: Diagnosis, cause: Cause) -> Finding | None:
    """The first finding at warning or above that accuses the cause; None leaves the choice to `verify`."""
    own = [
        f for f in diagnosis.at_least("warning") if f.code in cause.codes and f.signal and math.isfinite(f.threshold)
    ]
    return own[0] if own else None


def another(recipe: Recipe) -> Any:
    """The network of the recipe with weights drawn anew from torch's generator."""
    return build(recipe.but(seed=int(torch.randint(2**31 - 1, ())))).model


def trained(recipe: Recipe, name: str | None, diagnosis: Diagnosis, steps: int) -> float:
    """R² on unseen graphs of the fresh faulty network with the fix, changes of the training included."""
    case = build(recipe)
    options: dict[str, Any] = {}
    if name is not None:
        fix = fixes.find(name)
        changed = fix.apply(case.model, batch=case.arguments(), signals=of(diagnosis), seed=recipe.seed)
        case = replace(case, model=changed)
        options = dict(fix.training_options(current=recipe.lr, signals=of(diagnosis)))
        _grow(case)
    lr, eps = options.get("lr", recipe.lr), options.get("eps", recipe.eps)
    return quality_of(case, torch.optim.Adam(case.model.parameters(), lr=lr, eps=eps), steps)


def of(diagnosis: Diagnosis) -> Any:
    """The signals of a diagnosis, for fixes that are made from measured numbers."""
    from gnnstab.records import Signals

    return Signals(kind="model", layers=diagnosis.layers, values=diagnosis.signals)


def _grow(case: Case) -> None:
    """Some fixes make their parameters in the first forward."""
    with torch.random.fork_rng(), torch.no_grad():
        case.model(**case.arguments())


def contradicted(row: Row) -> bool:
    """True for a confirmed fix that a longer training leaves behind."""
    without, fixed = row["longer"]
    return fixed < without - BEHIND or (math.isinf(fixed) and not math.isinf(without))


HEAD = (
    "injected cause", "first fix", "cases", "fix offered", "confirmed", "restores", "confirmed and restores, of those offered",
    "of all cases", "contradicted",
)  # fmt: skip


def cures_table(rows: Sequence[Row]) -> str:
    """Per injected cause: what is offered, what of it is confirmed, restores training, both; and what a longer training contradicts."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    causes = dict.fromkeys(row["causes"][0] for row in rows)
    lines += [_line(cause, [row for row in rows if row["causes"][0] == cause]) for cause in causes]
    return "\n".join([*lines, _line("all", rows)])


def _line(name: str, rows: Sequence[Row]) -> str:
    offered = [row for row in rows if row["fix"]]
    confirmed = [row for row in offered if row["verdict"] == "confirmed"]
    both = sum(row["restored"] for row in confirmed)
    fixes = dict.fromkeys(f"`{row['fix']}`" + " (by hand)" * row.get("by_hand", False) for row in offered)
    cells = (
        name,
        ", ".join(fixes) if name != "all" else "",
        len(rows),
        len(offered),
        len(confirmed),
        sum(row["restored"] for row in offered),
        _share(both, len(offered)),
        _share(both, len(rows)),
        f"{sum(map(contradicted, confirmed))} of {len(confirmed)}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _share(successes: int, trials: int) -> str:
    """``0.90 (0.60–0.98)``: a share with its 95 % interval."""
    low, high = wilson(successes, trials)
    return f"{successes / trials:.2f} ({low:.2f}–{high:.2f})" if trials else "–"
