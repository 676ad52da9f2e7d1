"""GS604 never-updated-parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, threshold
from gnnstab.rules.reading import largest, names


@dataclass(frozen=True)
class NeverUpdatedParameter(Rule):
    """A trainable parameter never received a gradient.

    ## What it sees
    In a checkpoint with optimizer state: parameters without state, or whose second moment is exactly 0. In a recorded run:
    trainable parameters whose gradient was None or exactly 0 in every step.

    ## Why it is unstable
    The layer keeps its initial weights while everything around it moves. It is a wiring mistake far more often than an
    intention: a module that the forward pass skips, a `detach()`, a parameter created after the optimizer.

    ## What it looks like
    An error for parameters that the model says are trainable; a warning for those of a bare file, which cannot say it.

    ## Fix
    Wire it into the forward pass, pass it to the optimizer, or freeze it on purpose with `requires_grad_(False)` and leave it
    out of the optimizer.

    ## When it is wrong
    At in-degree 1 the query and key weights get a gradient of exactly 0 (GS405). Embeddings of rare ids may not have been
    seen yet. Layers for an edge type that the data lacks.

    ## References
    Kingma and Ba 2015, *Adam*, arXiv 1412.6980, for the second moment; PyTorch documentation of `torch.optim.Adam`.
    """

    code: ClassVar[str] = "GS604"
    name: ClassVar[str] = "never-updated-parameter"
    cause: ClassVar[str] = "never-updated-parameter"
    severity: ClassVar[str] = "error"
    confidence: ClassVar[str] = "high"

    parameters: float = threshold(0, unit="parameters", source="any is one too many")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding that lists them."""
        worst = largest(signals.need("optimizer.never_updated"))
        if not worst.value > self.parameters:
            return
        listed = [str(name) for name in worst.detail.get("parameters", ())]
        which = f": {names(listed, 6)}" if listed else ""
        known = signals.kind != "checkpoint"
        yield self.finding(
            f"{worst.value:.0f} {'trainable ' if known else ''}parameters never received a gradient{which}. Wire them in, or freeze "
            "them on purpose.",
            severity="error" if known else "warning",
            limit=self.parameters,
            signal=worst,
            confidence="high" if known else "medium",
        )
