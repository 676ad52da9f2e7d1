"""GS602 adam-epsilon-dominates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from gnnstab.errors import NotApplicable
from gnnstab.layers import plays
from gnnstab.records import Finding, Signal, Signals
from gnnstab.rules.base import Rule, threshold
from gnnstab.rules.reading import largest, percent


@dataclass(frozen=True)
class AdamEpsilonDominates(Rule):
    """Adam's eps is larger than most of the gradient it divides by.

    ## What it sees
    The share of entries of the value and skip weights whose root second moment √v̂ lies below eps, from the optimizer's state.

    ## Why it is unstable
    Adam's step is m̂/(√v̂ + eps). Where √v̂ < eps the step is proportional to the gradient, as with SGD, and shrinks with it:
    the adaptivity that hides small gradients of early layers is gone.

    ## What it looks like
    Measured: a default network of 12 layers with eps = 1e-5 has 95 % of the entries of its first value weights below eps. It
    does not train (R² −.07/−.01), with eps = 1e-8 it does (.71/.92).

    ## Fix
    `Adam(..., eps=1e-8)`, the default. The 1e-5 of reinforcement-learning recipes is meant for other networks. In deep stacks
    the gradient itself needs the fix first (GS203).

    ## When it is wrong
    Query and key weights under uniform attention have tiny gradients by nature and are left out, as are embeddings of rare ids.

    ## References
    Kingma and Ba 2015, arXiv 1412.6980; Everett et al. 2024, *Scaling Exponents Across Parameterizations and Optimizers*, arXiv
    2407.05872. Measured: 10 and 12 layers, eps 1e-5 and 1e-8.
    """

    code: ClassVar[str] = "GS602"
    name: ClassVar[str] = "adam-epsilon-dominates"
    cause: ClassVar[str] = "adam-epsilon"
    severity: ClassVar[str] = "warning"
    confidence: ClassVar[str] = "high"

    usual_eps: float = threshold(
        1e-8,
        unit="eps",
        source="Adam's default: at it a share below eps is a gradient that is absent, not one that is damped",
    )
    share: float = threshold(0.5, unit="share of entries", source="measured: .95 in a network that stops training")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding per layer."""
        per_layer: dict[str, list[Signal]] = {}
        for signal in signals.need("optimizer.below_eps_share"):
            parameter = str(signal.detail.get("parameter", ""))
            if not parameter or plays(parameter, "value") or plays(parameter, "skip"):
                per_layer.setdefault(signal.layer or "", []).append(signal)
        if not per_layer:
            raise NotApplicable("the optimizer's state holds no value or skip weight of an attention layer")
        for layer, found in per_layer.items():
            worst = largest(found)
            if worst.value > self.share:
                eps = worst.detail.get("eps")
                size = f" ({eps:g})" if isinstance(eps, (int, float)) else ""
                usual = isinstance(eps, (int, float)) and eps <= self.usual_eps
                yield self.finding(
                    f"{worst.detail.get('parameter') or layer}: {percent(worst.value)} of its entries have gradients below Adam's eps{size}: "
                    f"{'the gradient itself is missing there' if usual else 'their steps are damped away. Use eps=1e-8'}.",
                    severity="info" if usual else "warning",
                    limit=self.share,
                    signal=worst,
                )
