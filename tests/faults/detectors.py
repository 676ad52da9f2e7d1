"""gnnstab, and the two baselines it has to beat: the document read as a checklist, and naive absolute thresholds."""

from __future__ import annotations

from typing import Any

import torch

import gnnstab
from faults.outcome import optimizer_for, train
from faults.recipes import Case, Recipe, build
from gnnstab.records import Diagnosis


def prepared(recipe: Recipe) -> tuple[Case, torch.optim.Optimizer]:
    """The case as its user would bring it: trained for the warm-up, with its optimizer."""
    case = build(recipe)
    optimizer = optimizer_for(case)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed + 1)
        train(case, optimizer, recipe.warm_up)
    return case, optimizer


def by_gnnstab(case: Case, optimizer: torch.optim.Optimizer) -> Diagnosis:
    """The whole tool, as `gnnstab.diagnose` runs it."""
    return gnnstab.diagnose(
        case.model, batch=case.arguments(), loss=case.loss, optimizer=optimizer, precision=case.recipe.precision
    )


def accused(diagnosis: Diagnosis) -> set[str]:
    """Causes that the tool blames: those of its warnings and errors that no other finding explains."""
    return {f.cause for f in diagnosis.at_least("warning") if f.cause and f.explained_by is None}


def by_checklist(case: Case) -> set[str]:
    """The document's five causes, read off the configuration."""
    recipe = case.recipe
    found = set()
    if not recipe.dropout:
        found.add("no-dropout")
    if not recipe.beta:
        found.add("beta-disabled")
    if not recipe.residual and recipe.structure != "pre-norm":
        found.add("no-residual")
    if recipe.nodes * recipe.graphs >= 10:
        found.add("attention-explosion")
    if recipe.init.startswith("orthogonal"):
        found.add("unsuitable-init")
    return found


def by_absolute_thresholds(case: Case) -> set[str]:
    """|score| > 50, |activation| > 1e3, gradient < 1e-6, more than half of the activations zero, a NaN anywhere."""
    found: set[str] = set()
    model, seen = case.model, []
    handles = [conv.register_forward_hook(lambda _m, i, o: seen.append((i[0].detach(), o))) for conv in model.convs]
    for parameter in model.parameters():
        parameter.grad = None
    case.loss(model(**case.arguments()), None).backward()
    for handle in handles:
        handle.remove()
    for conv, (x, output) in zip(model.calls, seen, strict=True):
        with torch.no_grad():
            query, key = conv.lin_query(x), conv.lin_key(x)
            score = (query.abs().max() * key.abs().max()) / conv.out_channels**0.5
        if not bool(torch.isfinite(output).all()):
            found.add("non-finite-data")
        if float(score) > 50:
            found.add("attention-explosion")
        if float(output.abs().max()) > 1e3:
            found.add("unsuitable-init")
        if float((output <= 0).float().mean()) > 0.5:
            found.add("dead-units")
        grad: Any = conv.lin_value.weight.grad
        if grad is None or float(grad.abs().max()) < 1e-6:
            found.add("no-residual")
    return found
