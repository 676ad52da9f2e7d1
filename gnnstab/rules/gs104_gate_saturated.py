"""GS104 gate-saturated."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gnnstab.characters import counted
from gnnstab.errors import NotApplicable
from gnnstab.layers import layer_named, parts, weights
from gnnstab.records import Finding, LayerFacts, Signal, Signals
from gnnstab.records.vocabulary import WEIGHT_RMS
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import largest, measured, need_layers, percent, stops


@rule("GS104", "gate-saturated", cause="saturated-gate", severity="warning", confidence="medium")
class GateSaturated(Rule):
    """The beta gate stands at 0 or 1 for most nodes because its input or its weights are large.

    ## Why it matters
    The gate is a sigmoid of the features, β = σ(W·[skip, message, skip − message]). Where the features are large, size
    alone decides: the message or the skip is cut off, and its gradient with it.

    ## What to do
    Normalise before the layer: `x = conv(norm(x), edge_index)`; or find what makes the input large (GS401, GS406).
    Where the gate's weights are large: draw its map anew (the fix `reinit-gate` prints the call).

    ## How it is measured
    The share of nodes whose gate lies below 0.05 or above 0.95, with the RMS of the layer's input and the gain
    RMS(W_β)·√fan_in of the gate's weights. Where the model ran, also every sigmoid, clamp to [0, 1] or tanh on the way
    that hands no gradient on at any entry, one of a parameter alone that hands less than a millionth on, and one behind a bias
    beyond ±10 in every entry that hands less than a ten-thousandth on; that a bias was filled with one number, or never trained, is said. In a file, the learned shares of an HGTConv, where all
    of a layer lie below the limit (healthy files: -1.1 to 1.3). Weights elsewhere that were drawn too wide explain the
    gate.

    ## When it is silent
    A saturated gate of ordinary weights behind an input of ordinary size is information: the network may have learned
    it.

    ## Sources
    Shi et al. 2021, *Masked Label Prediction* (UniMP), arXiv 2009.03509. Measured: fresh layers, inputs of RMS 1 to 30.
    """

    share: float = threshold(0.5, unit="share of nodes", source="measured: 0 at RMS 1, .87 at RMS 30")
    input_rms: float = threshold(
        4.0, unit="RMS", source="derived: at default weights the gate's logit has a spread of about 0.6 times the RMS"
    )

    logit: float = threshold(10.0, unit="bias", source="derived: a sigmoid passes 5e-5 of the gradient there")

    gain: float = threshold(
        5.0,
        unit="RMS·√fan_in",
        source="derived: 0.58 at PyG's default, 1 at Xavier; three times the largest gain in use, 5/3",
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding per layer."""
        stuck = [*self._stuck(signals), *self._shut(signals)]
        yield from stuck
        if stuck:
            return
        gated = [layer for layer in need_layers(signals) if layer.get("beta") is not False and parts(layer, "gate")]
        if not gated:
            raise NotApplicable("the beta gate is off in every layer")
        found = measured(signals.need("gate.saturated_share"))
        for layer in gated:
            own = [s for s in found if s.layer == layer.name]
            if own and largest(own).value > self.share:
                yield self._finding(signals, largest(own))

    def _stuck(self, signals: Signals) -> Iterator[Finding]:
        """Sigmoids and tanhs that are shut or open on every entry, so that nothing in front of them learns."""
        never = {str(p) for s in signals.find("optimizer.never_updated") for p in s.detail.get("parameters", ())}
        for signal in stops(signals, *GATES):
            bias, operation = signal.detail.get("bias"), str(signal.detail.get("operation"))
            if signal.detail.get("gate"):
                filled_with = f", all of whose entries are {bias:g}," if isinstance(bias, float) else ""
                yield self.finding(
                    f"the {GATES[operation]} of the parameter {signal.layer}{filled_with} stands at its limit on every entry, whatever the batch "
                    "holds: less than a millionth of the gradient passes, and it stays shut, or open. Let the parameter begin near 0.",
                    limit=0.0,
                    signal=signal,
                    confidence="high",
                )
                continue
            filled = isinstance(bias, float) and (
                not 0 <= bias <= 1 if operation == "hard_sigmoid" else abs(bias) > self.logit
            )
            drawn = filled or (bool(never) and never.issuperset(map(str, signal.detail.get("parameters", ()))))
            which = f" (its bias is {bias:.3g})" if filled else ""
            since = (
                "It was so before training: initialise it so that it is half open"
                if drawn
                else "Bring what goes into it to a size of about 1, or reset it"
            )
            yield self.finding(
                f"the {GATES[operation]} behind {signal.layer}{which} stands at its limit on every entry and hands {'next to no' if filled else 'no'} gradient "
                f"on: {counted(signal.value, 'parameter')} in front of it cannot learn, and what it gates stays as it is. {since}.",
                limit=0.0,
                signal=signal,
                confidence="high",
            )

    def _shut(self, signals: Signals) -> Iterator[Finding]:
        """Layers of a file that a sigmoid of a number of each kind of nodes mixes with their input, all of which are shut."""
        for layer in signals.attention_layers if signals.kind == "checkpoint" else ():
            names = tuple(f"{layer.name}.{part}." for part in layer_named(layer).roles.get("share", ()))
            own = [
                s
                for s in signals.find(WEIGHT_RMS, layer=layer.name)
                if f"{s.detail.get('parameter')}".startswith(names)
            ]
            entries = [float(s.detail.get("entry", 0.0)) for s in own]
            if names and entries and max(entries) < -self.logit:
                yield self.finding(
                    f"{layer.name}: its output is its input, as {' and '.join(sorted(s.detail['parameter'] for s in own))} lie at {max(entries):.3g} or "
                    f"below: their sigmoid leaves {1 / (1 + math.exp(min(-max(entries), 700.0))):.1g} of what it computes, and as much of the gradient. Let them begin near 0.",
                    limit=self.logit,
                    signal=largest(own),
                )

    def _finding(self, signals: Signals, share: Signal) -> Finding:
        rms = signals.value("input.rms", layer=share.layer)
        by_scale = rms is not None and rms > self.input_rms
        gain = _gain(signals, signals.layer(share.layer or ""))
        by_weights = gain is not None and gain > self.gain
        size = "" if rms is None else f" at an input of RMS {rms:.2g}"
        why = (
            "its input decides it by size alone: normalise before the layer"
            if by_scale
            else f"its weights have a gain of {gain:.2g}, beyond any initialisation: reset {_gate(signals, share)}"
            if by_weights
            else "it may have learned that"
        )
        return self.finding(
            f"{share.layer}: the beta gate is saturated on {percent(share.value)} of the nodes{size}; {why}.",
            severity="warning" if by_scale or by_weights else "info",
            limit=self.share,
            signal=share,
        )


GATES = {"sigmoid": "sigmoid", "tanh": "tanh", "hard_sigmoid": "clamp to [0, 1]"}
"""Operations that a gate may end in → in words."""


def _gate(signals: Signals, share: Signal) -> str:
    facts = signals.layer(share.layer or "")
    return parts(facts or "", "gate")


def _gain(signals: Signals, layer: LayerFacts | None) -> float | None:
    """RMS·√fan_in of the gate's weight, which reads skip, message and their difference; None when it was not seen."""
    if layer is None or not layer.out_channels:
        return None
    width = layer.out_channels * (layer.heads or 1 if layer.concat else 1)
    found = [
        s.value
        for s in signals.find("weight.rms")
        if str(s.detail.get("parameter", "")).endswith(weights(layer, "gate"))
    ]
    return max(found) * math.sqrt(3 * width) if found else None
