"""GS201 unstable-init-gain."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from gnnstab.errors import NotApplicable, NotEvaluable
from gnnstab.layers import layer_named, parts
from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.vocabulary import GAIN_VALUE, LOGIT_FROBENIUS, LOSS_OVER_ZERO, LOSS_TARGET_RMS
from gnnstab.rules._by_steps import by_steps
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.gs203_vanishing_gradient import VanishingGradient
from gnnstab.rules.gs204_exploding_gradient import ExplodingGradient
from gnnstab.rules.gs301_attention_explosion import AttentionExplosion
from gnnstab.rules.gs401_sum_aggregation_growth import SumAggregationGrowth
from gnnstab.rules.learned import came_down
from gnnstab.rules.queries import fresh, large_gain, measured, names, need_depth, smallest


@rule("GS201", "unstable-init-gain", cause="unsuitable-init", severity="warning", confidence="medium")
class UnstableInitGain(Rule):
    """The initial weights shrink or grow the signal too much over the depth of the network.

    ## Why it matters
    Gains multiply, and only they matter: an orthogonal matrix of gain 1 behaved like Xavier of gain 1 in every
    measurement. Twelve layers of PyG's default, U(±1/√fan_in), sum to −6.7 at best, and there training begins to fail.
    Gain √2 is super-critical, because skip and values both carry it.

    ## What to do
    Re-initialise the maps of value and skip with Xavier gain 1. PyG's `Linear` is no subclass of `torch.nn.Linear`, so
    loop over both: `isinstance(m, (nn.Linear, torch_geometric.nn.dense.linear.Linear))`. Beyond 10 layers add an
    identity path: Xavier alone does not train at 16.

    ## How it is measured
    The static log gain per layer, λ ∈ [½ ln(φ·b·g_s² + r²), ½ ln(φ·b·(g_s² + g_v²) + r²)] (nodes independent, nodes
    aligned), g² = ‖W‖_F²/D_in of skip and values, φ = ½ for ReLU and 1 for tanh near 0, b = ¼ with the beta gate, r the
    weight of the identity path; summed over the layers, the *whole* interval must lie beyond a limit. The measured
    slope lay inside it in 17 of 22 configurations; for explosion it is only a lower bound.

    Where the model ran, of every weight on the way: a gain (of a table of embeddings, an RMS) that no normalisation
    follows, on fresh weights, where the singular values spread as those of independent entries or the first loss is
    many times that of an output of zeros; weights that are all 0 and keep the gradient of every matrix at 0; a weight
    whose units are alike, with gradients that are alike. A table that multiplies the output too counts where the first
    loss is more than 4 times that of zeros, and neither the run nor steps on a copy have brought it down to 1/e² of
    that.

    Of a file, each layer whose values have a gain above 5 and whose queries and keys are as large and independent.

    ## When it is silent
    On trained weights, and where most matrices have few large directions, as training gives them: gains say nothing
    about the path through the scores; for layers with a normalisation before or an identity path around them; for the
    last map where the first loss is no more than twice that of zeros, as of an output no larger than the targets; where a
    measured gradient ratio is healthy. A file shows none of these, so there it is information. So are maps of scores
    where steps with softer scores on a copy show that the sharpness is earned.

    ## Sources
    Schoenholz et al. 2017, *Deep Information Propagation*, arXiv 1611.01232; Glorot and Bengio 2010. Derived for
    `TransformerConv` and measured: 11 initialisations, 2 activations, 16 layers, random graphs of degree 8, width 64.
    """

    min_layers: float = threshold(
        6, unit="attention layers", source="measured: no variant matters at 4 layers or fewer"
    )
    gain: float = threshold(5.0, unit="RMS·√fan_in", source="as GS104: three times the largest gain in use, 5/3")
    suits: float = threshold(
        2.0,
        unit="× the loss of zeros",
        source="derived: an output as large as the targets, and independent of them, has 1 + 1",
    )
    vanishing: float = threshold(
        -6.0, unit="ln, summed over layers", source="measured: the default at 12 layers (−6.7) is the training boundary"
    )
    exploding: float = threshold(
        5.0, unit="ln, summed over layers", source="measured: a gradient ratio above e^5 trains slowly or not"
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """Warn when the whole gain interval of fresh weights lies outside the limits."""
        weights = [*self._of_weights(signals), *self._of_files(signals)]
        yield from weights
        if weights:
            return
        depth = need_depth(signals, self.min_layers)
        if not fresh(signals):
            raise NotApplicable(
                "the weights are trained, or their initialisation is not recognisable: the initial gain is gone"
            )
        low, high = self._sum(signals, "gain.lambda_low"), self._sum(signals, "gain.lambda_high")
        seen = [s.value for s in measured(signals.find("gradient.ratio"))]
        # What was measured on the user's data outranks what the weights alone let expect.
        if high < self.vanishing and not any(ratio > VanishingGradient.warn_ratio for ratio in seen):
            what = f"shrinks the signal to at most e^{high:.1f} over {depth} layers"
            yield self._finding(signals, what, high, self.vanishing)
        elif low > self.exploding and not any(ratio < ExplodingGradient.warn_ratio for ratio in seen):
            yield self._finding(
                signals, f"grows the signal at least e^{low:.1f}-fold over {depth} layers", low, self.exploding
            )

    def _of_files(self, signals: Signals) -> Iterator[Finding]:
        """Layers of a file all of whose maps are too large, with queries and keys that no training has made agree."""
        rule = AttentionExplosion()
        for layer in signals.attention_layers if signals.kind == "checkpoint" else ():
            value = signals.value(GAIN_VALUE, layer=layer.name)
            large = value is not None and value > self.gain and large_gain(layer.name, signals)
            if value is None or not large or layer.norm_before or not rule.independent(signals, layer):
                continue
            yield self.finding(
                f"{layer.name}: values have a gain of {value:.3g}, 0.6 to 1.7 for the initialisations in use, and queries and keys are as large and "
                "agree no more than independent weights do: all of its weights were drawn so. Draw them anew, e.g. "
                f"{layer.name}.reset_parameters().",
                limit=self.gain,
                name=GAIN_VALUE,
                layer=layer.name,
                value=value,
                unit="",
            )

    def _of_weights(self, signals: Signals) -> Iterator[Finding]:
        """Single weights that no initialisation in use has drawn."""
        made = signals.context.get("trained") is True or bool(signals.context.get("reshaped"))
        over_zero = [s.value for s in signals.find(LOSS_OVER_ZERO)]
        far_off = any(over > SumAggregationGrowth.far_off for over in over_zero)
        suits = max((*over_zero, *_of_squared_errors(signals)), default=math.inf) <= self.suits
        for signal in signals.find("place.gain"):
            known = signal.detail.get("drawn") or far_off
            tied = bool(signal.detail.get("tied"))
            drawn = (fresh(signals) and not tied) or (known and not made)
            if tied and (not far_off or came_down(signals)):  # Small states, or ones divided by √d, make up for it.
                continue
            # Behind the last map is the output alone, which is no larger than the targets.
            if signal.detail.get("last") and suits:
                continue
            if signal.value > self.gain and drawn and not _judged_elsewhere(signals, signal.layer or ""):
                what = "holds entries of RMS" if signal.detail.get("table") else "has a gain (RMS·√fan_in) of"
                usual = (
                    "1 for nn.Embedding" if signal.detail.get("table") else "0.6 to 1.7 for the initialisations in use"
                )
                behind = (
                    "it multiplies the output as well, whose loss is many times that of an output of zeros. Draw it with a deviation "
                    "of 1/√d, and multiply by √d what is looked up."
                    if tied
                    else f"no normalisation follows: everything behind it is as much too large. Draw it anew, e.g. {signal.layer}.reset_parameters()."
                )
                found = self.finding(
                    f"the weight of {signal.layer} {what} {signal.value:.3g}, {usual}, and {behind}",
                    limit=self.gain,
                    signal=signal,
                )
                # Scores that are large may be what the attention is for.
                owner, roles = _roles(signals, signal.layer or "")
                judged = by_steps(replace(found, layer=owner), signals) if roles == ["score"] else found
                yield replace(judged, layer=signal.layer)
        for signal in signals.find("place.copied_units"):
            yield self.finding(
                f"the {signal.value:.0f} units of {signal.layer} have the same weights and the same gradients: they stay copies of one another, "
                f"whatever is trained. Draw the weight at random, e.g. {signal.layer}.reset_parameters().",
                limit=0.0,
                signal=signal,
                confidence="high",
            )

        for signal in signals.find("place.zero_weights"):
            held = "the gradients of all matrices" if signal.detail.get("all", True) else "their gradients"
            yield self.finding(
                f"all entries of {names(map(str, signal.detail.get('parameters', ())))} are 0, and so are {held}: no update moves "
                "them. With small random entries on a copy a gradient arrives. Draw them at random, as nn.Embedding and nn.Linear do by "
                "themselves.",
                severity="error",
                limit=0.0,
                signal=signal,
                confidence="high",
            )

    def _finding(self, signals: Signals, what: str, value: float, limit: float) -> Finding:
        name = "gain.lambda_high" if limit < 0 else "gain.lambda_low"
        unseen = any(layer.identity_path is None for layer in signals.attention_layers)
        unless = (
            ", unless an identity path or a norm before each layer, which a file does not show, makes good for it"
            if unseen
            else ""
        )
        maps = list(dict.fromkeys(parts(layer, "value", "skip") for layer in signals.attention_layers))
        advice = f"Give {', '.join(maps)} Xavier weights of gain 1, and an identity path of weight 1.0."
        return self.finding(
            f"the initial gain of values and skip {what} (limits e^{self.vanishing:g} and e^{self.exploding:g}){unless}. {advice}",
            severity="info" if unseen else "warning",
            limit=limit,
            name=name,
            value=value,
            unit="ln, summed over layers",
        )

    @staticmethod
    def _sum(signals: Signals, name: str) -> float:
        free = [layer.name for layer in signals.attention_layers if not layer.norm_before and not layer.identity_path]
        per_layer: dict[str, list[Signal]] = {}
        for signal in signals.need(name):
            if signal.layer in free:
                per_layer.setdefault(signal.layer, []).append(signal)
        if not free:
            raise NotApplicable("a normalisation before, or an identity path around, every layer keeps the scale")
        if len(per_layer) < len(free):
            raise NotEvaluable(
                f"{name} is known for {len(per_layer)} of {len(free)} layers; pass --activation to fix the assumption"
            )
        return sum(smallest(found).value for found in per_layer.values())


def _of_squared_errors(signals: Signals) -> Iterator[float]:
    """What the first loss is times that of zeros, of an output that is independent of the targets of a squared error."""
    for size in signals.find(LOSS_TARGET_RMS):
        output = size.detail.get("output_rms")  # A trace may come from a stranger.
        if isinstance(output, float) and size.value > 0:
            yield 1 + (output / size.value) * (output / size.value)


def _judged_elsewhere(signals: Signals, module: str) -> bool:
    """True for the maps of an attention layer whose gains have rules of their own: those of scores, values and the skip."""
    owner, judged = _roles(signals, module)
    return bool(judged) and (judged != ["score"] or bool(signals.find(LOGIT_FROBENIUS, layer=owner)))


def _roles(signals: Signals, module: str) -> tuple[str, list[str]]:
    """The attention layer that a map belongs to, and what it is used for there; nothing of any other."""
    for layer in signals.attention_layers:
        if module.startswith(f"{layer.name}."):
            own, roles = module.removeprefix(f"{layer.name}."), layer_named(layer).roles
            return layer.name, [role for role in ("score", "value", "skip", "gate") if own in roles.get(role, ())]
    return "", []
