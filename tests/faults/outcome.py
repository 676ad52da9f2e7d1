"""The judge: a fault counts only when its healthy twin trains and it does not. No detector is asked."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch

from faults.recipes import Case, Recipe, build

STEPS = 90
TRAINS = 0.6
"""R² on unseen graphs that a healthy twin has to reach."""

DAMAGE = 0.15
"""A fault has to cost this much R², or make the run non-finite."""


def optimizer_for(case: Case) -> torch.optim.Optimizer:
    """The recipe's optimizer with its settings."""
    if case.recipe.optimizer == "sgd":
        return torch.optim.SGD(case.model.parameters(), lr=case.recipe.lr)
    return torch.optim.Adam(case.model.parameters(), lr=case.recipe.lr, eps=case.recipe.eps)


def train(case: Case, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Train on the case's graphs with the usual clipping; stops at a non-finite loss; returns the losses."""
    losses: list[float] = []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16, enabled=case.recipe.precision == "fp16"):
            output = case.model(**case.arguments())
        loss = case.loss(output, None)
        loss.backward()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            break
        torch.nn.utils.clip_grad_norm_(case.model.parameters(), 10.0)
        optimizer.step()
    return losses


def quality(recipe: Recipe, steps: int = STEPS) -> float:
    """R² on unseen graphs of the same kind after training; −∞ for a non-finite run."""
    case = build(recipe)
    return quality_of(case, optimizer_for(case), steps)


def quality_of(case: Case, optimizer: torch.optim.Optimizer, steps: int) -> float:
    """The same for a case that is built already, trained with its own optimizer."""
    recipe = case.recipe
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed + 1)
        losses = train(case, optimizer, steps)
        case.model.eval()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16, enabled=recipe.precision == "fp16"):
            prediction = case.model(**case.arguments(case.test)).float().squeeze(-1)
    error = float((prediction - case.test.y).square().mean() / case.test.y.var())
    return 1 - error if math.isfinite(losses[-1]) and math.isfinite(error) else -math.inf


@lru_cache(maxsize=64)
def _twin_quality(recipe: Recipe) -> float:
    """Many faults share one healthy twin, and the warm-up before a diagnosis plays no part in training from scratch."""
    return quality(recipe)


def judged(healthy: Recipe, faulty: Recipe) -> dict[str, Any]:
    """Both arms trained; ``took`` says whether the fault does damage."""
    before = _twin_quality(healthy.but(warm_up=0))
    after = quality(faulty) if before >= TRAINS else math.nan
    return {"healthy": before, "faulty": after, "took": before >= TRAINS and before - after >= DAMAGE}
