"""One arm of a comparison: a model with or without a fix, measured and, where asked, trained for a moment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from gnnstab.errors import FixError
from gnnstab.fixes import find
from gnnstab.fixes.model_structure import duplicate
from gnnstab.probe.batches.arguments import as_arguments
from gnnstab.probe.batches.data import taken
from gnnstab.probe.batches.loss import of_output_and_batch
from gnnstab.probe.replaying.evaluating import in_mode
from gnnstab.records import Finding, Signal, Signals
from gnnstab.verification._fresh_copies import AsBegan, Factory, fresh_twin, seeded
from gnnstab.verification.fix_spec import FixSpec
from gnnstab.verification.measuring import items, measured_on, observe
from gnnstab.verification.targets import Goal, choose, goal_of
from gnnstab.verification.training import Run, TrainingSettings, micro_train


@dataclass(frozen=True)
class Setting:
    """Everything that all arms of one verification share."""

    model: nn.Module
    """The user's; arms only copy it."""

    batch: Any
    loss: Any
    precision: str
    training: TrainingSettings
    goal: Goal | None
    signals: Signals
    """Of the model as given, for fixes that are made from measured numbers."""

    factory: Factory | None = None
    findings: tuple[Finding, ...] = ()
    """Of the model as given, at warning or above."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batch: Any,
        loss: Any,
        precision: str,
        training: TrainingSettings,
        factory: Factory | None = None,
        finding: Finding | None = None,
        *,
        steps: bool = False,
        search: bool = True,
    ) -> Setting:
        """Measure the model as given, with ``steps`` those of the optimizer on a copy as well, and with ``search`` at lower rates; the goal is to undo ``finding``, the most severe symptom when it is None."""
        loss = None if loss is None else of_output_and_batch(loss)
        optimizing: dict[str, Any] = {}
        if steps or (finding is not None and finding.signal.startswith("optimizer.")):
            # The rate that is advised is the one that the same steps have shown.
            optimizing = {"optimizer": training.optimizer(model), "try_steps": True, "search": search}
        with seeded(0):
            batch = taken(batch, model)
            seen = observe(model, measured_on(batch, loss), loss=loss, precision=precision, **optimizing)
        goal, signals = choose(seen.findings) if finding is None else goal_of(finding), seen.signals
        if finding is not None and not signals.find(finding.signal):
            # Numbers of the user's optimizer come with the finding alone; a fix may be made from them.
            told = Signal(finding.signal, finding.value, finding.layer)
            signals = replace(signals, values=(*signals.values, told))
        return cls(duplicate(model), batch, loss, precision, training, goal, signals, factory, seen.findings)

    @property
    def tries_steps(self) -> bool:
        """True where steps at the rate of the user's own training can be tried."""
        return self.loss is not None and self.training.own_rate

    def from_the_start(self, finding: Finding | None, began: nn.Module | None = None, search: bool = True) -> Setting:
        """The same with freshly drawn weights, or those that the run ``began`` with, for changes of the training: what a training has made of the weights, no other rate undoes.

        What steps from there show comes before the symptoms of the model as given.
        """
        factory = self.factory if began is None else AsBegan(duplicate(began))
        fresh = fresh_twin(self.model, 0, factory)
        start = Setting.of(
            fresh, self.batch, self.loss, self.precision, self.training, factory, finding, steps=self.tries_steps,
            search=search,
        )  # fmt: skip
        shown = [f for f in start.findings if f.signal.startswith("optimizer.")] if finding is None else []
        return replace(start, model=self.model, goal=choose(shown) or self.goal or start.goal)


@dataclass(frozen=True)
class Arm:
    """What to build: ``wanted`` on the current weights, or on a fresh twin drawn from ``seed``."""

    wanted: tuple[FixSpec, ...]
    """Fixes in order; empty for the arm without any."""

    fresh: bool
    seed: int
    train: bool = False
    """Train after measuring."""

    measure: bool = True
    """Measure before training; off where the same arm has been measured already."""

    measure_after: bool = False
    """Measure once more after the training: for fixes that change nothing but the training."""

    @property
    def key(self) -> str:
        """Names the arm in a store of results."""
        names = "+".join(w.label for w in self.wanted) or "as it is"
        steps = ("/measured" if self.measure else "") + ("/trained" if self.train else "")
        steps += "/after" if self.measure_after else ""
        return f"{names}/{'fresh' if self.fresh else 'current'}/{self.seed}{steps}"


@dataclass(frozen=True)
class ArmResult:
    """What was seen; plain numbers, so that it can be stored."""

    value: float = math.nan
    """Of the goal's signal."""

    codes: Mapping[str, str] = field(default_factory=dict)
    """Rule code → worst severity, at warning or above."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    """Rule code → the number farthest from zero that it found, information included."""

    start: float | None = None
    """Loss before the first step of the training."""

    final: float | None = None
    """Loss at the end of the training."""

    unseen: float | None = None
    """Loss of the trained arm on what is kept from the training; None where nothing is."""

    best: float | None = None
    """The lowest loss on that on the way of the training."""

    per_step: float | None = None
    """Seconds."""

    follows: Mapping[str, str] = field(default_factory=dict)
    """Rule code → code that explains it, of those in ``codes`` that another rule explains at every place."""

    objective: str = ""
    error: str = ""
    """Why the arm could not be built or measured; empty when it could."""


def run_arm(setting: Setting, arm: Arm) -> ArmResult:
    """Build, measure and train one arm."""
    try:
        model = build(setting, arm)
    except FixError as error:
        return ArmResult(error=str(error))
    changes = training_changes(setting, arm.wanted)
    settings = replace(setting.training, **changes)
    with seeded(arm.seed):
        result = ArmResult()
        if arm.measure and not arm.measure_after:
            result = _measured(setting, model, settings, arm.seed)
        if arm.train or arm.measure_after:
            run = _trained(setting, model, settings, arm.seed)
            if arm.measure_after:
                result = _measured(setting, model, settings, arm.seed)
            result = replace(
                result,
                start=run.losses[0],
                final=run.final,
                unseen=run.unseen,
                best=run.best,
                per_step=run.per_step,
                objective=run.objective,
            )
        return result


def build(setting: Setting, arm: Arm) -> nn.Module:
    """The arm's model.

    Raises `FixError` when a fix finds no place.
    """
    model = fresh_twin(setting.model, arm.seed, setting.factory) if arm.fresh else duplicate(setting.model)
    for wanted in arm.wanted:
        fix = find(wanted.fix)
        model = fix.apply(model, **apply_options(setting, wanted, arm.seed))
    return model


def apply_options(setting: Setting, wanted: FixSpec, seed: int) -> dict[str, Any]:
    """The caller's options, and what a fix may need besides: a batch, measured signals, a seed."""
    given: dict[str, Any] = {"batch": items(setting.batch)[0], "signals": setting.signals, "seed": seed}
    return {**given, **wanted.options}


def training_changes(setting: Setting, wanted: Sequence[FixSpec]) -> dict[str, Any]:
    """What the fixes change about the training: fields of `TrainingSettings`."""
    changes: dict[str, Any] = {}
    for item in wanted:
        options = {"current": setting.training.lr, "signals": setting.signals, **item.options}
        changes |= find(item.fix).training_options(**options)
    return changes


def _measured(setting: Setting, model: nn.Module, settings: TrainingSettings, seed: int) -> ArmResult:
    optimizer = settings.optimizer(model)
    of_optimizer = setting.goal is not None and setting.goal.signal.startswith("optimizer.")
    if of_optimizer:
        _prime(setting, model, settings, optimizer, seed)
    batch = measured_on(setting.batch, setting.loss)
    trying = {"optimizer": optimizer, "try_steps": of_optimizer, "search": False}
    seen = observe(model, batch, loss=setting.loss, precision=setting.precision, **trying)
    codes: dict[str, str] = {}
    for finding in seen.findings:
        codes[finding.code] = max(codes.get(finding.code, ""), finding.severity, key=("", "warning", "error").index)
    numbers: dict[str, float] = {}
    for finding in (*seen.findings, *seen.notes):
        numbers[finding.code] = max(numbers.get(finding.code, 0.0), finding.value, key=abs)
    alone = {f.code for f in seen.findings if f.explained_by is None}
    follows = {f.code: f.explained_by for f in seen.findings if f.explained_by is not None and f.code not in alone}
    return ArmResult(value=_value(setting.goal, seen.signals, codes), codes=codes, numbers=numbers, follows=follows)


def _value(goal: Goal | None, signals: Signals, codes: Mapping[str, str]) -> float:
    if goal is None:
        return math.nan
    return float(goal.code in codes) if goal.judged_by_status else goal.read(signals)


def _prime(
    setting: Setting, model: nn.Module, settings: TrainingSettings, optimizer: torch.optim.Optimizer, seed: int
) -> None:
    """Give the optimizer the state of one step that moves nothing: what it would divide by is known only then."""
    first = _trained(setting, model, replace(settings, lr=0.0, steps=1), seed).optimizer
    assert first is not None
    for parameter in model.parameters():
        if parameter in first.state:
            optimizer.state[parameter] = first.state[parameter]


def _trained(setting: Setting, model: nn.Module, settings: TrainingSettings, seed: int) -> Run:
    batches = items(setting.batch)
    calls = [call for item in batches for call in as_arguments(item, model)]
    mode = model.training
    try:
        return micro_train(model, calls, batches, setting.loss, settings, seed=seed, precision=setting.precision)
    finally:
        in_mode(model, mode)
