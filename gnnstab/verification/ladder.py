"""The ladder: fixes added one after another, in the order of the document that the project grew from, then larger graphs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from gnnstab.errors import FixError, NothingEvaluable, UsageError
from gnnstab.fixes.model_structure import duplicate
from gnnstab.probe.batches.arguments import as_arguments
from gnnstab.probe.replaying.evaluating import in_mode
from gnnstab.randomness import keeps_random_state
from gnnstab.verification._arms import Arm, ArmResult, Setting, build, run_arm, training_changes
from gnnstab.verification._fresh_copies import Factory, seeded
from gnnstab.verification._growth import bound, find_graph_call, grown, in_degrees
from gnnstab.verification._judging import stands
from gnnstab.verification._storing import stored
from gnnstab.verification._sweep import Progress, sweep
from gnnstab.verification.fix_spec import FixSpec, fix_specs
from gnnstab.verification.measuring import items, observe
from gnnstab.verification.training import Run, TrainingSettings, micro_train

DOCUMENT_ORDER: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("+ dropout + beta", ("dropout", "beta")),
    ("+ residual", ("residual",)),
    ("+ initialisation", ("depth-init",)),
    ("+ learning rate", ("lower-lr",)),
    ("+ GraphNorm", ("graph-norm",)),
    ("+ score cap", ("score-cap",)),
    ("+ aggregation", ("aggregation",)),
)
"""Name of the rung, and the fixes that it adds."""

SIZES = (7.0, 10.0, 50.0)
"""Agents of the document's final test; the first number stands for the batch as it is."""


class Train(Protocol):
    """A training function of the user, for ``--train pkg.mod:fn``."""

    def __call__(self, model: nn.Module, *, seed: int, **settings: float) -> Sequence[float]:
        """Train ``model`` in place and return the losses, one per step or epoch.

        ``settings`` holds what the fixes change about training: ``lr``, ``eps``, ``clip``; the function should use
        those that are given and its own for the rest. It may stop at a loss that is not finite.

        A function with a parameter ``agents`` is called for the larger sizes too, with that many.
        """


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of the ladder."""

    name: str
    fixes: tuple[str, ...]
    """All fixes in force on this rung."""

    stable: bool
    """No rule fires at warning or above and every training stays finite, also on what is kept from it, in most seeds."""

    helped: bool | None
    """True when the signal moved towards health by a quarter of its way or the rung became stable; None on the first
    rung and where the rung could not be built."""

    value: float
    """The goal's signal, median over seeds."""

    loss: float
    """Loss at the end of training, median over seeds; inf when it broke off, or is no number on what is kept from it."""

    codes: tuple[str, ...]
    """Codes that fire in most seeds."""

    error: str = ""
    """Why a fix of this rung found no place; the rung then stands without it."""


@dataclass(frozen=True, slots=True)
class Larger:
    """One rung on larger graphs."""

    size: float
    """Agents; what it multiplies is the in-degree of the batch."""

    degree: float
    """Mean in-degree there."""

    rung: str
    stable: bool
    """As for a rung."""

    loss: float
    """At the end of training, median over seeds; inf when it broke off."""

    codes: tuple[str, ...]
    """Codes that fire in most seeds."""

    objective: str
    """What was trained on."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """All rungs, and what they show."""

    rungs: tuple[Rung, ...]
    signal: str
    """The goal's signal; ``""`` when nothing fires on the model as it is."""

    objective: str
    larger: tuple[Larger, ...] = ()
    """The first stable rung on larger graphs; where it is not stable any more, the rungs above it."""

    not_scaled: str = ""
    """Why there are no larger graphs; else empty."""

    @property
    def stable_from(self) -> Rung | None:
        """The first rung from which on the run is stable; None when none is."""
        return next((rung for rung in self.rungs if rung.stable), None)

    @property
    def without_effect(self) -> tuple[Rung, ...]:
        """Rungs that did nothing."""
        return tuple(rung for rung in self.rungs if rung.helped is False)


@keeps_random_state
def run_ladder(
    model: nn.Module,
    *,
    batch: Any,
    loss: Callable[[Any, Any], Any] | None = None,
    train: Train | None = None,
    rungs: Sequence[tuple[str, Sequence[Any]]] = DOCUMENT_ORDER,
    seeds: int = 3,
    steps: int = 150,
    precision: str = "fp32",
    lr: float = 1e-3,
    sizes: Sequence[float] = SIZES,
    factory: Factory | None = None,
    workers: int = 1,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> Ladder:
    """Add fixes cumulatively to fresh twins, and measure and train every rung; then try the stable ones on larger graphs.

    What grows with the size is the in-degree, by `growth.grown`: nodes and features stay those of the batch. The larger
    graph is handed to the module that gets node features and edges, which is measured, and trained on the synthetic
    task, or by ``train`` if that takes ``agents``.

    Args:
        model: Any module with attention layers; it stays as it is.
        batch: As for `gnnstab.diagnose`.
        loss: As for `gnnstab.verify`.
        train: A training function of your own, see `Train`; the short training of `gnnstab.verify` when omitted.
        rungs: Names and the fixes that each rung adds; the document's order when omitted.
        seeds: Seeds per rung.
        steps: Steps of the short training.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        lr: Learning rate of the short training.
        sizes: Of which the first stands for the batch as it is; the first stable rung is tried on the others, which make
            the in-degree larger in proportion, and the rungs above it where it is no longer stable.
        factory: Makes the model with fresh weights.
        workers: Processes.
        store: A file that keeps every finished rung and seed.
        progress: Called after every one.

    Raises:
        NothingEvaluable: No training changes the loss.
    """
    if not rungs:
        raise UsageError("a ladder needs at least one rung")
    if any(not 0 < size < math.inf for size in sizes):
        raise UsageError(f"sizes must be positive numbers, not {', '.join(f'{size:g}' for size in sizes)}")
    stored(
        None if store is None else Path(store), (), ArmResult
    )  # A file of somebody else is refused before anything runs.
    training = TrainingSettings(steps=steps, lr=lr)
    setting = Setting.of(model, batch, loss, precision, training, factory)
    stages, errors = _stages(setting, rungs)
    of = (model, setting.batch, setting.loss, train, factory, training, precision, stages)
    run = partial(sweep, kind=ArmResult, of=of, workers=workers, progress=progress, store=store)
    trials = _Trials(setting, train, range(seeds), run)
    return trials.scaled_up(trials.climbed(stages, errors), stages, sizes)


Stages = list[tuple[str, tuple[FixSpec, ...]]]
"""Name of each rung, and all fixes in force on it."""


def _stages(setting: Setting, rungs: Sequence[tuple[str, Sequence[Any]]]) -> tuple[Stages, dict[str, str]]:
    """Cumulative fixes per rung; a fix that finds no place is left out and its reason kept."""
    so_far: tuple[FixSpec, ...] = ()
    stages: Stages = [("baseline", so_far)]
    errors: dict[str, str] = {}
    for name, fixes in rungs:
        for item in fix_specs(list(fixes)):
            try:
                build(setting, Arm((*so_far, item), fresh=True, seed=0))
            except FixError as error:
                errors[name] = str(error)
            else:
                so_far = (*so_far, item)
        stages.append((name, so_far))
    return stages, errors


@dataclass(frozen=True)
class _Trials:
    """What all rungs are tried with."""

    setting: Setting
    train: Train | None
    seeds: range
    run: Callable[[Mapping[str, Callable[[], ArmResult]]], dict[str, ArmResult]]

    def climbed(self, stages: Stages, errors: Mapping[str, str]) -> Ladder:
        """Every rung on the batch as it is."""
        jobs = {
            f"{name}/{seed}": partial(_job, self.setting, Arm(fixes, fresh=True, seed=seed, train=True), self.train)
            for name, fixes in stages
            for seed in self.seeds
        }
        results = self.run(jobs)
        if self.setting.training.steps > 1 and all(map(stands, results.values())):
            raise NothingEvaluable(
                f"the loss stays at {next(iter(results.values())).final:g} in every training, so that nothing can be told of any rung: pass one that "
                "updates can lower"
            )
        rungs: list[Rung] = []
        for name, fixes in stages:
            done = [results[f"{name}/{seed}"] for seed in self.seeds]
            rungs.append(self.rung(name, fixes, done, rungs[-1] if rungs else None, errors.get(name, "")))
        goal, objective = self.setting.goal, next((r.objective for r in results.values() if r.objective), "")
        return Ladder(tuple(rungs), goal.signal if goal else "", objective)

    def scaled_up(self, ladder: Ladder, stages: Stages, sizes: Sequence[float]) -> Ladder:
        """The ladder with its stable rungs on larger graphs, from small to large and from the lowest rung up."""
        position = next((i for i, rung in enumerate(ladder.rungs) if rung.stable), len(ladder.rungs))
        if len(sizes) < 2 or position == len(ladder.rungs):
            return ladder
        try:
            _graph(self.setting, duplicate(self.setting.model), 1.0, 0)
        except UsageError as error:
            return replace(ladder, not_scaled=str(error))
        larger: list[Larger] = []
        for size in sorted(sizes[1:]):
            for name, fixes in stages[position : len(ladder.rungs)]:
                arms = {
                    f"{name}/{size:g} of {sizes[0]:g}/{seed}": Arm(fixes, fresh=True, seed=seed) for seed in self.seeds
                }
                job = partial(_larger_job, self.setting, size=size, factor=size / sizes[0], train=self.train)
                done = list(self.run({key: partial(job, arm) for key, arm in arms.items()}).values())
                rung = self.rung(name, fixes, done)
                larger.append(Larger(size, rung.value, name, rung.stable, rung.loss, rung.codes, done[0].objective))
                if rung.stable:
                    break
                position += 1
        return replace(ladder, larger=tuple(larger))

    def rung(
        self,
        name: str,
        fixes: tuple[FixSpec, ...],
        done: Sequence[ArmResult],
        below: Rung | None = None,
        error: str = "",
    ) -> Rung:
        """One rung from what came of all seeds."""
        most = math.ceil(0.8 * len(done))
        ends = [math.inf if r.unseen == math.inf else r.final for r in done]
        stable = sum(not r.codes and math.isfinite(end or 0.0) for r, end in zip(done, ends, strict=True)) >= most
        codes = {code for r in done for code in r.codes}
        value = float(np.median([r.value for r in done]))
        fixed = tuple(w.label for w in fixes)
        helped = None
        if below is not None and fixed != below.fixes:
            moved = self.setting.goal.effect(below.value, value) if self.setting.goal else 0.0
            helped = (stable and not below.stable) or (moved >= 0.25 and not below.stable)
        loss = float(np.median([math.inf if end is None else end for end in ends]))
        firing = tuple(sorted(c for c in codes if sum(c in r.codes for r in done) >= most))
        return Rung(name, fixed, stable, helped, value, loss, firing, error)


def _job(setting: Setting, arm: Arm, train: Train | None) -> ArmResult:
    if train is None:
        return run_arm(setting, arm)
    result = run_arm(setting, replace(arm, train=False))
    return _trained_by_user(setting, arm, train, result, {})


def _trained_by_user(
    setting: Setting, arm: Arm, train: Train, result: ArmResult, more: Mapping[str, float]
) -> ArmResult:
    model = build(setting, arm)
    with seeded(arm.seed):
        losses = list(train(model, seed=arm.seed, **training_changes(setting, arm.wanted), **more))
    broken = next((n for n, value in enumerate(losses, 1) if not math.isfinite(value)), len(losses))
    name = getattr(train, "__name__", "your training function")
    done = Run(tuple(losses[:broken]), 0.0, f"{name}, {len(losses)} losses")
    return replace(result, final=done.final, objective=done.objective)


def _larger_job(setting: Setting, arm: Arm, size: float, factor: float, train: Train | None) -> ArmResult:
    """Codes and training of one rung on a larger graph; ``value`` is the mean in-degree there."""
    model = build(setting, arm)
    part, batch, degree = _graph(setting, model, factor, arm.seed)
    with seeded(arm.seed):
        codes = {f.code: f.severity for f in observe(part, batch, precision=setting.precision).findings}
        result = ArmResult(value=degree, codes=codes)
        if train is not None and "agents" in inspect.signature(train).parameters:
            agents = int(size) if size == int(size) else size
            return _trained_by_user(setting, arm, train, result, {"agents": agents})
        settings = replace(setting.training, **training_changes(setting, arm.wanted))
        done = micro_train(
            part, as_arguments(batch, part), items(batch), None, settings, seed=arm.seed, precision=setting.precision
        )
    return replace(result, start=done.losses[0], final=done.final, objective=done.objective)


def _graph(setting: Setting, model: nn.Module, factor: float, seed: int) -> tuple[nn.Module, Any, float]:
    """The module that gets the graph, a graph with ``factor`` times the in-degree for it, and that in-degree."""
    mode = model.training
    call = find_graph_call(in_mode(model, False), as_arguments(setting.batch, model)[0])
    in_mode(model, mode)
    arguments = grown(call, factor, torch.Generator().manual_seed(seed))
    return *bound(model.get_submodule(call.name), arguments), in_degrees(arguments)[0]
