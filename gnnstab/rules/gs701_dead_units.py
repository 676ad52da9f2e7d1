"""GS701 dead-units."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from gnnstab.errors import NotApplicable
from gnnstab.layers import parts
from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, threshold
from gnnstab.rules.reading import largest, need_layers, need_measured, percent


@dataclass(frozen=True)
class DeadUnits(Rule):
    """Nearly all channels behind a layer are zero on every node.

    ## What it sees
    The share of channels of a layer's output that are ≤ 0 on all nodes of the batch, and so exactly 0 behind a ReLU.

    ## Why it is unstable
    A ReLU that never opens passes no gradient, so nothing it depends on can open it again. Gradients before the layer vanish,
    which looks like a depth problem and is none (GS203 is then explained by this).

    ## What it looks like
    In a healthy network about half of the *entries* are zero and hardly any channel is zero everywhere; on real actors 0 to 6 %
    of the channels, 31 to 75 % in two that a learning rate had ruined.

    ## Fix
    LeakyReLU or GELU; a lower learning rate; set the bias of the linear skip back to 0.

    ## When it is wrong
    With an activation that is no ReLU; such layers are left out where the activation is known. In deep networks whose nodes have
    become equal about half of the channels are dead for that reason alone; the limit lies above.

    ## References
    Lu et al. 2019, *Dying ReLU and Initialization*, arXiv 1903.06733. Measured: deep default networks; real actors.
    """

    code: ClassVar[str] = "GS701"
    name: ClassVar[str] = "dead-units"
    cause: ClassVar[str] = "dead-units"
    severity: ClassVar[str] = "warning"
    confidence: ClassVar[str] = "high"

    share: float = threshold(
        0.9, unit="share of channels", source="measured: .5 in collapsed deep networks, .75 in a ruined actor"
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding per layer."""
        candidates = [layer for layer in need_layers(signals) if layer.activation in (None, "relu")]
        if not candidates:
            raise NotApplicable("no ReLU follows an attention layer")
        found = need_measured(signals, "channels.dead_share")
        for layer in candidates:
            own = [s for s in found if s.layer == layer.name]
            if own and largest(own).value > self.share:
                assumed = "" if layer.activation else ", if a ReLU follows"
                yield self.finding(
                    f"{layer.name}: {percent(largest(own).value)} of its channels are zero or below on every node and dead{assumed}: no "
                    f"gradient passes. Use LeakyReLU, lower the learning rate, or reset the bias of {parts(layer.kind, 'skip')}.",
                    severity="warning",
                    limit=self.share,
                    signal=largest(own),
                    confidence="high" if layer.activation else "medium",
                )
