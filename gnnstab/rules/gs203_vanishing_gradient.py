"""GS203 vanishing-gradient."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import need_depth, worst_gradient_ratio


@rule("GS203", "vanishing-gradient", cause="no-residual", severity="error", confidence="high")
class VanishingGradient(Rule):
    """The gradient of the node states dies on its way to the first layer.

    ## Why it matters
    The first layers learn as much slower as the ratio is small, and beyond what Adam can rescale not at all: the second
    moment sinks below its eps (GS602). The forward RMS is no witness: on one network biases held it on a plateau (slope
    −.06 per layer) while the gradient fell by half per layer (−.69).

    ## What to do
    `x = x + act(conv(norm(x)))`, normalisation before the layer and identity weight 1.0; or the identity and Xavier
    weights of gain 1/√(1+L) set through `conv.lin_*.weight`. Do not: `beta=True` (7e-6 at 8 layers, 2e-10 at 16), a
    0.1-weighted residual (no effect), Xavier 1/√(1+L) without the identity (underflows to 0 at 32 layers).

    ## How it is measured
    RMS(∂L/∂x) at the input of the first attention layer over that at the last.

    ## When it is silent
    Below 6 layers. A layer of dead units gives the same picture (GS701) and then explains it. The gradients of query
    and key maps follow how uniform the attention is and are not used. A ratio near 1 is no proof of health: Xavier at
    16 layers has .13 and does not train.

    ## Sources
    Schoenholz et al. 2017, *Deep Information Propagation*, arXiv 1611.01232; Dong et al. 2021, *Attention is not all
    you need*, arXiv 2103.03404. Measured: random graphs of degree 8, width 64, ReLU, 3 seeds.
    """

    min_layers: float = threshold(
        6, unit="attention layers", source="measured: no variant matters at 4 layers or fewer"
    )
    warn_ratio: float = threshold(
        1e-3, unit="gradient ratio", source="measured: 1.5e-3 (8 layers) trains, 1.2e-4 (12 layers) barely"
    )
    error_ratio: float = threshold(1e-4, unit="gradient ratio", source="measured: 1.4e-5 (16 layers) does not train")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """Warn below ``warn_ratio``, error below ``error_ratio``."""
        depth = need_depth(signals, self.min_layers)
        ratio = worst_gradient_ratio(signals)
        if not ratio.value < self.warn_ratio:
            return
        severe = ratio.value < self.error_ratio
        gate = any(layer.get("beta") for layer in signals.attention_layers)
        brake = " The beta gate is on and halves skip and message in every layer: turn it off." if gate else ""
        yield self.finding(
            f"over {depth} attention layers the node-state gradient falls to {ratio.value:.2g} of its size "
            f"(limit {self.warn_ratio:g}): the first layers hardly learn. Use x = x + act(conv(norm(x))) with weight 1.0.{brake}",
            severity="error" if severe else "warning",
            limit=self.error_ratio if severe else self.warn_ratio,
            signal=ratio,
            confidence="medium" if ratio.source in ("synthetic", "optimizer") else "high",
        )
