"""Parameter groups whose rate lies far above that of others: the same steps on a copy with the rate of that group lowered."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gnnstab.errors import UsageError
from gnnstab.probe.attaching.forward_tracker import ForwardInputs
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.optimizer.learning import STEPS
from gnnstab.probe.optimizer.sizes import norm_of
from gnnstab.probe.optimizer.softening import softer_signals
from gnnstab.probe.replaying.recovered_loss import recovered_loss
from gnnstab.records import Signal
from gnnstab.records.rises import rise_of
from gnnstab.records.vocabulary import OPTIMIZER_GROUP_RATE

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench, Loss

APART = 10.0
"""× the lowest rate of the groups from which on a group's own is tried lower."""

FIRST = 6
"""Steps in which a rate that is too high raises the loss, as in a trial of the whole optimizer."""


def far_apart(optimizer: torch.optim.Optimizer) -> list[int]:
    """Positions of the groups whose rate is `APART` times the lowest, or more."""
    rates = [float(group.get("lr", 0.0)) for group in optimizer.param_groups]
    lowest = min((rate for rate in rates if rate > 0), default=math.inf)
    return [place for place, rate in enumerate(rates) if rate >= APART * lowest]


def group_signals(bench: Bench) -> Iterator[Signal]:
    """Per group far above the others: best loss of a few steps as they are over that with its rate as low as the lowest.

    Raises:
        UsageError: As `Bench.trial`.
    """
    places = far_apart(bench.optimizer)
    as_is = bench.as_is if places else ()
    for place in places:
        groups = bench.optimizer.param_groups
        rate, lowest = float(groups[place]["lr"]), min(float(g["lr"]) for g in groups if float(g["lr"]) > 0)
        lower = bench.trial(STEPS, factors={place: lowest / rate}).losses
        best, undone = min(as_is), min(lower)
        if not (0 < best < math.inf and 0 < undone < math.inf):
            continue
        detail: dict[str, Any] = {
            "group": place, "names": _names(bench.model, groups[place]["params"])[:20], "lr": rate, "lower": lowest,
            "first": as_is[0], "best": best, "undone": undone, "steps": STEPS, "calms": _calms(as_is, lower),
        }  # fmt: skip
        yield Signal(OPTIMIZER_GROUP_RATE, best / undone, source="steps", detail=detail)


def _calms(as_is: tuple[float, ...], lower: tuple[float, ...]) -> bool:
    """True where the loss rose in the first steps as they are, and not with the lower rate."""
    rose, calm = rise_of(as_is[: FIRST + 1]), rise_of(lower[: FIRST + 1])
    return rose is not None and calm is not None and rose.above > 0 == calm.above


def _names(model: nn.Module, parameters: list[Any]) -> list[str]:
    own = {id(parameter) for parameter in parameters}
    return [name for name, parameter in model.named_parameters() if id(parameter) in own]


class FirstStep:
    """Copies of a model and its optimizer from before the first update, until the loss of that step is known.

    A run tells its loss after the step at the earliest, when a rate far too high has done its harm already, and weights have come to
    terms with attention that was sharp from the start. ``sharp`` are the modules whose attention may be; ``fast`` is an update that moves
    the output so far that its rate may be too high.
    """

    WAITS = 3
    """Updates after which a loss that nobody told is given up."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        inputs: ForwardInputs,
        sharp: Sequence[str] = (),
        *,
        fast: bool = False,
    ) -> None:
        from gnnstab.probe.optimizer._copies import twins

        self._sharp = sharp
        self._norm = norm_of(p.grad for p in model.parameters()) if fast else math.nan
        self._model, self._optimizer = twins(model, optimizer, keep_mode=True)
        self._inputs = inputs
        self._waited = 0
        self.tried: tuple[ForwardInputs, Loss] | None = None
        """The forward and its loss, once they are known."""

    @property
    def over(self) -> bool:
        """True when it is no use to wait any longer."""
        self._waited += 1
        return self._waited > self.WAITS

    def signals(self, loss: Loss | None) -> list[Signal] | None:
        """What the trials say of a fast update, of the groups, the modules that are sharp and rows that fill graphs up; None while no loss is known."""
        from gnnstab.probe.optimizer.filled import filled_signals
        from gnnstab.probe.optimizer.run_trial import bench_of, rises

        answer = self._inputs.answer
        if loss is None and answer is not None and answer.output is not None and answer.gradient is not None:
            given = named_tensors(self._inputs.args, self._inputs.kwargs)
            loss = recovered_loss(answer.output, answer.gradient, answer.loss, given.values())
        if loss is None:
            return None
        self.tried = self._inputs, loss
        try:
            bench = bench_of(self._model, self._optimizer, self._inputs, loss)
            rate = [] if math.isnan(self._norm) else rises(bench, self._norm)
            return [*rate, *group_signals(bench), *softer_signals(bench, self._sharp), *filled_signals(bench)]
        except UsageError:
            return []
