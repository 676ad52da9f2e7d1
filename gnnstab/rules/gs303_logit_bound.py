"""GS303 logit-bound."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gnnstab.records import Finding, Signal, Signals
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.gs405_degree_one_attention import nothing_to_weigh
from gnnstab.rules.queries import ASSUMED_DEGREE, degree_of, head_words, largest, need_layers, per_head


@rule("GS303", "logit-bound", cause="attention-explosion", severity="info", confidence="medium")
class LogitBound(Rule):
    """The weights alone allow logits that freeze the attention.

    ## Why it matters
    Beyond the limit the largest logit of a target wins by more than the number of its neighbours can outweigh.

    ## What to do
    Nothing on this evidence alone: pass a batch and let GS301 judge the attention itself.

    ## How it is measured
    Per head at an input of RMS 1: the typical spread of the logits within one target, ‖M_h‖_F without the key-bias
    column, and the hard bound ‖M_h‖₂·(D+1). The truth lies between; the *lower* one must cross √(2 ln d), 2.1 at
    in-degree 10. ‖M_h‖_F is 1/3 for PyG's default, 1 for gain 1, 2 for √2, 2.8 for 5/3. The bound is 6.4 to 15 times
    too loose at initialisation and 3.4 to 7.3 times on trained networks; the spread right to 8 % in trained first
    layers, up to 8 times too small in second ones.

    ## When it is silent
    It is information only: inputs of RMS below 1 make it too strict, a sum aggregation before the layer far too lax.

    ## Sources
    Emadi 2026, *Rank-Aware Spectral Bounds on Attention Logits*; Derrida 1981 for the random-energy model. Measured:
    30-node networks and 10 to 1000 nodes at initialisation.
    """

    freezing: float = threshold(1.0, unit="× √(2 ln d)", source="random-energy model: freezing at ρ = 1")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """Info for the worst head of each layer whose typical spread crosses the limit."""
        signals.need("logit.frobenius")
        for facts in need_layers(signals):
            layer, found = facts.name, per_head(signals, "logit.frobenius", facts.name)
            if not found or nothing_to_weigh(signals, layer):
                continue
            worst, seen = largest(found), degree_of(signals, layer)
            degree = max(seen or ASSUMED_DEGREE, math.e)
            limit = self.freezing * math.sqrt(2 * math.log(degree))
            if worst.value > limit:
                yield self.finding(
                    f"{layer}: at an input of RMS 1 the weights{head_words(worst)} spread the logits of one target by about "
                    f"{worst.value:.2g}{self._bound(signals, worst)}; attention freezes near {limit:.2g} at in-degree "
                    f"{degree:g}{'' if seen else ' (assumed)'}.",
                    limit=limit,
                    signal=worst,
                )

    @staticmethod
    def _bound(signals: Signals, worst: Signal) -> str:
        facts = signals.layer(worst.layer or "")
        spectral = signals.find("logit.spectral", layer=worst.layer, head=worst.head)
        if not spectral or facts is None or facts.in_channels is None:
            return ""
        return f" (hard bound {spectral[0].value * (max(facts.in_channels) + 1):.3g})"
