"""Lead time: real training runs that blow up, under the monitor, and healthy ones beside them.

A run blows up at the first step at which the loss or a gradient is not finite, or from which on the loss stays above ten
times its best; that is read off the losses and the gradients, not off the monitor. Its lead time is the number of steps
between the first finding of at least a warning and that step.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

import gnnstab
from faults.outcome import optimizer_for
from faults.recipes import Case, Recipe, build
from faults.splits import healthy

Row = dict[str, Any]

STEPS = 200
RISE = 10.0
"""A loss that stays above so many times its best has diverged."""


def runs() -> dict[str, list[Recipe]]:
    """Recipes per kind of run; the strength decides how soon it happens."""
    hosts = [healthy("development", 2 * i).but(structure="stack", norm="", warm_up=0) for i in range(6)]
    return {
        "healthy": [healthy("development", i).but(warm_up=0) for i in range(24)],
        "healthy, lr 1e-2": [host.but(lr=1e-2) for host in hosts],
        "learning rate, Adam": [host.but(lr=lr) for host in hosts for lr in (0.1, 0.4)],
        "learning rate, SGD": [host.but(lr=lr, optimizer="sgd") for host in hosts for lr in (0.3, 1.0)],
        "learning rate, fp16": [host.but(lr=lr, precision="fp16") for host in hosts for lr in (0.1, 0.4)],
        "learning rate doubling every 20 steps": [host.but(lr=1e-3, doubling=20) for host in hosts],
        "query weights growing 6 % a step, fp16": [host.but(sharpening=0.06, precision="fp16") for host in hosts],
    }


def lead_row(kind: str, recipe: Recipe) -> Row:
    """Train one recipe under the monitor."""
    case = build(recipe)
    told: list[gnnstab.Finding] = []
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed + 1)
        optimizer = optimizer_for(case)
        with gnnstab.Monitor(case.model, optimizer=optimizer, on_finding=told.append) as monitor:
            losses, broken = _train(case, optimizer, monitor)
    return row_of(kind, losses, broken, told)


def row_of(kind: str, losses: Sequence[float], broken: int | None, told: Sequence[gnnstab.Finding]) -> Row:
    """What became of one run: its losses, the step that was not finite, and what was said while it went on."""
    warned = [finding for finding in told if finding.severity != "info"]
    return {
        "kind": kind,
        "blew_up": _diverged(losses) if broken is None else broken,
        "non_finite": broken is not None,
        "warned": min((finding.step for finding in warned if finding.step is not None), default=None),
        "codes": sorted({finding.code for finding in warned}),
    }


def _train(case: Case, optimizer: torch.optim.Optimizer, monitor: gnnstab.Monitor) -> tuple[list[float], int | None]:
    """The losses, and the step at which loss or gradients were not finite; no clipping, which would hide it."""
    losses: list[float] = []
    for step in range(STEPS):
        if case.recipe.doubling:
            for group in optimizer.param_groups:
                group["lr"] = case.recipe.lr * 2.0 ** (step // case.recipe.doubling)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16, enabled=case.recipe.precision == "fp16"):
            output = case.model(**case.arguments())
        loss = case.loss(output, None)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients = [p.grad for p in case.model.parameters() if p.grad is not None]
        finite = math.isfinite(losses[-1]) and all(bool(g.isfinite().all()) for g in gradients)
        optimizer.step()
        with torch.no_grad():
            for conv in case.model.convs:
                conv.lin_query.weight *= 1 + case.recipe.sharpening
        monitor.step(loss=losses[-1])
        if not finite:
            return losses, step
    return losses, None


def _diverged(losses: Sequence[float]) -> int | None:
    """The first step from which on the loss stays above `RISE` times the best loss before it, and above its start."""
    found = None
    for step in range(len(losses) - 1, 0, -1):
        if losses[step] <= max(RISE * min(losses[:step]), losses[0]):
            break
        found = step
    return found if found is not None and found <= len(losses) - 5 else None


def table(rows: Sequence[Row]) -> str:
    """One line per kind, as Markdown."""
    names = ("training runs", "runs", "blew up", "warned before", "five steps before", "median lead", "range")
    names += ("warned without a blow-up", "rules")
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        bad = [row for row in own if row["blew_up"] is not None]
        leads = [row["blew_up"] - row["warned"] for row in bad if row["warned"] is not None]
        early, five = sum(lead > 0 for lead in leads), sum(lead >= 5 for lead in leads)
        false = sum(row["blew_up"] is None and row["warned"] is not None for row in own)
        codes = ", ".join(sorted({code for row in own for code in row["codes"]})) or "–"
        median = f"{statistics.median(leads):g}" if leads else "–"
        spread = f"{min(leads)} to {max(leads)}" if leads else "–"
        cells = (kind, len(own), len(bad), early, five, median, spread, false, codes)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
