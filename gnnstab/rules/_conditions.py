"""What ties a symptom to its explanation on the target at hand: the conditions of the links between findings."""

from __future__ import annotations

import math
from collections.abc import Callable

from gnnstab.records import Finding, Signals
from gnnstab.records.vocabulary import (
    LOSS_OVER_ZERO,
    OPTIMIZER_EPS_LOST,
    OPTIMIZER_INPUT_SHARE,
    OPTIMIZER_LOSS_RISE,
    OPTIMIZER_UNDONE,
    PLACE_COPIED_UNITS,
    PLACE_UNIFORM_WEIGHTS,
    PRECISION_ROUNDING,
)
from gnnstab.rules._rate_words import calm_rate
from gnnstab.rules.gs104_gate_saturated import GATES
from gnnstab.rules.gs301_attention_explosion import AttentionExplosion
from gnnstab.rules.gs401_sum_aggregation_growth import SumAggregationGrowth
from gnnstab.rules.gs406_feature_scale import FeatureScale
from gnnstab.rules.gs408_batch_dependence import BatchDependence
from gnnstab.rules.gs604_never_updated_parameter import silent_parameters
from gnnstab.rules.queries import large_gain, largest, measured, sharp_from_the_start, stops

Condition = Callable[[Finding, Finding, Signals], bool]
"""(symptom, explanation, signals) → whether the mechanism ties the two on this target."""


def unless(reverse: Condition) -> Condition:
    """What holds where the explanation does not itself follow from the symptom."""
    return lambda symptom, explanation, signals: not reverse(explanation, symptom, signals)


def told_by(*names: str) -> Condition:
    """What holds where the explanation rests on one of these signals."""
    return lambda symptom, explanation, signals: explanation.signal in names


def always(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    return True


def scale_that_was_undone(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """The same step without an input's scale was finite: that scale stands in every score as well, and in its square."""
    return explanation.cause == "feature-scale"


def same_layer(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    return symptom.layer == explanation.layer


def wrong_there(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """An operation of the layer is undefined for scores that a softmax would bear, or its softmax runs over a wrong axis: that of one head has one entry."""
    return explanation.cause in ("undefined-operation", "normalization-misuse") and symptom.layer == explanation.layer


def behind(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """The symptom's layer comes after the explanation's and not beside it; unknown positions count as so."""
    own, other = signals.layer(symptom.layer or ""), signals.layer(explanation.layer or "")
    return own is None or other is None or (own.position > other.position and other.name not in (own.beside or ()))


def rounded_to_one(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Logits that 16 bits round to one number have weights that no parameter moves."""
    return symptom.signal == PLACE_UNIFORM_WEIGHTS and explanation.signal == PRECISION_ROUNDING


def only_by_scale(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """The sum would be small if the features were: divide their scale out and look again, or take steps on a copy without it."""
    if symptom.signal == OPTIMIZER_LOSS_RISE:
        told = signals.find(OPTIMIZER_INPUT_SHARE)
        return any(s.value > FeatureScale.taken and explanation.layer in s.detail.get("names", ()) for s in told)
    rms = measured(signals.find("aggregation.rms", layer=symptom.layer))
    scale = measured(signals.find("feature.rms"))
    if not rms or not scale:
        return False
    return largest(rms).value / max(1.0, largest(scale).value) <= SumAggregationGrowth.rms


def part_of_explosion(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    return large_gain(symptom.layer, signals)


def driven_by_attention(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Saturated attention carries the gradient through its sharp scores, unless all weights are large alike."""
    return explanation.signal.startswith("attention.") and not large_gain(explanation.layer, signals)


def eps_lost(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Updates that divide 0 by 0, whatever the rate."""
    return explanation.signal == OPTIMIZER_EPS_LOST and (
        symptom.code != "GS502" or symptom.signal == "weight.non_finite"
    )


def far_off(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """An output that sums have made many times too large gives gradients as large, and a loss that jumps."""
    over = [s.value for s in signals.find(LOSS_OVER_ZERO)]
    return explanation.signal == LOSS_OVER_ZERO or max(over, default=0.0) > SumAggregationGrowth.far_off


def grown_on_the_way(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """A later layer's input has grown through the layers before it."""
    facts = signals.layer(symptom.layer or "")
    first = min((layer.position for layer in signals.attention_layers), default=0)
    return facts is not None and facts.position > first


def given_to_the_layer(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """A large tensor of the batch goes into the layer beside the node states, as edge features do."""
    fed = (
        str(name) for s in signals.find("place.rms") if s.layer == explanation.layer for name in s.detail.get("fed", ())
    )
    return explanation.signal == "place.rms" and any(f"{name}.".startswith(f"{symptom.layer}.") for name in fed)


_MOST = 0.5
"""Share of the entries that a clamp cuts from which on the rest says little about the whole."""

_NEARLY_ALL = 0.9
"""Share of the entries from which on what a clamp leaves can be alike up to rounding."""

_MANY = 10
"""Times the limit of GS406 from which on the size of the data explains values that leave the number format."""


def from_large_data(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Measured values of many times their limit that reach the weights make everything behind them large."""
    own = ("non-finite-data", "uninitialized-parameter", "undefined-operation", "masking", "precision")
    large = explanation.signal == "place.rms" and explanation.value > _MANY * FeatureScale.rms
    return large and not explanation.message.startswith("the targets") and symptom.cause not in own


def of_absurd_size(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    return explanation.signal == "place.rms" and explanation.value > FeatureScale.absurd


def nothing_comes_back(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Gradients that are 0 for every parameter: a clamp or a ReLU that is closed everywhere passes none."""
    if symptom.signal == "weight.grad_rms":
        return True
    seen = [s for s in signals.find("optimizer.never_updated") if s.value > 0]
    return bool(seen) and all(s.value == s.detail.get("of") and s.detail.get("zero") for s in seen)


def of_targets(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Targets of another scale drive every weight that way: what grows on the way follows."""
    return explanation.signal == "loss" or explanation.message.startswith("the targets")


def mostly_cut(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """The loss jumps where a clamp lets a gradient through at a few entries only."""
    return symptom.signal == "loss.first_rise" and explanation.value > _MOST


def heard_beside_norms(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Norms that miss what the whole layer was not given: graphs hear each other where every norm is told which node is whose, too."""
    return not symptom.signal and not heard_through_norms(explanation, symptom, signals)


def heard_through_norms(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Graphs hear nothing that counts of each other, or nobody has looked, where every norm is told which node is whose."""
    found = signals.find("place.alone_difference")
    return not any(s.detail.get("content_with_norms_apart", 0.0) > BatchDependence.moves for s in found)


def without_edges(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Error: the nodes have nothing to answer with. Else most of what is read hears nothing, and no loss reaches what makes the messages."""
    return explanation.severity == "error" or symptom.signal == "optimizer.never_updated"


def stopped_there(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Most of the parameters stand in front of an operation that hands no gradient on."""
    silent, _ = silent_parameters(signals)
    stopped = [
        s for s in signals.find("place.gradient_stops") if explanation.code == "GS701" or s.layer == explanation.layer
    ]
    told = {str(name) for s in stopped for name in s.detail.get("parameters", ())}
    return bool(silent) and symptom.signal == "optimizer.never_updated" and len(silent & told) > len(silent) / 2


def nothing_left(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Every channel of a ReLU is closed, and gradients arrived as exact zeros: in front of it, and at the weights that its zeros enter."""
    silent, zero = silent_parameters(signals)
    return explanation.signal == "place.dead_share" and explanation.value >= 1 and bool(silent) and silent == zero


def what_the_clamp_left(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Of an input that is cut to one value, or of states nearly all of which are."""
    cut = explanation.cause == "feature-scale" or explanation.value > _NEARLY_ALL
    return symptom.signal == "place.node_difference" and cut


def through_one_hot_attention(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Gradients that arrived as exact zeros, in layers whose attention is one-hot: a softmax passes none to its scores there."""
    hot = {
        s.layer
        for s in measured(signals.find("attention.entropy", head=None))
        if s.value < AttentionExplosion.error_entropy
    }
    silent, zero = silent_parameters(signals)
    inside_hot = all(any(name.startswith(f"{layer}.") for layer in hot) for name in silent)
    return bool(silent) and silent == zero and inside_hot


def copies(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Weights that are all alike give scores that add up in place of cancelling one another, before any training."""
    sharp = signals.kind == "model" or sharp_from_the_start(signals, symptom.layer, AttentionExplosion.warn_entropy)
    return explanation.signal == PLACE_COPIED_UNITS and sharp


def saturated_before_training(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """The attention was saturated before any update: no rate has made it so, and its gradients jump."""
    return sharp_from_the_start(signals, explanation.layer, AttentionExplosion.warn_entropy)


def grown_in_the_run(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Updates have made the weight wide: its first was as large as itself, or it began at less than half of its size."""
    weight = f"{symptom.layer}.weight"
    sizes = [s for s in signals.find("weight.rms") if s.detail.get("parameter") == weight and s.value > 0]
    early = [s for s in signals.find("update.ratio") if s.detail.get("parameter") == weight and s.detail.get("early")]
    grown = any(float(s.detail.get("first", s.value)) < s.value / 2 for s in sizes)
    return symptom.signal == "place.gain" and (grown or any(s.value > 1 / 2 for s in early))


def since_the_start(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """The weights were drawn too wide: what grows behind them jumps at rates that suit others, and no update has made them so."""
    return explanation.signal.startswith(("place.", "gain.")) and not grown_in_the_run(explanation, symptom, signals)


def made_by_the_rate(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """It is the rate itself; or, at the end of a run, what was undone is a state of weights that the rate has made."""
    made = signals.kind == "trace" and symptom.cause in ("unsuitable-init", "dead-units", "attention-explosion")
    return made or symptom.cause == "learning-rate"


def same_cause(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    return symptom.cause == explanation.cause


def drawn_anew(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Weights were drawn too wide, those in front of the gates among them: an input that they have made large shuts a gate."""
    return "unsuitable-init" == explanation.cause != symptom.cause and not of_gates(explanation, symptom, signals)


def of_large_scores(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Weights that were drawn too wide, or scores that spread too far: large logits are rounded in any format."""
    large = explanation.cause in ("unsuitable-init", "attention-explosion")
    return large and symptom.signal in ("precision.rounding", "precision.fp16_headroom")


def of_gates(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """All that was drawn anew belongs to gates that are stuck: it is how they are shut."""
    gates = tuple(f"{s.layer}." for s in signals.find("place.gradient_stops"))
    undone = [str(name) for s in signals.find(OPTIMIZER_UNDONE) for name in s.detail.get("names", ())]
    return symptom.cause == "unsuitable-init" and bool(undone) and all(name.startswith(gates) for name in undone)


def of_targets_that_drove(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Targets far beyond the output have trained the weights of a run, and what is alike or shut now was not from the start."""
    driven = signals.kind == "trace" and of_targets(symptom, explanation, signals)
    return driven and not alike_from_the_start(explanation, symptom, signals)


def shut_on_the_way(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """A tanh or sigmoid that stands at its limit on every entry gives every node the same: nodes that differed before it are alike."""
    return bool(stops(signals, *GATES)) and not alike_from_the_start(explanation, symptom, signals)


def alike_from_the_start(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """The nodes are alike at the first place that was looked at: a unit is open for all of them or for none."""
    begins = {s.layer for s in signals.find("place.node_difference") if s.detail.get("position") == 0}
    if explanation.signal == "place.shared_answers":
        begins = {s.layer for s in signals.find("place.shared_answers") if s.detail.get("apart") is False}
    return explanation.signal.startswith("place.") and explanation.layer in begins


def weights_of_alike_nodes(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Neighbours that come in alike have equal weights, whatever the softmax is given."""
    alike = explanation.signal == "place.shared_answers" or alike_from_the_start(symptom, explanation, signals)
    return symptom.signal == PLACE_UNIFORM_WEIGHTS and alike


def alike_rows_that_norms_spread(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Rows that are alike where they come in: a normalisation divides their rounding by √eps, forwards and backwards, and no loss falls."""
    begins = {
        s.layer
        for s in measured(signals.find("place.node_difference"))
        if s.detail.get("position") == 0 and not s.value
    }
    same = explanation.signal == "place.shared_answers" and explanation.layer in begins
    return symptom.signal == "place.post_norms" and (same or alike_from_the_start(symptom, explanation, signals))


def norms_of_rows_that_differed(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Post-norms hindered the training of nodes that were not alike from the start."""
    hindering = explanation.signal in ("place.post_norms", OPTIMIZER_UNDONE)
    return hindering and not alike_rows_that_norms_spread(explanation, symptom, signals)


def alike(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    alike = ("place.node_difference", "place.shared_answers")
    return explanation.signal in alike and symptom.signal != OPTIMIZER_UNDONE


def over_depth(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    return symptom.signal != "place.node_difference"


def of_a_known_cause(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    return bool(explanation.cause)


def beyond_every_number(symptom: Finding, explanation: Finding, signals: Signals) -> bool:
    """Steps on a copy overflow at this rate and are calm at a lower one: an operation of which no more is known overflowed so."""
    rose = explanation.signal == OPTIMIZER_LOSS_RISE and explanation.value == math.inf
    return not symptom.cause and rose and calm_rate(signals) is not None
