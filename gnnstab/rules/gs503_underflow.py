"""GS503 underflow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from gnnstab.records import Finding, Signal, Signals
from gnnstab.rules.base import Rule, threshold
from gnnstab.rules.queries import largest, measured, percent


@dataclass(frozen=True)
class Underflow(Rule):
    """Values fall below the smallest normal number of the format.

    ## What it sees
    The share of non-zero entries of a layer's output that are smaller than the dtype's smallest normal number.

    ## Why it is unstable
    Such numbers lose digits one after the other and then become 0; many devices flush them at once. A gradient that has become
    0 does not come back, and Adam divides by the eps of what is left.

    ## What it looks like
    Limits: 6.1e-5 in fp16, 1.2e-38 in bf16 and fp32. Measured in fp32: 32 layers with depth-scaled Xavier weights and no identity
    path end at exactly 0.

    ## Fix
    In fp16: a GradScaler for the gradients, bf16 for the range. Otherwise find what shrinks the signal (GS203).

    ## When it is wrong
    Attention weights of neighbours that do not count are meant to underflow; they are not looked at.

    ## References
    Micikevicius et al. 2018, *Mixed Precision Training*, arXiv 1710.03740; IEEE 754.
    """

    code: ClassVar[str] = "GS503"
    name: ClassVar[str] = "underflow"
    cause: ClassVar[str] = "precision"
    severity: ClassVar[str] = "warning"
    confidence: ClassVar[str] = "medium"

    share: float = threshold(0.2, unit="share of entries", source="heuristic: one entry in five has lost digits")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding per layer."""
        per_layer: dict[str | None, list[Signal]] = {}
        for signal in measured(signals.need("precision.underflow_share")):
            per_layer.setdefault(signal.layer, []).append(signal)
        for layer, found in per_layer.items():
            if largest(found).value > self.share:
                yield self.finding(
                    f"{layer or 'the model'}: {percent(largest(found).value)} of the non-zero outputs lie below the smallest normal number "
                    f"of {signals.context.get('precision') or 'their dtype'}. Find what shrinks the signal, or use a format with more range.",
                    severity="warning",
                    limit=self.share,
                    signal=largest(found),
                )
