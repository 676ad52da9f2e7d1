"""GS901 blind-layer."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.records import Blind, Finding, Signals
from gnnstab.rules.base import Rule, rule
from gnnstab.rules.queries import left_out, names, seen_at_the_end

ESSENTIAL = ("score", "attention", "output", "*", "", "all")
"""Sites without which a layer cannot be called healthy."""


@rule("GS901", "blind-layer", cause="", severity="warning", confidence="high")
class BlindLayer(Rule):
    """A layer, or a part of it, was not observed.

    ## Why it matters
    What was not seen cannot be called healthy: PyG drops message hooks without a word under `torch.compile`, in
    scripted models and on the fused path.

    ## What to do
    As the reason says: wrap the model before compiling it, pass a batch that reaches the layer, run one step without
    compilation.

    ## How it is measured
    Every site that the probe expected and did not get, with the reason. A layer whose scores, attention or output are
    missing is a warning.

    ## When it is silent
    Information: other sites; attention layers of kinds that nobody described (a class of your own that calls PyG's
    softmax); layers that came into the model later and were measured when the run had ended; a layer that is not called and that no gradient reaches, as the template of `nn.TransformerEncoder`; one
    of a relation without an edge, beside others that were seen.

    ## Sources
    PyTorch Geometric, documentation of `MessagePassing` (hooks and the fused path).
    """

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding per layer."""
        per_layer: dict[str, list[Blind]] = {}
        for blind in signals.blind:
            per_layer.setdefault(blind.layer, []).append(blind)
        unused, late = left_out(signals), seen_at_the_end(signals)
        if late:
            yield self.finding(
                f"{names(f.name for f in signals.layers if f.name in late)}: put into the model after the monitor was attached, and judged by what the end of the run shows; no rule watched "
                "them while it went on. A new monitor does.",
                severity="info",
                limit=0.0,
                name="",
                value=float(len(late)),
                unit="layers",
            )
        beside = any(layer.name not in per_layer for layer in signals.attention_layers)
        for layer, blinds in per_layer.items():
            if layer in late:
                continue
            sites = [blind.site or "all sites" for blind in blinds]
            # Layers over several kinds of nodes take and return dictionaries, so that input and output go unseen as well.
            other = any(blind.is_other_attention for blind in blinds)
            missed = [blind for blind in blinds if not (beside and blind.is_without_edge)]
            essential = not other and layer not in unused and any(blind.site in ESSENTIAL for blind in missed)
            yield self.finding(
                f"{layer or 'the model'}: not observed: {', '.join(dict.fromkeys(sites))}; {blinds[0].reason.rstrip('.')}.",
                severity="warning" if essential else "info",
                limit=0.0,
                name="",
                value=float(len(blinds)),
                layer=layer or None,
                unit="sites",
            )
