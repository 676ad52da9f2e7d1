"""GS106 post-norm-without-identity."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gnnstab.errors import NotApplicable
from gnnstab.records import Finding, Signals
from gnnstab.rules._stacks import hindered
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import count, largest, measured, names, need_depth, need_fact, preferred


@rule("GS106", "post-norm-without-identity", cause="normalization-misuse", severity="warning", confidence="high")
class PostNormWithoutIdentity(Rule):
    """A normalisation follows each layer, no identity path goes around, and gradients grow with depth.

    ## Why it matters
    The norm holds the forward pass at RMS 1, so everything looks well; backwards it multiplies by the inverse of what
    it took away, once per layer. Behind GraphNorm the gradient grows × 1.25 per layer with PyG's default weights and ×
    1.6 with gain √2 (3e6 over 32 layers); R² fell from .98 to .80 to .95 at up to 8 layers and to 0 at 16.

    ## What to do
    Move the norm before the layer and add the identity: `x = x + act(conv(norm(x), edge_index))`.

    ## How it is measured
    Normalisations behind the residual sum (post-norm) in a network whose gradient vanishes or explodes over depth, or
    in a run whose loss does not fall. Or attention layers, most of them followed by a normalisation and without an
    identity path, and the growth of the log gradient per layer backwards. With optimizer and loss: at least 6
    normalisations behind residual sums in a model that hardly learns in up to 30 steps on a copy, and learns several
    times as fast with the same normalisations in front of the layers.

    ## When it is silent
    Below 8 layers, where it costs accuracy but does not blow up. A LayerNorm after the layer is milder (× 1.08 per
    layer).

    ## Sources
    Yang et al. 2019, *A Mean Field Theory of Batch Normalization*, arXiv 1902.08129; Cai et al. 2020, *GraphNorm*,
    arXiv 2009.03294. Measured: random graphs of degree 8, width 64, 3 seeds.
    """

    min_layers: float = threshold(8, unit="attention layers", source="measured: at 8 layers R² falls from .98 to .85")
    slope: float = threshold(0.15, unit="ln per layer", source="measured: GraphNorm +.23 to +.48, LayerNorm +.08")
    share: float = threshold(0.5, unit="share of layers", source="heuristic: most layers")
    ratio: float = threshold(1e-3, unit="first over last layer", source="as GS203")
    norms: float = threshold(8, unit="normalisations", source="heuristic: as many as layers")
    taken: float = threshold(0.65, unit="share of the progress", source="as GS103")
    alike: float = threshold(1e-3, unit="‖X − mean‖/‖X‖", source="as GS704")
    steps: float = threshold(50, unit="steps", source="heuristic: enough for a loss to move")
    learned: float = threshold(
        0.6,
        unit="× the first loss",
        source="measured: .8 to 1 in 12 post-norm blocks at a rate of 1e-2, .1 in pre-norm ones",
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for the stack."""
        advice = "Normalise in front of each layer, x = x + f(norm(x)), or lower the learning rate and warm it up."
        behind = list(hindered(self, signals, self.taken, advice)) or list(self._behind_the_sum(signals))
        yield from behind
        if behind:
            return
        depth = need_depth(signals, self.min_layers)
        how = "what follows a layer is code, not weights; pass the model and a batch (--model, --batch)"
        layers = need_fact(signals, "norm_after", how)
        posted = [layer for layer in layers if layer.norm_after and layer.identity_path is False]
        if len(posted) <= self.share * len(layers):
            raise NotApplicable(f"{count(posted, layers)} layers are followed by a norm and have no identity path")
        slope = largest(preferred(signals.need("gradient.slope")))
        if slope.value > self.slope:
            yield self.finding(
                f"{count(posted, layers)} attention layers are followed by {posted[0].norm_after} without an identity path, and the "
                f"gradient grows ×{math.exp(min(slope.value, 50.0)):.2f} per layer over {depth} layers. Move the norm before the layer and add "
                "the identity: x = x + act(conv(norm(x))).",
                limit=self.slope,
                signal=slope,
            )

    def _behind_the_sum(self, signals: Signals) -> Iterator[Finding]:
        """Post-norm blocks, ``norm(x + f(x))``: a hazard where the gradient is seen to vanish or the training to stand still."""
        found = signals.find("place.post_norms")
        if not found or largest(found).value < self.norms:
            return
        symptom = self._vanishes(signals) or self._stands_still(signals)
        if not symptom:
            return
        norms = largest(found)
        yield self.finding(
            f"{norms.value:.0f} normalisations stand after the residual sum (post-norm, {names(map(str, norms.detail.get('names', ())), 2)}), so "
            f"that no identity path leads through the stack, and {symptom}. Normalise in front of each layer instead, x = x + f(norm(x)), or "
            "lower the learning rate and warm it up.",
            limit=self.norms,
            signal=norms,
            confidence="medium",
        )

    def _vanishes(self, signals: Signals) -> str:
        ratios = [s.value for s in measured(signals.find("gradient.ratio")) if math.isfinite(s.value)]
        worst = max(ratios, key=lambda ratio: abs(math.log(max(ratio, 1e-300))), default=1.0)
        if self.ratio <= worst <= 1 / self.ratio:
            return ""
        return f"the gradient at the first layer is {worst:.1g} times that at the last"

    def _stands_still(self, signals: Signals) -> str:
        loss = signals.find("loss")
        if not loss or int(loss[0].detail.get("steps", 0)) < self.steps:
            return ""
        if any(s.layer == "output" and s.value < self.alike for s in signals.find("place.node_difference")):
            return ""  # Every node gets the same answer: that is why.
        start, best = (float(loss[0].detail.get(key, math.nan)) for key in ("start", "best"))
        if not best > self.learned * start > 0:
            return ""
        return f"the loss does not fall (from {start:.3g} to {best:.3g} at best)"
