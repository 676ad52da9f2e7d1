"""GS102 beta-disabled."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.gs204_exploding_gradient import ExplodingGradient
from gnnstab.rules.queries import count, need_depth, need_fact, worst_gradient_ratio


@rule("GS102", "beta-disabled", cause="beta-disabled", severity="info", confidence="high")
class BetaDisabled(Rule):
    """The beta gate is off in a network whose gradients explode with depth.

    ## Why it matters
    The gate mixes the linear skip and the message, `β·skip + (1−β)·message`; without it the two add up. At
    initialisation β ≈ 0.5 halves both, which damps an explosion: on weights of gain √2 and 16 layers the slope of the
    log gradient went from +0.76 to −0.49 per layer. The same halving makes vanishing worse: with PyG's default the
    gradient ratio over 16 layers fell from 1.4e-5 to 2.0e-10.

    ## What to do
    First the cause of the growth (GS204): a gain of 1, or normalisation before the layer and a residual of weight 1.0.
    `TransformerConv(..., beta=True)`, which needs `root_weight=True`, is a valid brake here, and only here.

    ## How it is measured
    `beta=False` in the attention layers of a deep network whose node-state gradient grows from the last to the first
    layer.

    ## When it is silent
    Where gradients do not grow; networks without the gate train well at up to 10 layers.

    ## Sources
    Shi et al. 2021, *Masked Label Prediction* (UniMP), arXiv 2009.03509, for the gate. Measured: random graphs of
    degree 8, width 64, ReLU, fresh weights, 3 seeds.
    """

    min_layers: float = threshold(ExplodingGradient.min_layers, unit="attention layers", source="as GS204")
    explosion: float = threshold(ExplodingGradient.warn_ratio, unit="gradient ratio", source="as GS204")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """Info when gradients explode and the gate is off."""
        how = "whether the gate is on cannot be seen here; pass the model (--model pkg.mod:factory)"
        layers = need_fact(signals, "beta", how)
        off = [layer for layer in layers if not layer.get("beta")]
        if not off:
            return
        need_depth(signals, self.min_layers)
        ratio = worst_gradient_ratio(signals)
        if ratio.value > self.explosion:
            yield self.finding(
                f"gradients grow {ratio.value:.3g}-fold towards the first layer and beta is off in {count(off, layers)} "
                "layers: nothing damps the sum of skip and message. beta=True is a valid brake here, after the gain is set.",
                limit=self.explosion,
                signal=ratio,
            )
