"""GS103 no-residual."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.records import Finding, Signals
from gnnstab.rules._stacks import hindered
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.gs203_vanishing_gradient import VanishingGradient
from gnnstab.rules.gs204_exploding_gradient import ExplodingGradient
from gnnstab.rules.queries import count, measured, names, need_depth, need_fact, worst_gradient_ratio


@rule("GS103", "no-residual", cause="no-residual", severity="warning", confidence="high")
class NoResidual(Rule):
    """No identity path leads around the layers, and the gradient dies on the way.

    ## Why it matters
    The skip of `TransformerConv` is *linear*: it multiplies by a matrix, whose gain at PyG's default is 1/√3. Each
    layer shrinks the gradient to 0.42 to 0.54 of its size (ReLU, measured; 0.36 with `root_weight=False`), and training
    stops working between 10 and 14 layers. Measured ratios of a fresh default network: 1.5e-3 at 8 layers, 1.4e-5 at
    16, 1.4e-9 at 32; the forward RMS does not show it, since biases hold it up.

    ## What to do
    `x = x + act(conv(norm(x)))`: normalisation before the layer and an identity of weight **1.0** (at 16 layers R²
    .89/.96 instead of about 0, gradient ratio 2.3). An identity of weight 1.0 with Xavier weights of gain 1/√(1+L) does
    as well (R² .99/.99). A residual of weight 0.1 does next to nothing: the ratio goes from 1.4e-5 to 2.1e-5.

    ## How it is measured
    A deep stack, most of its attention layers without an identity path around them, and the gradient of the node states
    at the first layer over that at the last.

    With optimizer and loss, whatever the layers are: at least 4 modules of one list that run in a row, or one that is
    called 4 times and more in a row, without an identity path through or around them (a residual times 0 is none). Up
    to 30 steps on a copy lower the loss of one batch by less than a factor e, at three and ten times the rate as well;
    with an identity laid around each layer, on another copy, they lower it several times as far.

    ## When it is silent
    Below 6 layers, where no variant made a difference. By steps, where gradients explode over depth, since what a layer
    adds is made smaller with the identity. A dead layer (GS701) gives the same gradient and then explains the finding.

    ## Sources
    He et al. 2016, *Deep Residual Learning*, arXiv 1512.03385; Bachlechner et al. 2020, *ReZero*, arXiv 2003.04887.
    Measured: random graphs of degree 8, width 64, ReLU, 3 seeds; training on 48 nodes for 200 steps, 2 seeds.
    """

    min_layers: float = threshold(VanishingGradient.min_layers, unit="attention layers", source="as GS203")
    vanishing: float = threshold(VanishingGradient.warn_ratio, unit="gradient ratio", source="as GS203")
    share: float = threshold(
        0.5, unit="share of layers", source="heuristic: one identity path among many does not carry the gradient"
    )

    taken: float = threshold(
        0.65,
        unit="share of the progress",
        source="measured: .76 to 1 in four stacks of 6 to 24 layers that did not train, their repaired twins learn",
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """Warn when steps on a copy show that the missing path hinders learning, or most layers have none and the gradient vanishes."""
        advice = "Use x = x + f(norm(x)) around each layer, with weight 1.0."
        found = [] if self._explodes(signals) else list(hindered(self, signals, self.taken, advice))
        yield from found or self._vanishing(signals)

    @staticmethod
    def _explodes(signals: Signals) -> bool:
        """Without a path gradients die; where they explode, what the copy adds less of with the path may have helped, and not the path."""
        return any(s.value > ExplodingGradient.warn_ratio for s in measured(signals.find("gradient.ratio")))

    def _vanishing(self, signals: Signals) -> Iterator[Finding]:
        depth = need_depth(signals, self.min_layers)
        how = "what goes around a layer is code, not weights; pass the model and a batch (--model, --batch)"
        layers = need_fact(signals, "identity_path", how)
        bare = [layer for layer in layers if not layer.identity_path]
        ratio = worst_gradient_ratio(signals)
        if len(bare) > self.share * len(layers) and ratio.value < self.vanishing:
            yield self.finding(
                f"{count(bare, layers)} attention layers ({names(layer.name for layer in bare)}) have no identity path around "
                f"them, and over {depth} layers the gradient falls to {ratio.value:.2g} of its size. Use "
                "x = x + act(conv(norm(x))) with weight 1.0; a weight of 0.1 does not help.",
                limit=self.vanishing,
                signal=ratio,
            )
