"""GS601 on small programs that its author did not tune one by one: silent at usual rates, loud far above them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from faults.rates import Program, build, loss, programs
from gnnstab.probe.optimizer._eps import damping_signals
from gnnstab.probe.optimizer._groups import group_signals
from gnnstab.probe.optimizer.optimizer_steps import bench_for
from gnnstab.probe.optimizer.rate import rate_signals
from gnnstab.records import Signals
from gnnstab.rules.gs601_learning_rate_too_high import LearningRateTooHigh
from gnnstab.rules.gs602_adam_epsilon_dominates import AdamEpsilonDominates

CHOSEN = list(programs(77, 10))


def said(program: Program) -> set[str]:
    model, optimizer, batches = build(program)
    precision = program.dtype if program.dtype is torch.bfloat16 else None
    batch = [((b.x, b.edge_index), b) for b in batches[:2]]
    calls = [arguments for arguments, _ in batch]
    targets = {id(arguments[0]): b for arguments, b in batch}

    def objective(output: torch.Tensor, given: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return loss(output, targets[id(given[0])])

    # The two rules read nothing else of what is tried.
    bench = bench_for(model, calls, objective, optimizer, precision)
    trial = bench.trial()
    values = (*rate_signals(bench, trial), *damping_signals(bench, trial), *group_signals(bench))
    signals = Signals(kind="model", layers=(), values=values)
    found = list(LearningRateTooHigh().check(signals))
    if signals.find("optimizer.eps_damping"):
        found += AdamEpsilonDominates().check(signals)
    return {finding.code for finding in found if finding.severity != "info"}


def test_usual_rates_are_silent() -> None:
    assert sum(bool(said(program)) for program in CHOSEN) == 0


def test_rates_far_above_are_named() -> None:
    assert sum("GS601" in said(replace(program, lr=1000 * program.lr)) for program in CHOSEN) >= 9


@pytest.mark.parametrize("program", [p for p in CHOSEN if p.optimizer.startswith("adam")][:3], ids=lambda p: p.layer)
def test_an_eps_that_is_too_large_is_named(program: Program) -> None:
    assert said(replace(program, eps=1.0)) == {"GS602"}
