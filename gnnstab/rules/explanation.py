"""Which finding follows from which: data first, then aggregation, attention, dead units, depth, smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gnnstab.records import SEVERITIES, Finding, Signals
from gnnstab.records.vocabulary import (
    ATTENTION_VANISHED_SHARE,
    OPTIMIZER_INPUT_SHARE,
    OPTIMIZER_LOST_SHARE,
    OPTIMIZER_UNDONE,
    PLACE_BROADCAST_TARGETS,
    PLACE_CLOSED_CONTENT,
    PLACE_OVERFLOW,
    PLACE_ZERO_WEIGHTS,
)
from gnnstab.rules import _conditions as on


@dataclass(frozen=True, slots=True)
class Link:
    """``symptom`` follows from ``explanation`` where ``when`` holds."""

    symptom: str
    explanation: str
    when: on.Condition


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


LINKS = tuple(
    Link(symptom, explanation, when)
    for explanation, when, symptoms in (
        # Data.
        ("GS407", on.always, "GS502"),
        ("GS406", on.from_large_data, "GS502 GS605 GS701"),
        ("GS406", on.only_by_scale, "GS401"),
        ("GS406", on.given_to_the_layer, "GS301 GS303"),
        ("GS406", on.of_targets, "GS301 GS303"),
        # What drowns in other columns, or in a bias beside them, makes nodes alike.
        ("GS406", on.told_by(OPTIMIZER_INPUT_SHARE), "GS704"),
        # Targets far from zero drive every row the same way.
        ("GS406", on.of_targets_that_drove, "GS704 GS701"),
        ("GS402", on.without_edges, "GS704 GS701 GS604"),
        ("GS406", on.always, "GS603 GS302 GS104 GS702 GS501"),
        ("GS406", on.of_absurd_size, "GS601"),
        ("GS502", on.scale_that_was_undone, "GS301 GS302 GS601"),
        ("GS502", on.wrong_there, "GS301"),
        # Memory that was never initialised, before everything that its size brings about.
        ("GS605", on.always, "GS502 GS302 GS204 GS203 GS103 GS104 GS501 GS701 GS702 GS704 GS601 GS603 GS604"),
        ("GS605", on.same_layer, "GS201"),
        ("GS605", on.behind, "GS301"),
        # What is divided by Inf is 0 for every node: units behind it are closed, and nothing comes back.
        ("GS501", on.told_by(PLACE_OVERFLOW), "GS701 GS604 GS704 GS301 GS302"),
        # Where no neighbour has any weight, how sharp the attention is says nothing.
        ("GS503", on.told_by(ATTENTION_VANISHED_SHARE), "GS406 GS301 GS302"),
        ("GS602", on.eps_lost, "GS502 GS601 GS603"),
        ("GS503", on.told_by(OPTIMIZER_LOST_SHARE), "GS608"),
        # A mask that leaves weight where none belongs: how sharp the rest is says nothing.
        ("GS305", on.always, "GS301 GS302 GS304 GS408 GS601 GS603 GS702"),
        ("GS305", on.unless(on.weights_of_alike_nodes), "GS704"),
        ("GS704", on.weights_of_alike_nodes, "GS305"),
        ("GS305", on.wrong_there, "GS604"),
        ("GS501", on.rounded_to_one, "GS305"),
        # Of what reads nothing but padding no graph differs from another, whatever the norms before it do.
        ("GS305", on.told_by(PLACE_CLOSED_CONTENT), "GS108 GS604 GS703"),
        # Asked for one number in all rows, a model unlearns what tells them apart.
        ("GS408", on.told_by(PLACE_BROADCAST_TARGETS), "GS301 GS302 GS304 GS601 GS608 GS701 GS703 GS704 GS406"),
        ("GS408", on.heard_beside_norms, "GS108"),
        ("GS108", on.heard_through_norms, "GS408"),
        # Updates of all gradients so far: like those of a rate that grows.
        ("GS610", on.always, "GS603 GS606 GS607 GS608"),
        ("GS610", on.made_by_the_rate, "GS601 GS502 GS609 GS301 GS302 GS204 GS701 GS201"),
        # Aggregation.
        ("GS401", on.far_off, "GS603 GS601"),
        ("GS401", on.behind, "GS302 GS104 GS702 GS501 GS703"),
        # Parameters in front of scores that a saturated softmax cuts off.
        ("GS703", on.mostly_cut, "GS601"),
        ("GS703", on.nothing_comes_back, "GS604"),
        ("GS701", on.nothing_comes_back, "GS604"),
        ("GS701", on.nothing_left, "GS604"),
        *((stop, on.stopped_there, "GS604") for stop in ("GS701", "GS104", "GS108")),
        ("GS703", on.what_the_clamp_left, "GS704"),
        ("GS406", on.through_one_hot_attention, "GS604"),
        ("GS302", on.through_one_hot_attention, "GS604"),
        ("GS301", on.through_one_hot_attention, "GS604"),
        # Learning rate before what it did to the weights.
        ("GS601", on.always, "GS301 GS302 GS104 GS105 GS501 GS603 GS701 GS702"),
        ("GS601", on.grown_in_the_run, "GS201"),
        ("GS601", on.shut_on_the_way, "GS704"),
        ("GS201", on.copies, "GS301 GS302"),
        ("GS201", on.since_the_start, "GS603 GS104"),
        # Weights of 0 were filled on a copy, and gradients arrived.
        ("GS201", on.told_by(PLACE_ZERO_WEIGHTS), "GS604 GS701 GS704 GS304"),
        # What eps damps, a larger rate makes up for.
        ("GS602", on.always, "GS608"),
        # A gradient that was cut off is not damped, it is absent.
        ("GS604", on.always, "GS602"),
        # What was seen in the data and the code, before what steps on copies can only undo; and that before what it brings about.
        *((seen, on.always, "GS609") for seen in ("GS305", "GS402", "GS406", "GS407", "GS408", "GS605", "GS705")),
        ("GS502", on.of_a_known_cause, "GS609"),
        # The steps on copies that overflow are undone by a lower rate.
        ("GS601", on.beyond_every_number, "GS502"),
        ("GS601", on.made_by_the_rate, "GS609"),
        *((same, on.same_cause, "GS609") for same in ("GS201", "GS501", "GS503", "GS504", "GS703")),
        ("GS104", on.of_gates, "GS609"),
        ("GS609", on.unless(on.made_by_the_rate), "GS601 GS603"),
        ("GS609", on.always, "GS608 GS602 GS604 GS203 GS204 GS304 GS701 GS704"),
        ("GS609", on.unless(on.same_cause), "GS301 GS302"),
        ("GS609", on.drawn_anew, "GS104"),
        ("GS609", on.of_large_scores, "GS501"),
        # Depth, behind a mis-placed normalisation or dead units.
        ("GS106", on.always, "GS204 GS201"),
        ("GS106", on.told_by("place.post_norms", OPTIMIZER_UNDONE), "GS203 GS103 GS601 GS603 GS301 GS302"),
        # A norm divides what rounding leaves of nodes that come in alike: it grows on the way back, whatever the order of norm and layer.
        ("GS704", on.alike_rows_that_norms_spread, "GS106"),
        ("GS106", on.norms_of_rows_that_differed, "GS704"),
        # Steps on a copy have shown that the stack hinders learning; nodes that it makes alike, and gradients that die in it, follow.
        ("GS103", on.told_by(OPTIMIZER_UNDONE), "GS704 GS601 GS602 GS603 GS204 GS301 GS302"),
        # Nodes that cannot be told apart: no score, no gradient of a score, no sum makes a difference.
        ("GS704", on.alike, "GS604 GS401 GS203 GS103 GS602 GS304"),
        ("GS301", on.saturated_before_training, "GS603"),
        ("GS204", on.part_of_explosion, "GS301"),
        ("GS204", on.grown_on_the_way, "GS302"),
        ("GS301", on.driven_by_attention, "GS204"),
        ("GS704", on.alike_from_the_start, "GS701"),
        ("GS701", on.unless(on.alike_from_the_start), "GS704"),
        ("GS701", on.always, "GS203 GS103"),
        ("GS103", on.always, "GS203 GS201"),
        ("GS201", on.always, "GS203"),
        ("GS204", on.always, "GS501 GS702 GS703"),
        # What depth brings about.
        ("GS203", on.over_depth, "GS704"),
        ("GS203", on.always, "GS602 GS503"),
        # The overflow that has happened, then the one that is near.
        ("GS502", on.same_layer, "GS501"),
        # Precision, behind what made the logits large.
        ("GS302", on.same_layer, "GS501"),
        ("GS301", on.same_layer, "GS501 GS303"),
    )
    for symptom in symptoms.split()
)
"""In the order of attribution; the first link that holds counts."""
