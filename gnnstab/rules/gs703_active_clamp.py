"""GS703 active-clamp."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set

from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.vocabulary import PLACE_UNREACHED_TARGETS
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.gs604_never_updated_parameter import silent_parameters
from gnnstab.rules.queries import largest, measured, need_measured, percent, stops


@rule("GS703", "active-clamp", cause="active-clamp", severity="warning", confidence="medium")
class ActiveClamp(Rule):
    """A clamp on the activations cuts off many of them.

    ## Why it matters
    Behind a clamp the gradient is exactly 0: it hides what makes the values grow, and takes away the gradient that
    could have corrected it.

    ## What to do
    Find the growth behind it (GS204, GS401, GS406), treat that, then remove the clamp.

    ## How it is measured
    The share of entries of a layer's input that sit exactly on the limit of a clamp, and, where the model ran, the
    share that any `clamp`, `hardtanh` or `minimum` cuts on the way to the output. One to [0, 1] is a hard sigmoid, and
    counts where it cuts every entry. Where a clamp ends the model and the loss is a squared or absolute error: the share
    of the targets' variance that lies beyond its limits. One on a tensor of the batch says that its scale is another one (feature-scale);
    one that leaves parameters without any gradient is GS604.

    ## When it is silent
    Clamps at ±1 cannot be told from signs. One that only the evaluation mode has is information. Action heads are
    clamped on purpose.

    ## Sources
    Measured: exploding networks of 8 layers with a clamp at ±10.
    """

    present: float = threshold(0.01, unit="share of entries", source="heuristic: a clamp that acts at all")
    active: float = threshold(
        0.1, unit="share of entries", source="measured: .21 to .25 in late layers of an exploding network"
    )

    reach: float = threshold(
        4,
        unit="× what the limits leave open",
        source="heuristic: a cutoff of distances leaves a good part of their range open",
    )

    unreached: float = threshold(0.1, unit="share of the variance", source="as GS701")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding per layer."""
        places = measured(signals.find("place.clamped_share"))
        # A clamp that takes away the whole gradient of some parameters is told by GS604, with their names.
        # Of a run, in which values may have come to the limits later.
        silent = silent_parameters(signals)[0] if signals.kind == "trace" else None
        told = {s.layer for s in stops(signals, "clamp") if not s.detail.get("all") and _silences(s, silent)}
        yield from self._at_places([s for s in places if s.layer not in told])
        cut = any(s.detail.get("output") and s.value > self.active for s in places)
        beyond = [] if cut else list(self._beyond(signals))
        yield from beyond
        if beyond:
            return
        if places and (not signals.find("clip.share") or all(s.detail.get("evaluation") for s in places)):
            return
        per_layer: dict[str | None, list[Signal]] = {}
        for signal in need_measured(signals, "clip.share"):
            per_layer.setdefault(signal.layer, []).append(signal)
        known = {s.layer for s in places}
        for layer, found in per_layer.items():
            worst = largest(found)
            if layer in known:
                continue
            if worst.value > self.present:
                active = worst.value > self.active
                yield self.finding(
                    f"{layer or 'the model'}: {percent(worst.value)} of its input sits on the limit of a clamp, where the gradient is 0. "
                    "Treat what makes the values grow, then remove the clamp.",
                    severity="warning" if active else "info",
                    limit=self.active if active else self.present,
                    signal=worst,
                )

    def _beyond(self, signals: Signals) -> Iterator[Finding]:
        """Targets that lie beyond the limits of a clamp that ends the model: the output comes to stand on them."""
        for signal in signals.find(PLACE_UNREACHED_TARGETS):
            if signal.detail.get("operation") == "clamp" and signal.value > self.unreached:
                limits = (("at or above", signal.detail.get("low")), ("at or below", signal.detail.get("high")))
                kept = " and ".join(f"{word} {limit:.4g}" for word, limit in limits if isinstance(limit, float))
                yield self.finding(
                    f"a clamp ends the model and keeps its output {kept}, where {percent(float(signal.detail.get('outside', 0)))} of the targets lie beyond: that leaves "
                    f"an error of {signal.value:.2g} times their variance at least, and no gradient passes on its limits. Widen the limits, or take it away.",
                    limit=self.unreached,
                    signal=signal,
                    confidence="high",
                )

    def _of_input(self, signal: Signal) -> Finding:
        if signal.detail.get("range", math.inf) <= self.reach:
            return self.finding(
                f"a clamp cuts {percent(signal.value)} of the entries of the input `{signal.layer}`, as of distances beyond a cutoff: "
                "what is cut looks alike.",
                severity="info",
                limit=self.active,
                signal=signal,
                cause="feature-scale",
            )
        return self.finding(
            f"a clamp cuts {percent(signal.value)} of the entries of the input `{signal.layer}`: it is of another scale than the clamp takes it "
            "for, and what is cut looks alike. Scale it into the limits instead.",
            limit=self.active,
            signal=signal,
            confidence="high",
            cause="feature-scale",
        )

    def _at_places(self, places: Sequence[Signal]) -> Iterator[Finding]:
        """A clamp that the forward was seen to call, by the module whose output it cuts."""
        for signal in places:
            if signal.value > self.present:
                evaluation = bool(signal.detail.get("evaluation"))
                active = signal.value > self.active and not evaluation
                if signal.detail.get("input") and active:
                    yield self._of_input(signal)
                    continue
                where = "in front of the output, behind" if signal.detail.get("output") else "behind"
                then = (
                    "in evaluation mode alone: it keeps no gradient back"
                    if evaluation
                    else "and their gradient is 0. Treat what makes the values grow, then remove the clamp"
                )
                yield self.finding(
                    f"a clamp {where} {signal.layer} cuts {percent(signal.value)} of its entries, {then}.",
                    severity="warning" if active else "info",
                    limit=self.active if active else self.present,
                    signal=signal,
                    confidence="high",
                )


def _silences(stopped: Signal, silent: Set[str] | None) -> bool:
    """False where all parameters in front of a clamp had a gradient before values came to its limits; nobody knows of None."""
    return silent is None or not silent.isdisjoint(str(name) for name in stopped.detail.get("parameters", ()))
