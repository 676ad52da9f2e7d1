"""GS204 exploding-gradient."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import need_depth, worst_gradient_ratio
from gnnstab.rules.run_losses import trained_well


@rule("GS204", "exploding-gradient", cause="unsuitable-init", severity="error", confidence="high")
class ExplodingGradient(Rule):
    """The gradient of the node states grows on its way to the first layer.

    ## Why it matters
    Every update of the late layers moves the early ones by the ratio more, and clipping hands the whole budget to the
    first layers. The usual cause is the *gain* of the weights: skip and values both carry it, so √2, critical for an
    MLP with ReLU, is super-critical here. At 8 and 16 layers: orthogonal √2 9e2 and 6e4 (trains slowly; fails in spite
    of clipping, R² −1.7 and −4.3), gain 5/3 4e3 and 2e5, PyG's default with an identity of weight 1.0 2.5 and 80.

    ## What to do
    An identity of weight 1.0 around each layer together with fresh Xavier weights of gain 1/√(1+L): it restored all of
    32 networks of 8 layers and gains from 1.6 to 2.5 in 90 steps (R² .85 to .99); Xavier gain 1 without the identity
    24, pre-norm with an identity over the large weights none in that time. `beta=True` is a valid brake (GS102). Do not
    add dropout, nor a residual to weights of gain √2 (6e9 at 32 layers).

    ## How it is measured
    RMS(∂L/∂x) at the input of the first attention layer over that at the last.

    ## When it is silent
    Below 5 layers. In a run whose loss has ended at its best a warning is information. The path through the scores has
    heavy tails: judge on several batches.

    ## Sources
    Yang et al. 2019, *A Mean Field Theory of Batch Normalization*, arXiv 1902.08129 (the same growth behind a
    normalisation without identity path). Measured: random graphs of degree 8, width 64, ReLU, 3 seeds.
    """

    min_layers: float = threshold(
        5, unit="attention layers", source="measured: no variant matters at 4 layers or fewer"
    )
    warn_ratio: float = threshold(1e2, unit="gradient ratio", source="measured: 80 trains, 9e2 trains slowly")
    error_ratio: float = threshold(
        1e4, unit="gradient ratio", source="measured: 6e4 fails in spite of gradient clipping"
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """Warn above ``warn_ratio``, error above ``error_ratio``."""
        depth = need_depth(signals, self.min_layers)
        ratio = worst_gradient_ratio(signals)
        if not ratio.value > self.warn_ratio:
            return
        severe = ratio.value > self.error_ratio
        trained = not severe and trained_well(signals)
        yield self.finding(
            f"over {depth} attention layers the node-state gradient grows {ratio.value:.3g}-fold towards the first layer "
            f"(limit {self.warn_ratio:g}). Give the layers fresh Xavier weights of gain 1/√(1+L) and an identity of weight 1.0, "
            f"or at least a gain of 1.{' The loss has ended at its best: it trains all the same.' if trained else ''}",
            severity="error" if severe else "info" if trained else "warning",
            limit=self.error_ratio if severe else self.warn_ratio,
            signal=ratio,
            confidence="medium" if ratio.source in ("synthetic", "optimizer") else "high",
        )
