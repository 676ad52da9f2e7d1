"""A short training of a copy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gnnstab.errors import UsageError
from gnnstab.probe.batches.arguments import Arguments
from gnnstab.probe.replaying.evaluating import in_mode
from gnnstab.probe.replaying.replica import Autocast
from gnnstab.randomness import seed_torch
from gnnstab.verification._fresh_copies import seeded
from gnnstab.verification._objective import UserLoss, objective_for
from gnnstab.verification.own_optimizer import OwnOptimizer


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How the short training is run."""

    steps: int = 150
    lr: float = 1e-3
    eps: float = 1e-8
    own_rate: bool = True
    """False where the caller's own rate is not known."""

    own: OwnOptimizer | None = None
    """The optimizer of the user's run; Adam where it is not known."""

    ask: str = "pass lr="
    """How the caller's own rate is told, in the words of the face that asks for it."""

    clip: float = 10.0
    """Limit of the gradient's norm."""

    clip_percentile: float | None = None
    """When set, the limit is this percentile of the norms seen so far, from the tenth step on."""

    def __post_init__(self) -> None:
        """Raises `UsageError` for a rate or an eps that no training can have; 0 is the end of many a schedule."""
        for name, value in (("lr", self.lr), ("eps", self.eps)):
            if not 0 <= value < math.inf:
                raise UsageError(f"{name}={value:g} of the short training must be a finite number, not below 0")

    @property
    def rate(self) -> str:
        """The rate in words, for beside a verdict: it holds for this rate."""
        return f"at learning rate {self.lr:g}" + ("" if self.own_rate else f"; yours is not known: {self.ask}")

    def rate_with(self, changed: Mapping[str, Any]) -> str:
        """`rate`, and the one that a fix sets in its place, among the fields that it ``changed``: ``at learning rate 0.01 in place of 1``."""
        return self.rate.replace("rate ", f"rate {changed['lr']:.3g} in place of ", 1) if "lr" in changed else self.rate

    @property
    def words(self) -> str:
        """``Adam(lr=0.001, eps=1e-08)``."""
        return f"Adam(lr={self.lr:g}, eps={self.eps:g})" if self.own is None else self.own.words(self.lr, self.eps)

    def optimizer(self, model: nn.Module, more: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
        """That of the user's run, else Adam, as new, for ``model`` and ``more``."""
        if self.own is not None:
            return self.own.made(model, self.lr, self.eps, more)
        parameters = [*model.parameters(), *more]
        return torch.optim.Adam([p for p in parameters if p.requires_grad], lr=self.lr, eps=self.eps)


def settings_of(
    optimizer: torch.optim.Optimizer | None,
    model: nn.Module,
    *,
    steps: int,
    lr: float | None = None,
    eps: float | None = None,
    ask: str = "pass lr=",
) -> TrainingSettings:
    """The settings of a training with the optimizer of ``model``, where one like it can be made, at its rate and eps unless others are given."""
    own = None if optimizer is None else OwnOptimizer.of(optimizer, model)
    first = {} if optimizer is None else optimizer.param_groups[0]
    known = {"lr": first.get("lr"), "eps": first.get("eps")} if own is None else {"lr": own.lr, "eps": own.eps}
    said = {"lr": known.get("lr") if lr is None else lr, "eps": known.get("eps") if eps is None else eps}
    given = {key: float(value) for key, value in said.items() if value is not None}
    return TrainingSettings(steps=steps, **given, own_rate="lr" in given, own=own, ask=ask)


@dataclass(frozen=True, slots=True)
class Run:
    """What a short training did."""

    losses: tuple[float, ...]
    """One per step; ends at the first that is not finite."""

    seconds: float
    objective: str
    optimizer: torch.optim.Optimizer | None = None
    """With its state; it holds the read-out of a synthetic task as well."""

    unseen: float | None = None
    """Median over the last tenth of the steps of the loss on what is kept from the training, inf when the run broke off;
    None where nothing is kept."""

    best: float | None = None
    """The lowest loss on that on the way, a median of three looks in a row; as `unseen`."""

    @property
    def final(self) -> float:
        """Median loss of the last tenth of the steps; inf when the run broke off."""
        if not self.losses or not math.isfinite(self.losses[-1]):
            return math.inf
        return float(np.median(self.losses[-_tail(len(self.losses)) :]))

    @property
    def per_step(self) -> float:
        """Seconds per step."""
        return self.seconds / max(1, len(self.losses))


def _tail(steps: int) -> int:
    """The last tenth of the steps, over which a loss is taken so that a single step does not decide; one at least."""
    return max(1, steps // 10)


def micro_train(
    model: nn.Module,
    calls: Sequence[Arguments],
    batches: Sequence[Any],
    loss: UserLoss | None,
    settings: TrainingSettings,
    *,
    seed: int,
    precision: str = "fp32",
) -> Run:
    """Train ``model`` itself (a copy of the user's) with the optimizer of the settings, in train mode, reproducibly from ``seed``.

    The synthetic task and its read-out depend on the seed alone, so that arms with the same seed are paired.
    Raises `UsageError` for a loss that depends on no parameter.
    """
    in_mode(model)
    with seeded(seed):
        objective = objective_for(model, calls, batches, loss, seed)
        parameters = [*model.parameters(), *(objective.head.parameters() if objective.head else ())]
        optimizer = settings.optimizer(model, objective.head.parameters() if objective.head else ())
        seed_torch(seed + 1)
        losses: list[float] = []
        norms: list[float] = []
        kept: dict[int, float] = {}
        start = time.perf_counter()
        for step in range(settings.steps):
            optimizer.zero_grad()
            with Autocast.of(model, precision).context():
                value = objective.loss(model, step % objective.batches)
            losses.append(float(value.detach()))
            if not math.isfinite(losses[-1]):
                break
            if not value.requires_grad:
                raise UsageError("the loss depends on no trainable parameter, so that nothing can be trained with it")
            value.backward()  # type: ignore[no-untyped-call]
            norm = float(nn.utils.clip_grad_norm_(parameters, _limit(settings, norms)))
            norms.append(norm)
            if math.isfinite(norm):
                optimizer.step()
            ending = step >= settings.steps - _tail(settings.steps)
            if objective.unseen is not None and (ending or step % _tail(settings.steps) == 0):
                kept[step] = _unseen(model, objective.unseen, precision)
        seconds = time.perf_counter() - start
        unseen = best = None if objective.unseen is None else math.inf
        if kept and math.isfinite(losses[-1]):
            unseen = float(np.median(list(kept.values())[-_tail(settings.steps) :]))
            best = _lowest(list(kept.values()))
        return Run(tuple(losses), seconds, objective.description, optimizer, unseen, best)


def _lowest(looks: Sequence[float]) -> float:
    """The lowest median of three looks in a row, so that a single one does not decide."""
    return min(float(np.median(looks[i : i + 3])) for i in range(max(1, len(looks) - 2)))


def _unseen(model: nn.Module, compute: Callable[[nn.Module], Tensor], precision: str) -> float:
    """The loss in eval mode, inf when it is no number; the model goes on in train mode."""
    in_mode(model, False)
    with torch.no_grad(), Autocast.of(model, precision).context():
        value = float(compute(model))
    in_mode(model)
    return value if math.isfinite(value) else math.inf


def _limit(settings: TrainingSettings, norms: Sequence[float]) -> float:
    finite = [n for n in norms if math.isfinite(n)]
    if settings.clip_percentile is None or len(finite) < 10:
        return settings.clip
    return float(np.percentile(finite, settings.clip_percentile))
