"""GS202 init-missed-convolutions."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.errors import NotApplicable, NotEvaluable
from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, rule
from gnnstab.rules.queries import need_layers


@rule("GS202", "init-missed-convolutions", cause="unsuitable-init", severity="info", confidence="medium")
class InitMissedConvolutions(Rule):
    """A custom initialisation reached the plain Linear layers and not the convolutions.

    ## Why it matters
    Whoever tuned that initialisation believes that it acts on the attention, and it does not: the `lin_*` of a
    TransformerConv are `torch_geometric.nn.dense.linear.Linear`, no subclass of `torch.nn.Linear`.

    ## What to do
    `isinstance(m, (nn.Linear, torch_geometric.nn.dense.linear.Linear))` in the loop. At 4 attention layers or fewer
    this was measured to change nothing.

    ## How it is measured
    Weights of every TransformerConv with PyG's default fingerprint, U(±1/√fan_in), beside `nn.Linear` layers that are
    orthogonal, Xavier or He.

    ## When it is silent
    On trained weights, which have no fingerprint left. The default may have been kept on purpose: it is information.

    ## Sources
    PyTorch Geometric, source of `torch_geometric.nn.dense.linear.Linear`. Measured: fingerprints right in at least 99 %
    of 100 draws per shape.
    """

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for the model."""
        layers = need_layers(signals)
        label = str(signals.context.get("linear_initialisation") or "")
        labels = {str(layer.initialisation or "unknown") for layer in layers}
        if not label:
            raise NotEvaluable("no plain Linear layer's weights were looked at; pass a checkpoint or a model")
        if label.startswith("unknown") or any(text.startswith("unknown") for text in labels):
            raise NotApplicable("trained weights: no initialisation can be recognised any more")
        custom = not label.startswith(("pyg", "mixed", "constant"))
        if custom and all(text.startswith("pyg") for text in labels):
            shallow = (
                f" At {signals.depth} attention layers that makes no measurable difference."
                if signals.depth <= 4
                else ""
            )
            yield self.finding(
                f"the Linear layers are {label}, but all {len(layers)} attention layers keep PyG's default: the initialiser did not reach "
                f"them. Loop over torch_geometric.nn.dense.linear.Linear as well.{shallow}",
                limit=0.0,
                name="",
                value=float(len(layers)),
                unit="layers",
            )
