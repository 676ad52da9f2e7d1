"""GS702 saturated-tanh."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.errors import NotApplicable
from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import largest, measured, need_layers, need_measured, percent
from gnnstab.rules.run_losses import trained_well


@rule("GS702", "saturated-tanh", cause="feature-scale", severity="warning", confidence="low")
class SaturatedTanh(Rule):
    """Most entries behind a tanh stand at its limits.

    ## Why it matters
    Beyond ±0.97 a tanh passes less than 6 % of the gradient. Stacked, the layers before it stop learning.

    ## What to do
    A normalisation before the layer in front of the tanh; a smaller gain.

    ## How it is measured
    The share of entries beyond ±0.97 in a layer's input that lies within [−1, 1] throughout. Where the model ran, every
    tanh between the batch and the output.

    ## When it is silent
    For columns that are constant over the nodes and layers that read the features of a node type themselves, since ±1
    may be data. In a run whose loss has ended at its best a tanh that training has driven there is information. An
    output layer, or a code that is meant to be binary, looks the same.

    ## Sources
    Glorot and Bengio 2010, *Understanding the Difficulty of Training Deep Feedforward Networks*. Derived.
    """

    share: float = threshold(
        0.5, unit="share of entries", source="derived: half of the entries pass less than 6 % of the gradient"
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding per layer, and one per other module that a tanh stands behind."""
        places = measured(signals.find("place.saturated_share"))
        for signal in places:
            if signal.value > self.share and not signal.detail.get("output"):
                yield self.finding(
                    f"the tanh behind {signal.layer} stands beyond ±0.97 in {percent(signal.value)} of its entries, where it passes less than "
                    "6 % of the gradient. Put a LayerNorm in front of it.",
                    limit=self.share,
                    signal=signal,
                    severity="info" if trained_well(signals) else "warning",
                    confidence="medium",
                )
        if places:
            return
        layers = [layer for layer in need_layers(signals) if layer.activation in (None, "tanh")]
        if not layers:
            raise NotApplicable("no tanh was found beside an attention layer")
        found = need_measured(signals, "tanh.saturated_share")
        first = min(signals.attention_layers, key=lambda layer: layer.position)
        for layer in layers:
            own = [s for s in found if s.layer == layer.name]
            constant = [s.value for s in measured(signals.find("channels.constant_share", layer=layer.name))]
            # The input of the first layers may be features of ±1 rather than the output of a tanh.
            reads_features = layer is first or _same_hop(layer.name, first.name)
            if own and not reads_features and largest(own).value - max(constant, default=0.0) > self.share:
                yield self.finding(
                    f"{layer.name}: {percent(largest(own).value)} of its input stands beyond ±0.97, where a tanh passes less than 6 % of the "
                    "gradient. Put a LayerNorm before the layer in front of it.",
                    limit=self.share,
                    signal=largest(own),
                )


def _same_hop(one: str, other: str) -> bool:
    """True for two relations of one `HeteroConv`: each reads the states of its own node types, side by side."""
    before, relation, _ = one.partition("<")
    return bool(relation) and other.startswith(f"{before}<")
