"""GS701 dead-units."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set

from gnnstab.characters import counted
from gnnstab.errors import NotApplicable
from gnnstab.layers import parts
from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.vocabulary import OPTIMIZER_REVIVED, PLACE_UNREACHED_TARGETS
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import largest, measured, need_layers, need_measured, percent, stops
from gnnstab.rules.run_losses import HARDLY, learned_something, trained_well


@rule("GS701", "dead-units", cause="dead-units", severity="warning", confidence="high")
class DeadUnits(Rule):
    """Nearly all channels behind a layer are zero on every node.

    ## Why it matters
    A ReLU that never opens passes no gradient, so nothing it depends on can open it again. Gradients before the layer
    vanish, which looks like a depth problem and is none (GS203 is then explained by this).

    ## What to do
    LeakyReLU or GELU; a lower learning rate; set the bias of the linear skip back to 0.

    ## How it is measured
    The share of channels of a layer's output that are ≤ 0 on all nodes of the batch (0 to 6 % on healthy real actors,
    31 to 75 % in two that a learning rate had ruined). Where the model ran, every ReLU on the way to the output: the
    share of its channels that are closed on at least 98 % of the rows, or all its entries where parameters in front of
    it get no gradient. Where a ReLU ends the model and the loss is a squared or absolute error: the share of the
    targets' variance that lies below zero.

    ## When it is silent
    For layers whose activation is known to be no ReLU. It is information where nobody looked at what follows, and in a
    run that halved its loss and ended at its best while some channels were open (of such with 78 and 81 % closed), or
    that learned, and of which more steps for half of the rows gain nothing for the others, as they are and with the
    closed ones opened. In deep
    networks whose nodes have become equal about half of the channels are dead for that reason; the limit lies above.

    ## Sources
    Lu et al. 2019, *Dying ReLU and Initialization*, arXiv 1903.06733. Measured: deep default networks; real actors.
    """

    share: float = threshold(
        0.9, unit="share of channels", source="measured: .5 in collapsed deep networks, .75 in a ruined actor"
    )

    alike: float = threshold(0.01, unit="‖X − mean‖/‖X‖", source="as GS704")
    closed: float = threshold(
        0.75,
        unit="share of channels",
        source="measured: 0 to .06 in healthy actors, .75 in a ruined one, .7 where nodes are alike",
    )

    unreached: float = threshold(
        0.1, unit="share of the variance", source="derived: the R² of the best non-negative output is .9 at most"
    )
    """Of the targets, below zero, where a ReLU ends the model."""

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding per layer, and one per other module that a ReLU stands behind."""
        places = measured(signals.find("place.dead_share"))
        found = [*self._at_places(places, signals)]
        closed = [*self._closed(signals, {f.layer for f in found})]
        found += closed or self._floor(signals)
        yield from found
        if (places or found) and not signals.find("channels.dead_share"):
            return
        yield from self._of_layers(signals, {s.layer for s in places} | {f.layer for f in found})

    def _floor(self, signals: Signals) -> Iterator[Finding]:
        """A ReLU in front of the output, and targets below zero: where the output is zero no gradient passes either."""
        for signal in signals.find(PLACE_UNREACHED_TARGETS):
            if signal.value > self.unreached and signal.detail.get("operation") == "ReLU":
                yield self.finding(
                    f"the output ends in a ReLU and is never below 0, where {percent(float(signal.detail.get('outside', 0)))} of the targets lie, as "
                    f"the gradient of the loss shows: {percent(signal.value)} of their variance are out of its reach, and no gradient "
                    "passes where it is closed. Take the ReLU off the last layer.",
                    severity="warning",
                    limit=self.unreached,
                    signal=signal,
                )

    def _closed(self, signals: Signals, known: Set[str | None]) -> Iterator[Finding]:
        """A ReLU that hands nothing on at all, of however few channels."""
        for signal in stops(signals, "relu"):
            if signal.layer not in known:
                yield self.finding(
                    f"the ReLU behind {signal.layer} is closed on every entry of the batch: {counted(signal.value, 'parameter', 'in front of it gets', 'in front of it get')} no "
                    "gradient, and nothing can open it again. Take the ReLU off if it stands in front of the output, use LeakyReLU, or reset "
                    "the bias in front of it.",
                    limit=0.0,
                    signal=signal,
                )

    def _at_places(self, places: Sequence[Signal], signals: Signals) -> Iterator[Finding]:
        alike = {s.layer for s in signals.find("place.node_difference") if s.value < self.alike}
        for signal in places:
            # Where all nodes are alike a channel is open on all of them or on none.
            if signal.value > (self.share if signal.layer in alike else self.closed):
                spared = signal.value < 1 and learned_something(signals) and self._spared(signal, signals)
                enough = signal.value < 1 and (trained_well(signals) or bool(spared))
                end = spared or ("the loss has ended at its best with the others" if enough else "no gradient passes")
                yield self.finding(
                    f"the ReLU behind {signal.layer} is closed on at least 98 % of the rows in {percent(signal.value)} of its channels: {end}"
                    ". Use LeakyReLU, lower the learning rate, or reset the bias in front of it.",
                    severity="info" if enough else "warning",
                    limit=self.closed,
                    signal=signal,
                )

    @staticmethod
    def _spared(signal: Signal, signals: Signals) -> str:
        """What steps with the closed units opened have shown, where they come no further; else empty."""
        for told in signals.find(OPTIMIZER_REVIVED):
            first, best, undone = (float(told.detail.get(key, math.nan)) for key in ("first", "best", "undone"))
            # What still learns may learn faster with them; rows that steps were taken for are learned by heart the sooner, the more units there are.
            stands = told.detail.get("unseen") is True and best >= HARDLY * first and undone >= HARDLY * best
            if signal.layer in told.detail.get("names", ()) and stands:
                return (
                    f"the run has learned with the others what it can: {told.detail.get('steps')} more steps on a copy bring the loss of half of one batch, "
                    f"taken for the other half, from {first:.3g} to {best:.3g}, and with these opened to {undone:.3g}"
                )
        return ""

    def _of_layers(self, signals: Signals, known: Set[str | None]) -> Iterator[Finding]:
        # Where every operation was looked at, a layer behind which no ReLU was found has none.
        looked = bool(signals.find("place.rms"))
        candidates = [
            layer for layer in need_layers(signals) if layer.activation == "relu" or not (looked or layer.activation)
        ]
        if not candidates:
            if known:
                return
            raise NotApplicable("no ReLU follows an attention layer")
        found = need_measured(signals, "channels.dead_share")
        for layer in candidates:
            own = [s for s in found if s.layer == layer.name]
            if own and layer.name not in known and largest(own).value > self.share:
                assumed = "" if layer.activation else ", if a ReLU follows"
                yield self.finding(
                    f"{layer.name}: {percent(largest(own).value)} of its channels are zero or below on every node and dead{assumed}: no "
                    f"gradient passes. Use LeakyReLU, lower the learning rate, or reset the bias of {parts(layer, 'skip') or 'the layer'}.",
                    severity="warning" if layer.activation else "info",
                    limit=self.share,
                    signal=largest(own),
                    confidence="high" if layer.activation else "medium",
                )
