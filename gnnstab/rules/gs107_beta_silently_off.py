"""GS107 beta-silently-off."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, rule
from gnnstab.rules.queries import need_fact


@rule("GS107", "beta-silently-off", cause="beta-disabled", severity="info", confidence="high")
class BetaSilentlyOff(Rule):
    """The beta gate was asked for and is not there.

    ## Why it matters
    The gate mixes the message with the linear skip; without the skip PyG drops it, without a word.

    ## What to do
    `TransformerConv(..., beta=True, root_weight=True)`, or remove the argument where no gate is wanted.

    ## How it is measured
    `beta=True` together with `root_weight=False`; the state dict has no weights of a gate.

    ## When it is silent
    Never where both arguments are so: it is information.

    ## Sources
    PyTorch Geometric, source of `TransformerConv.__init__`: `self.beta = beta and root_weight`.
    """

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding per layer."""
        how = "what was asked for is code, not weights; pass the model (--model pkg.mod:factory)"
        for layer in need_fact(signals, "beta_requested", how):
            if layer.get("beta_requested") and layer.get("beta") is False:
                yield self.finding(
                    f"{layer.name}: beta=True has no effect, since root_weight=False switches it off. Set root_weight=True or remove beta.",
                    limit=0.0,
                    name="",
                    value=0.0,
                    layer=layer.name,
                )
