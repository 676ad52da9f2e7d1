"""The protocol: a fix is applied to a copy and judged on the user's own model and batch.

1. Weight edits and settings are judged on the current weights; structural fixes, which make trained weights useless, and
   changes of the training, which do not undo what the training before has done, on paired fresh twins, the latter after a
   short training unless steps on a copy show them.
2. Everything is measured again, through the recorder and the rules that a diagnosis uses.
3. Confirmed means: the signal that fired crosses its threshold with margin, no other rule newly fires at warning or
   above, and a short training is not worse, nor what it has not seen. A training that leaves this open is repeated from as
   many seeds again. Inconclusive is a legitimate answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gnnstab.characters import counted
from gnnstab.errors import UsageError
from gnnstab.fixes import find
from gnnstab.fixes.own_lines import own_lines
from gnnstab.randomness import keeps_random_state
from gnnstab.records import Finding
from gnnstab.records.vocabulary import OPTIMIZER_LOSS_RISE, OPTIMIZER_OUTPUT_MOVE
from gnnstab.rules.queries import fresh
from gnnstab.verification import _judging as judging
from gnnstab.verification._arms import Arm, ArmResult, Setting, run_arm, training_changes
from gnnstab.verification._fresh_copies import AsBegan, Factory, how_initialised, not_drawn
from gnnstab.verification._judging import Pairs
from gnnstab.verification._storing import stored
from gnnstab.verification._sweep import Progress, sweep
from gnnstab.verification._verdict import Verdict
from gnnstab.verification.fix_spec import FixSpec, fix_specs
from gnnstab.verification.targets import Goal, choose
from gnnstab.verification.training import settings_of

AS_IT_IS: tuple[FixSpec, ...] = ()

NOTHING_FIRES = "no rule fires on this model and batch: there is nothing to cure, and nothing was run"

NO_LOSS = "pass loss=, or give it to the Monitor of the run: Monitor(loss=fn)"

_DRAWN = "; the weights are as they were drawn: what a run has made of them shows with those that it has saved"

FIRST = 2
"""Seeds that are measured first: a fresh fix that the signal refutes in both is not measured on more."""


@keeps_random_state
def verify(
    model: nn.Module,
    fixes: Any,
    *,
    batch: Any,
    loss: Callable[[Any, Any], Any] | None = None,
    seeds: int = 5,
    steps: int = 150,
    precision: str = "fp32",
    lr: float | None = None,
    eps: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    factory: Factory | None = None,
    began: nn.Module | None = None,
    finding: Finding | None = None,
    ask: str = "pass lr=",
    workers: int = 1,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> list[Verdict]:
    """Judge fixes on copies of a model; the model, its mode and the random state stay as they are.

    Args:
        model: Any module with attention layers.
        fixes: Names, ``(name, options)`` pairs or texts like ``"residual:weight=1.0"``; one or several.
        batch: As for `gnnstab.diagnose`. With ``loss``, the second half of several batches is kept from the training and
            judges it; four or six judge better than two.
        loss: ``loss(output, batch) -> scalar``; a stated synthetic task when omitted.
        seeds: Paired seeds; 5 at least for a verdict on structural fixes that means something. Twice as many trainings where
            these leave open whether the training is worse.
        steps: Steps of the short training.
        precision: ``fp32``, ``fp16`` or ``bf16``: measuring and training run under autocast to it.
        lr: Learning rate of the short training: that of your run, since a verdict holds for its rate. Without an optimizer
            0.001 when omitted, which the verdict then says.
        eps: Adam's eps there; 1e-8 when omitted.
        optimizer: That of your run, of ``model`` or of ``began``: the short training has its class, groups and settings, with ``lr`` and ``eps``
            in place of its own where these are given. Adam when omitted, and in place of one that chooses its steps by itself. It stays as it is.
        factory: Makes the model with fresh weights, for an initialisation of your own.
        began: The model with the weights that its run began with, from which changes of the training are then tried; freshly drawn ones when omitted.
        finding: What the fixes are to cure; when omitted, of each the most severe symptom of a cause that it is for, else of the model.
        workers: Processes.
        store: A file that keeps every finished arm, so that a call that Ctrl-C has ended continues from there.
        ask: How the verdict asks for the rate of a run that is not known.
        progress: Called after every arm.

    Returns:
        One `Verdict` per fix, in the order given.

    Raises:
        FixError: An unknown fix.
        UsageError: A batch that the model cannot be called with, or numbers that make no sense.
    """
    chosen = fix_specs(fixes)
    if seeds < 1 or steps < 1:
        raise UsageError(f"seeds={seeds} and steps={steps} must be at least 1")
    training = settings_of(optimizer, model if began is None else began, steps=steps, lr=lr, eps=eps, ask=ask)
    tell = progress or (lambda _: None)
    stored(
        None if store is None else Path(store), (), ArmResult
    )  # A file of somebody else is refused before anything runs.
    tell("running forward and backward")
    # Of a rate that is given no lower one is looked for.
    search = any(item.fix == "lower-lr" and not item.options for item in chosen)
    setting = Setting.of(model, batch, loss, precision, training, factory, finding, search=search)
    if setting.goal is None and setting.tries_steps:
        tell(f"trying steps {training.rate}")
        setting = Setting.of(model, batch, loss, precision, training, factory, steps=True, search=search)
    start = setting
    if any(find(item.fix).shows_in_training for item in chosen):
        tell("trying steps from fresh weights")
        start = setting.from_the_start(finding, began, search)
    own_goals = finding is None
    settings = [_setting_of(item, setting, start, own_goals=own_goals) for item in chosen]
    shared = {(id(s.signals), s.goal): s for s in reversed(settings)}
    plans = [_Plan(shared[id(s.signals), s.goal], item, seeds) for s, item in zip(settings, chosen, strict=True)]
    judged: dict[FixSpec, Verdict] = {}
    for one in shared.values():
        some = [plan for plan in plans if plan.setting is one]
        results = _results(some, workers=workers, progress=progress, store=store)
        judged |= {plan.item: plan.verdict(results) for plan in some}
    return [judged[item] for item in chosen]


def _results(plans: Sequence[_Plan], **sweeping: Any) -> dict[Arm, ArmResult]:
    """What came of all arms of plans that share a setting."""
    setting, results = plans[0].setting, dict[Arm, ArmResult]()
    of = (
        setting.model,
        setting.batch,
        setting.loss,
        setting.factory,
        setting.precision,
        setting.training,
        setting.goal,
    )
    for stage in zip(*(plan.stages(results) for plan in plans), strict=True):
        arms = {arm.key: arm for asked in stage for arm in asked if arm not in results}
        jobs = {key: partial(run_arm, setting, arm) for key, arm in arms.items()}
        found = sweep(jobs, ArmResult, of=of, **sweeping)
        results |= {arms[key]: result for key, result in found.items()}
    return results


def _setting_of(item: FixSpec, setting: Setting, start: Setting, *, own_goals: bool) -> Setting:
    """Where a fix begins: at the weights as given, or, where it changes the training, at fresh ones.

    With ``own_goals`` a change of the model is judged by a symptom of what it is for, where the model has one.
    """
    if find(item.fix).shows_in_training:
        return setting if _shown_at_once(item, setting) else start
    if not own_goals or _seen_in_settings(setting):
        return setting
    return replace(setting, goal=choose(setting.findings, find(item.fix).causes, setting.goal))


def _shown_at_once(item: FixSpec, setting: Setting) -> bool:
    """True of an eps that the optimizer's numbers speak of, which one step that moves nothing shows."""
    return item.fix == "adam-eps" and _seen_in_settings(setting)


class _Plan:
    """The arms of one fix, and the verdict that they give."""

    def __init__(self, setting: Setting, item: FixSpec, seeds: int) -> None:
        self.setting, self.item = setting, item
        self.fix = find(item.fix)
        # What too large a rate has done to the weights a lower one does not undo: would the run have gone well with it?
        restarts = self.fix.shows_in_training and not _shown_at_once(item, setting)
        self.fresh = self.fix.needs_fresh_weights or restarts
        self.after_training = self.fix.shows_in_training and not _seen_in_settings(setting)
        self.seeds, self.asked = range(seeds), seeds
        self.trained_seeds = self.seeds
        self.repeats = False

    def stages(self, results: dict[Arm, ArmResult]) -> Iterator[list[Arm]]:
        """The arms that are wanted, stage after stage; ``results`` holds by then what came of those before."""
        yield self.screening(FIRST)
        self.settle(results)
        yield self.screening()
        yield self.trainings(results, FIRST)
        self.settle_trainings(results)
        yield self.trainings(results)
        self.extend_trainings(results)
        yield self.trainings(results)

    def screening(self, most: int | None = None) -> list[Arm]:
        """Measure both arms, of the first ``most`` seeds; an edit without chance gives the same numbers for every seed."""
        if self.setting.goal is None:
            return []
        by_chance = self.fresh or self.after_training or not self.fix.keeps_function
        seeds = self.seeds[:most] if by_chance else range(1)
        return [arm for seed in seeds for arm in self._pair(seed)]

    def settle(self, results: dict[Arm, ArmResult]) -> None:
        """Keep to the seeds seen so far where the signal has refuted the fix in all of them."""
        goal, pairs = self.setting.goal, self._pairs(results)
        if self.after_training and _repeats(pairs):
            self.seeds, self.repeats = self.seeds[:1], True
        if isinstance(self.setting.factory, AsBegan) and self.fresh and _measure_alike(pairs):
            self.seeds = self.trained_seeds = self.seeds[:1]
            self.repeats = True
        if goal is None or not self.fresh or len(pairs.after) < FIRST or any(r.error for r in pairs.after):
            return
        if not judging.fires_before(pairs, goal):
            return
        decided = judging.by_signal(pairs, goal)
        if decided is not None and decided[0] in ("no-effect", "made-worse"):
            self.seeds = self.seeds[:FIRST]

    def settle_trainings(self, results: dict[Arm, ArmResult]) -> None:
        """Keep to one seed where chance plays no part: your own loss, current weights, no dropout."""
        if _repeats(self._pairs(results, train=True)):
            self.seeds = self.trained_seeds = self.seeds[:1]
            self.repeats = True

    def extend_trainings(self, results: dict[Arm, ArmResult]) -> None:
        """Train from as many seeds again where the fix looks harmless and the interval is too wide to say so."""
        if judging.too_wide(self._pairs(results, train=True)):
            self.trained_seeds = range(2 * self.asked)

    def _pair(self, seed: int, *, train: bool = False) -> tuple[Arm, Arm]:
        after = self.after_training and not train
        without = Arm(AS_IT_IS, self.fresh, seed, train, measure=not train, measure_after=after)
        return without, replace(without, wanted=(self.item,))

    def trainings(self, results: dict[Arm, ArmResult], most: int | None = None) -> list[Arm]:
        """What has to be trained, of the first ``most`` seeds: nothing where the signal alone has decided.

        Fresh twins may be healthy until they are trained; then both arms are measured after a short training.
        """
        goal, pairs = self.setting.goal, self._pairs(results)
        if goal is None or not pairs.after or self.after_training or any(r.error for r in pairs.after):
            return []
        if self.fresh and not judging.fires_before(pairs, goal):
            self.after_training = True
            return [arm for seed in self.seeds for arm in self._pair(seed)]
        if judging.by_signal(pairs, goal) is not None:
            return []
        return [arm for seed in self.trained_seeds[:most] for arm in self._pair(seed, train=True)]

    def _pairs(self, results: dict[Arm, ArmResult], *, train: bool = False) -> Pairs:
        both = [self._pair(seed, train=train) for seed in (self.trained_seeds if train else self.seeds)]
        done = [(results[a], results[b]) for a, b in both if a in results and b in results]
        redrawn = not (self.fresh or self.fix.keeps_function)
        return Pairs(tuple(a for a, _ in done), tuple(b for _, b in done), not self.repeats, redrawn)

    def verdict(self, results: dict[Arm, ArmResult]) -> Verdict:
        """The verdict from all finished arms."""
        change = own_lines(self.setting.model, self.item.fix, self.item.options, self.setting.signals.layers)
        change = change or self.fix.change(self.setting.signals.layers, self.setting.signals, **self.item.options)
        base = Verdict(self.item.fix, "not-tested", "", change=change, options=dict(self.item.options))
        goal = self.setting.goal
        if goal is None:
            return replace(base, reason=NOTHING_FIRES + (_DRAWN if fresh(self.setting.signals) else ""))
        screened, trained = self._pairs(results), self._pairs(results, train=True)
        errors = [r.error for r in (*screened.before, *screened.after) if r.error]
        if errors:
            return replace(base, reason=f"the fix cannot be applied here: {errors[0]}")
        losses = screened if self.after_training else trained
        if self.setting.loss is None and _seen_in_steps(goal):
            why = f"steps of the optimizer on a copy take a loss; {NO_LOSS}"
            return replace(base, verdict="inconclusive", reason=why, arms=self._arms())
        verdict, reason = judging.by_signal(screened, goal) or judging.by_training(losses)
        if verdict == "confirmed" and screened.unmasked:
            reason += f"; {', '.join(screened.unmasked)}, which stood behind it, is seen now"
        dead = self._dead() if verdict == "no-effect" else ""
        if dead:
            return replace(base, reason=dead)
        if verdict == "inconclusive" and self.setting.loss is None and any(r.objective for r in losses.after):
            reason = f"{reason}; the task was made up, pass loss= to judge by yours"
        return self._filled(replace(base, verdict=verdict, reason=reason), screened, losses)

    def _filled(self, verdict: Verdict, screened: Pairs, losses: Pairs) -> Verdict:
        goal = self.setting.goal
        assert goal is not None
        finals = [[r.final for r in arm if r.final is not None] for arm in (losses.before, losses.after)]
        return replace(
            verdict,
            signal=goal.signal,
            layer=goal.layer,
            before=None if goal.judged_by_status else float(np.median(screened.values("before"))),
            after=None if goal.judged_by_status else float(np.median(screened.values("after"))),
            threshold=None if goal.judged_by_status else goal.threshold,
            effect=judging.effect(screened, goal),
            spread=judging.spread(screened, goal),
            seeds=len(losses.after) or len(screened.after),
            new_findings=screened.new_codes,
            loss_before=float(np.median(finals[0])) if finals[0] else None,
            loss_after=float(np.median(finals[1])) if finals[1] else None,
            loss_change=judging.loss_change(losses),
            unseen_change=judging.loss_change(losses, "unseen"),
            best_change=judging.loss_change(losses, "best"),
            step_time=None if self.fix.costs_no_time else _ratio(losses),
            arms=self._arms(),
            objective=self._objective(losses),
            rate=self.setting.training.rate_with(training_changes(self.setting, (self.item,)))
            if any(r.final is not None for r in losses.after)
            else "",
        )

    def _dead(self) -> str:
        """Why a change of the training was not tried: no weights could be drawn anew, and these show the symptom before any training."""
        setting, goal = self.setting, self.setting.goal
        if not self.fix.shows_in_training or goal is None or goal.code not in {f.code for f in setting.findings}:
            return ""
        why = not_drawn(setting.model, setting.factory)
        return f"{goal.code} fires before any training, on weights that may be dead already: {why}" if why else ""

    def _arms(self) -> str:
        measured = ", measured after a short training" if self.after_training else ""
        extended = len(self.trained_seeds) > self.asked
        more = f"; {self.asked} seeds did not decide, so {len(self.trained_seeds)} were trained" if extended else ""
        once = ", once: every seed gives the same training" if self.repeats else ""
        if self.fresh:
            how = how_initialised(self.setting.model, self.setting.factory)
            pairs = counted(len(self.seeds), "pair")
            return f"Compared: {pairs} of fresh twins with and without it, {how}{measured}{once}{more}"
        return f"Compared: the current weights with and without it{measured}{once}{more}"

    def _objective(self, losses: Pairs) -> str:
        stated = next((r.objective for r in losses.after if r.objective), "")
        training = self.setting.training
        if not stated:
            return "Not trained: the signal decided"
        return f"Trained {training.steps} steps of {training.words} on {stated}"


def _seen_in_settings(setting: Setting) -> bool:
    """True when the goal's signal is a number of the optimizer, which one step that moves nothing shows."""
    return setting.goal is not None and setting.goal.signal.startswith("optimizer.")


def _seen_in_steps(goal: Goal) -> bool:
    """True of a number that steps of the optimizer alone show."""
    return goal.signal in (OPTIMIZER_LOSS_RISE, OPTIMIZER_OUTPUT_MOVE)


def _repeats(pairs: Pairs) -> bool:
    """True when the trainings of the first seeds end in the very same numbers, so that more seeds would tell nothing new."""
    ends = [{(r.start, r.final, r.unseen) for r in arm[:FIRST]} for arm in (pairs.before, pairs.after)]
    return len(pairs.after) >= FIRST and all(len(end) == 1 for end in ends)


def _measure_alike(pairs: Pairs) -> bool:
    """True when the first seeds give the very same numbers before any training: weights that are not drawn, and nothing drawn in a forward."""
    return len(pairs.after) >= FIRST and all(len({r.value for r in arm}) == 1 for arm in (pairs.before, pairs.after))


def _ratio(losses: Pairs) -> float | None:
    """Median over the seeds of the time per step with the fix over that without."""
    pairs: Sequence[tuple[Any, Any]] = [
        (b.per_step, a.per_step) for b, a in zip(losses.before, losses.after, strict=True)
    ]
    ratios = [a / b for b, a in pairs if a and b]
    return float(np.median(ratios)) if ratios else None
