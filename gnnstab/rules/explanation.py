"""Which finding follows from which: data first, then aggregation, attention, dead units, depth, smoothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gnnstab.records import SEVERITIES, Finding, Signals
from gnnstab.records.vocabulary import (
    ATTENTION_VANISHED_SHARE,
    LOSS_OVER_ZERO,
    OPTIMIZER_EPS_LOST,
    OPTIMIZER_INPUT_SHARE,
    OPTIMIZER_LOSS_RISE,
    OPTIMIZER_LOST_SHARE,
    OPTIMIZER_UNDONE,
    PLACE_COPIED_UNITS,
    PLACE_OVERFLOW,
    PLACE_ZERO_WEIGHTS,
)
from gnnstab.rules.gs301_attention_explosion import AttentionExplosion
from gnnstab.rules.gs401_sum_aggregation_growth import SumAggregationGrowth
from gnnstab.rules.gs406_feature_scale import FeatureScale
from gnnstab.rules.gs408_batch_dependence import BatchDependence
from gnnstab.rules.gs604_never_updated_parameter import silent_parameters
from gnnstab.rules.queries import large_gain, largest, measured, sharp_from_the_start

Condition = Callable[[Finding, Finding, Signals], bool]
"""(symptom, explanation, signals) → whether the mechanism ties the two on this target."""


@dataclass(frozen=True, slots=True)
class Link:
    """``symptom`` follows from ``explanation`` where ``when`` holds."""

    symptom: str
    explanation: str
    when: Condition


def explain(findings: Sequence[Finding], signals: Signals) -> tuple[Finding, ...]:
    """The findings with ``explained_by`` set to the code that the mechanism ties them to.

    Only a finding of at least a warning explains; severities stay as they are.
    """
    strong = [f for f in findings if is_warning(f)]
    return tuple(replace(f, explained_by=f.explained_by or _explanation(f, strong, signals)) for f in findings)


def is_warning(finding: Finding) -> bool:
    """True for a warning or an error."""
    return SEVERITIES.index(finding.severity) >= SEVERITIES.index("warning")


def _explanation(finding: Finding, strong: Sequence[Finding], signals: Signals) -> str | None:
    for link in LINKS:
        if link.symptom != finding.code:
            continue
        for other in strong:
            if other.code == link.explanation and other is not finding and link.when(finding, other, signals):
                return other.code
    return None


def _unless(reverse: Condition) -> Condition:
    """What holds where the explanation does not itself follow from the symptom."""
    return lambda symptom, explanation, signals: not reverse(explanation, symptom, signals)


def _told_by(*names: str) -> Condition:
    """What holds where the explanation rests on one of these signals."""
    return lambda symptom, explanation, signals: explanation.signal in names


def _always(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    return True


def _scale_that_was_undone(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """The same step without an input's scale was finite: that scale stands in every score as well, and in its square."""
    return explanation.cause == "feature-scale"


def _same_layer(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    return symptom.layer == explanation.layer


def _wrong_there(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """An operation of the layer is undefined for scores that a softmax would bear, or its softmax runs over a wrong axis: that of one head has one entry."""
    return explanation.cause in ("undefined-operation", "normalization-misuse") and symptom.layer == explanation.layer


def _behind(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """The symptom's layer comes after the explanation's and not beside it; unknown positions count as so."""
    own, other = signals.layer(symptom.layer or ""), signals.layer(explanation.layer or "")
    return own is None or other is None or (own.position > other.position and other.name not in (own.beside or ()))


def _only_by_scale(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """The sum would be small if the features were: divide their scale out and look again, or take steps on a copy without it."""
    if symptom.signal == OPTIMIZER_LOSS_RISE:
        told = signals.find(OPTIMIZER_INPUT_SHARE)
        return any(s.value > FeatureScale.taken and explanation.layer in s.detail.get("names", ()) for s in told)
    rms = measured(signals.find("aggregation.rms", layer=symptom.layer))
    scale = measured(signals.find("feature.rms"))
    if not rms or not scale:
        return False
    return largest(rms).value / max(1.0, largest(scale).value) <= SumAggregationGrowth.rms


def _part_of_explosion(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    return large_gain(symptom.layer, signals)


def _driven_by_attention(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Saturated attention carries the gradient through its sharp scores, unless all weights are large alike."""
    return explanation.signal.startswith("attention.") and not large_gain(explanation.layer, signals)


def _eps_lost(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Updates that divide 0 by 0, whatever the rate."""
    return explanation.signal == OPTIMIZER_EPS_LOST and (
        symptom.code != "GS502" or symptom.signal == "weight.non_finite"
    )


def _far_off(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """An output that sums have made many times too large gives gradients as large, and a loss that jumps."""
    over = [s.value for s in signals.find(LOSS_OVER_ZERO)]
    return explanation.signal == LOSS_OVER_ZERO or max(over, default=0.0) > SumAggregationGrowth.far_off


def _grown_on_the_way(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """A later layer's input has grown through the layers before it."""
    facts = signals.layer(symptom.layer or "")
    first = min((layer.position for layer in signals.attention_layers), default=0)
    return facts is not None and facts.position > first


def _given_to_the_layer(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """A large tensor of the batch goes into the layer beside the node states, as edge features do."""
    fed = (
        str(name) for s in signals.find("place.rms") if s.layer == explanation.layer for name in s.detail.get("fed", ())
    )
    return explanation.signal == "place.rms" and any(f"{name}.".startswith(f"{symptom.layer}.") for name in fed)


_MOST = 0.5
"""Share of the entries that a clamp cuts from which on the rest says little about the whole."""

_MANY = 10
"""Times the limit of GS406 from which on the size of the data explains values that leave the number format."""


def _from_large_data(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Measured values of many times their limit that reach the weights make everything behind them large."""
    own = ("non-finite-data", "uninitialized-parameter", "undefined-operation", "masking", "precision")
    large = explanation.signal == "place.rms" and explanation.value > _MANY * FeatureScale.rms
    return large and not explanation.message.startswith("the targets") and symptom.cause not in own


def _of_absurd_size(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    return explanation.signal == "place.rms" and explanation.value > FeatureScale.absurd


def _nothing_comes_back(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Gradients that are 0 for every parameter: a clamp or a ReLU that is closed everywhere passes none."""
    if symptom.signal == "weight.grad_rms":
        return True
    seen = [s for s in signals.find("optimizer.never_updated") if s.value > 0]
    return bool(seen) and all(s.value == s.detail.get("of") and s.detail.get("zero") for s in seen)


def _of_targets(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Targets of another scale drive every weight that way: what grows on the way follows."""
    return explanation.signal == "loss" or explanation.message.startswith("the targets")


def _mostly_cut(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """The loss jumps where a clamp lets a gradient through at a few entries only."""
    return symptom.signal == "loss.first_rise" and explanation.value > _MOST


def _heard_beside_norms(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Norms that miss what the whole layer was not given: graphs hear each other where every norm is told which node is whose, too."""
    return not symptom.signal and not _heard_through_norms(explanation, symptom, signals)


def _heard_through_norms(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Graphs hear nothing that counts of each other, or nobody has looked, where every norm is told which node is whose."""
    found = signals.find("place.alone_difference")
    return not any(s.detail.get("content_with_norms_apart", 0.0) > BatchDependence.moves for s in found)


def _without_edges(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Error: the nodes have nothing to answer with. Else most of what is read hears nothing, and no loss reaches what makes the messages."""
    return explanation.severity == "error" or symptom.signal == "optimizer.never_updated"


def _stopped_there(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Most of the parameters stand in front of an operation that hands no gradient on."""
    silent, _ = silent_parameters(signals)
    stopped = [
        s for s in signals.find("place.gradient_stops") if explanation.code == "GS701" or s.layer == explanation.layer
    ]
    told = {str(name) for s in stopped for name in s.detail.get("parameters", ())}
    return bool(silent) and symptom.signal == "optimizer.never_updated" and len(silent & told) > len(silent) / 2


def _nothing_left(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Every channel of a ReLU is closed, and gradients arrived as exact zeros: in front of it, and at the weights that its zeros enter."""
    silent, zero = silent_parameters(signals)
    return explanation.signal == "place.dead_share" and explanation.value >= 1 and bool(silent) and silent == zero


def _what_the_clamp_left(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    return symptom.signal == "place.node_difference" and explanation.cause == "feature-scale"


def _through_one_hot_attention(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Gradients that arrived as exact zeros, in layers whose attention is one-hot: a softmax passes none to its scores there."""
    hot = {
        s.layer
        for s in measured(signals.find("attention.entropy", head=None))
        if s.value < AttentionExplosion.error_entropy
    }
    silent, zero = silent_parameters(signals)
    inside_hot = all(any(name.startswith(f"{layer}.") for layer in hot) for name in silent)
    return bool(silent) and silent == zero and inside_hot


def _copies(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Weights that are all alike give scores that add up in place of cancelling one another, before any training."""
    sharp = signals.kind == "model" or sharp_from_the_start(signals, symptom.layer, AttentionExplosion.warn_entropy)
    return explanation.signal == PLACE_COPIED_UNITS and sharp


def _sharp_from_the_start(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """The attention was saturated before any update: no rate has made it so, and its gradients jump."""
    return sharp_from_the_start(signals, explanation.layer, AttentionExplosion.warn_entropy)


def _grown_in_the_run(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Updates have made the weight wide: its first was as large as itself, or it began at less than half of its size."""
    weight = f"{symptom.layer}.weight"
    sizes = [s for s in signals.find("weight.rms") if s.detail.get("parameter") == weight and s.value > 0]
    early = [s for s in signals.find("update.ratio") if s.detail.get("parameter") == weight and s.detail.get("early")]
    grown = any(float(s.detail.get("first", s.value)) < s.value / 2 for s in sizes)
    return symptom.signal == "place.gain" and (grown or any(s.value > 1 / 2 for s in early))


def _since_the_start(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """The weights were drawn too wide: what grows behind them jumps at rates that suit others, and no update has made them so."""
    return explanation.signal.startswith(("place.", "gain.")) and not _grown_in_the_run(explanation, symptom, signals)


def _made_by_the_rate(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """It is the rate itself; or, at the end of a run, what was undone is a state of weights that the rate has made."""
    made = signals.kind == "trace" and symptom.cause in ("unsuitable-init", "dead-units", "attention-explosion")
    return made or symptom.cause == "learning-rate"


def _same_cause(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    return symptom.cause == explanation.cause


def _drawn_anew(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Weights were drawn too wide, those in front of the gates among them: an input that they have made large shuts a gate."""
    return "unsuitable-init" == explanation.cause != symptom.cause and not _of_gates(explanation, symptom, signals)


def _of_large_scores(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Weights that were drawn too wide, or scores that spread too far: large logits are rounded in any format."""
    large = explanation.cause in ("unsuitable-init", "attention-explosion")
    return large and symptom.signal in ("precision.rounding", "precision.fp16_headroom")


def _of_gates(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """All that was drawn anew belongs to gates that are stuck: it is how they are shut."""
    gates = tuple(f"{s.layer}." for s in signals.find("place.gradient_stops"))
    undone = [str(name) for s in signals.find(OPTIMIZER_UNDONE) for name in s.detail.get("names", ())]
    return symptom.cause == "unsuitable-init" and bool(undone) and all(name.startswith(gates) for name in undone)


def _alike_from_the_start(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """The nodes are alike at the first place that was looked at: a unit is open for all of them or for none."""
    begins = {s.layer for s in signals.find("place.node_difference") if s.detail.get("position") == 0}
    if explanation.signal == "place.shared_answers":
        begins = {s.layer for s in signals.find("place.shared_answers") if s.detail.get("apart") is False}
    return explanation.signal.startswith("place.") and explanation.layer in begins


def _alike(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    alike = ("place.node_difference", "place.shared_answers")
    return explanation.signal in alike and symptom.signal != OPTIMIZER_UNDONE


def _over_depth(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    return symptom.signal != "place.node_difference"


LINKS = tuple(
    Link(symptom, explanation, when)
    for explanation, when, symptoms in (
        # Data.
        ("GS407", _always, "GS502"),
        ("GS406", _from_large_data, "GS502 GS605 GS701"),
        ("GS406", _only_by_scale, "GS401"),
        ("GS406", _given_to_the_layer, "GS301 GS303"),
        ("GS406", _of_targets, "GS301 GS303"),
        # What drowns in other columns, or in a bias beside them, makes nodes alike.
        ("GS406", _told_by(OPTIMIZER_INPUT_SHARE), "GS704"),
        ("GS402", _without_edges, "GS704 GS701 GS604"),
        ("GS406", _always, "GS603 GS302 GS104 GS702 GS501"),
        ("GS406", _of_absurd_size, "GS601"),
        ("GS502", _scale_that_was_undone, "GS301 GS302 GS601"),
        ("GS502", _wrong_there, "GS301"),
        # Memory that was never initialised, before everything that its size brings about.
        ("GS605", _always, "GS502 GS302 GS204 GS203 GS103 GS104 GS501 GS701 GS702 GS704 GS601 GS603 GS604"),
        ("GS605", _same_layer, "GS201"),
        ("GS605", _behind, "GS301"),
        # What is divided by Inf is 0 for every node: units behind it are closed, and nothing comes back.
        ("GS501", _told_by(PLACE_OVERFLOW), "GS701 GS604 GS704 GS301 GS302"),
        # Where no neighbour has any weight, how sharp the attention is says nothing.
        ("GS503", _told_by(ATTENTION_VANISHED_SHARE), "GS406 GS301 GS302"),
        ("GS503", _eps_lost, "GS502 GS601 GS603"),
        ("GS602", _told_by(OPTIMIZER_EPS_LOST), "GS502 GS601 GS603"),
        ("GS503", _told_by(OPTIMIZER_LOST_SHARE), "GS608"),
        # A mask that leaves weight where none belongs: how sharp the rest is says nothing.
        ("GS305", _always, "GS301 GS302 GS304 GS408 GS601 GS603 GS702 GS704"),
        ("GS305", _wrong_there, "GS604"),
        ("GS408", _heard_beside_norms, "GS108"),
        ("GS108", _heard_through_norms, "GS408"),
        # Updates of all gradients so far: like those of a rate that grows.
        ("GS610", _always, "GS603 GS606 GS607 GS608"),
        ("GS610", _made_by_the_rate, "GS601 GS502 GS609 GS301 GS302 GS204 GS701 GS201"),
        # Aggregation.
        ("GS401", _far_off, "GS603 GS601"),
        ("GS401", _behind, "GS302 GS104 GS702 GS501 GS703"),
        # Parameters in front of scores that a saturated softmax cuts off.
        ("GS703", _mostly_cut, "GS601"),
        ("GS703", _nothing_comes_back, "GS604"),
        ("GS701", _nothing_comes_back, "GS604"),
        ("GS701", _nothing_left, "GS604"),
        *((stop, _stopped_there, "GS604") for stop in ("GS701", "GS104", "GS108")),
        ("GS703", _what_the_clamp_left, "GS704"),
        ("GS406", _through_one_hot_attention, "GS604"),
        ("GS302", _through_one_hot_attention, "GS604"),
        ("GS301", _through_one_hot_attention, "GS604"),
        # Learning rate before what it did to the weights.
        ("GS601", _always, "GS301 GS302 GS104 GS105 GS501 GS603 GS701 GS702"),
        ("GS601", _grown_in_the_run, "GS201"),
        ("GS201", _copies, "GS301 GS302"),
        ("GS201", _since_the_start, "GS603 GS104"),
        # Weights of 0 were filled on a copy, and gradients arrived.
        ("GS201", _told_by(PLACE_ZERO_WEIGHTS), "GS604 GS701 GS704 GS304"),
        # What eps damps, a larger rate makes up for.
        ("GS602", _always, "GS608"),
        # A gradient that was cut off is not damped, it is absent.
        ("GS604", _always, "GS602"),
        # What was seen in the data and the code, before what steps on copies can only undo; and that before what it brings about.
        *((seen, _always, "GS609") for seen in ("GS305", "GS402", "GS406", "GS407", "GS408", "GS502", "GS605")),
        ("GS601", _made_by_the_rate, "GS609"),
        *((same, _same_cause, "GS609") for same in ("GS201", "GS703")),
        ("GS104", _of_gates, "GS609"),
        ("GS609", _unless(_made_by_the_rate), "GS601 GS603"),
        ("GS609", _always, "GS608 GS602 GS604 GS203 GS204 GS304 GS701 GS704"),
        ("GS609", _unless(_same_cause), "GS301 GS302"),
        ("GS609", _drawn_anew, "GS104"),
        ("GS609", _of_large_scores, "GS501"),
        # Depth, behind a mis-placed normalisation or dead units.
        ("GS106", _always, "GS204 GS201"),
        ("GS106", _told_by("place.post_norms", OPTIMIZER_UNDONE), "GS203 GS103 GS601 GS603 GS301 GS302 GS704"),
        # Steps on a copy have shown that the stack hinders learning; nodes that it makes alike, and gradients that die in it, follow.
        ("GS103", _told_by(OPTIMIZER_UNDONE), "GS704 GS601 GS602 GS603 GS204 GS301 GS302"),
        # Nodes that cannot be told apart: no score, no gradient of a score, no sum makes a difference.
        ("GS704", _alike, "GS604 GS401 GS203 GS103 GS602 GS304"),
        ("GS301", _sharp_from_the_start, "GS603"),
        ("GS204", _part_of_explosion, "GS301"),
        ("GS204", _grown_on_the_way, "GS302"),
        ("GS301", _driven_by_attention, "GS204"),
        ("GS704", _alike_from_the_start, "GS701"),
        ("GS701", _unless(_alike_from_the_start), "GS704"),
        ("GS701", _always, "GS203 GS103"),
        ("GS103", _always, "GS203 GS201"),
        ("GS201", _always, "GS203"),
        ("GS204", _always, "GS501 GS702 GS703"),
        # What depth brings about.
        ("GS203", _over_depth, "GS704"),
        ("GS203", _always, "GS602 GS503"),
        # The overflow that has happened, then the one that is near.
        ("GS502", _same_layer, "GS501"),
        # Precision, behind what made the logits large.
        ("GS302", _same_layer, "GS501"),
        ("GS301", _same_layer, "GS501 GS303"),
    )
    for symptom in symptoms.split()
)
"""In the order of attribution; the first link that holds counts."""
