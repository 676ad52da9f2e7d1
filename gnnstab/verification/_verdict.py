"""The verdict on one fix, with everything that it was judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gnnstab.records import FixAdvice


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one fix did on a copy of the user's model."""

    fix: str
    """Name in `gnnstab.fixes.FIXES`."""

    verdict: str
    """``confirmed``, ``no-effect``, ``made-worse``, ``inconclusive`` or ``not-tested``."""

    reason: str
    """One or two sentences: what decided it."""

    signal: str = ""
    """The signal that fired and that the fix was to move; a key of the vocabulary."""

    layer: str | None = None
    """The layer it fired on; None for a number of the whole model."""

    before: float | None = None
    """Its value without the fix: median over the seeds."""

    after: float | None = None
    """Its value with the fix: median over the seeds."""

    threshold: float | None = None
    """The threshold that it has to cross."""

    effect: float | None = None
    """How far the fix moved the signal, in units of the way that the model has to go to be healthy: 1 is all of it,
    negative moves away. Measured between logarithms for ratios."""

    spread: float | None = None
    """Standard deviation of ``after`` over the seeds, in the unit of the signal (in ln units for ratios)."""

    seeds: int = 0
    """Seeds of which both arms were finished."""

    new_findings: tuple[str, ...] = ()
    """Codes that fire with the fix, at warning or above, in most seeds, and without it in none or few."""

    loss_before: float | None = None
    """Loss at the end of the short training without the fix: median over the seeds; None when nothing was trained."""

    loss_after: float | None = None
    """The same with the fix."""

    loss_change: tuple[float, float] | None = None
    """95 % interval of the mean paired ln(loss with / loss without); above 0 is worse."""

    unseen_change: tuple[float, float] | None = None
    """The same on what the training has not met; None where nothing is kept from it, as with your own loss and one batch."""

    best_change: tuple[float, float] | None = None
    """The same at the lowest on the way, which decides where the end speaks against the fix."""

    step_time: float | None = None
    """Time of a training step with the fix over that without; what the fix costs."""

    arms: str = ""
    """Which arms were compared."""

    objective: str = ""
    """What the short training minimised."""

    rate: str = ""
    """The learning rate of the short training in words, for which the verdict holds; empty when nothing was trained."""

    change: str = ""
    """The exact change as code for this model."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Options that the fix was applied with."""

    @property
    def because(self) -> str:
        """The reason, with the rate that it holds for."""
        return f"{self.reason} ({self.rate})" if self.rate else self.reason

    def as_advice(self, advice: FixAdvice | None = None) -> FixAdvice:
        """This verdict as the advice of a diagnosis; the change of ``advice`` is kept."""
        base = advice or FixAdvice(self.fix, self.change)
        return replace(
            base,
            verdict=self.verdict,
            before=self.before,
            after=self.after,
            signal=self.signal or base.signal,
            note=" ".join(f"{part.rstrip('.')}." for part in (self.because, self.arms, self.objective) if part),
        )
