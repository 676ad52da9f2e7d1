"""From pairs of trainings to a verdict, on made-up losses."""

import math
from functools import partial

import pytest

from gnnstab.verification._arms import ArmResult
from gnnstab.verification._judging import Pairs, by_training, loss_change, too_wide
from gnnstab.verification._verdict import Verdict
from gnnstab.verification._verdict_text import verdicts_text

INF = math.inf
UNCLEAR = (0.2, 1.5, 0.5)
"""Losses on what was not seen: better than 1 on average, and too far apart to say so."""


def pairs(before, after, **options):
    """Arms of three seeds, or of as many as there are losses; each arm as losses of the training and on what is kept from it."""

    def arm(own, unseen=None, best=None):
        own, unseen, best = (x if isinstance(x, tuple) else (x,) * 3 for x in (own, unseen, best))
        return tuple(
            ArmResult(start=1.0, final=f, unseen=u, best=b) for f, u, b in zip(own, unseen, best, strict=False)
        )

    return Pairs(arm(*before), arm(*after), **options)


VERDICTS = {
    "the fix ends the training": ((1.0,), (INF,), "made-worse", "breaks off"),
    "the seeds scatter": ((1.0,), ((0.5, 1.0, 2.0),), "inconclusive", "more seeds or steps would tell"),
    "better in every seed": (((1.0, 1.1, 0.9),), ((0.5, 0.6, 0.4),), "confirmed", "is not worse"),
    "worse": ((0.1,), (0.3,), "made-worse", "or more above"),
    "one batch learnt by heart either way": ((1.5e-8,), (3.4e-8,), "inconclusive", "learns all it is shown by heart"),
    "learnt by heart without the fix alone": ((1.5e-8,), (0.3,), "made-worse", "or more above"),
    "what it has not seen decides of those too": ((1.5e-8, 0.1), (3.4e-8, 0.3), "made-worse", "or more above"),
    "equal": ((0.1,), (0.1,), "confirmed", "nothing new fires, the short training is not worse"),
    "learns nothing": ((0.1, 2.0), (1.2, 1.0), "inconclusive", "ends above its start"),
    "ends at its start": ((0.1, 2.0), (1.0, 1.0), "confirmed", "on what it has not seen"),
    "unclear and learnt more closely": ((0.1, 1.0), (0.05, UNCLEAR), "confirmed", "not seen either"),
    "unclear and learnt as closely": ((0.1, 1.0), (0.1, UNCLEAR), "confirmed", "not seen either"),
    "surer of what it has not seen, and better at its best": (
        (0.9, 1.0, 1.0),
        (1e-3, 4.0, 0.9),
        "confirmed",
        "at its best",
    ),
    "worse at its best too": ((0.3, 1.0, 1.0), (1e-3, 4.0, 1.5), "made-worse", "not seen, at its best"),
    "learns nothing without the fix": (
        (1.0, 1.0, 1.0),
        (1e-3, 4.0, 1.5),
        "inconclusive",
        "cannot learn by heart either",
    ),
    "learns nothing without the fix, and worse with it": (
        (0.9, 1.0, 1.0),
        (1.2, 4.0, 1.5),
        "made-worse",
        "or more above",
    ),
    "no number on what it has not seen, either way": ((1.0, INF), (0.5, INF), "inconclusive", "is no number"),
    "no number there without the fix alone": ((1.0, INF), (0.5, 1.0), "confirmed", "is not worse"),
    "unclear and learnt less closely": ((0.1, 1.0), (0.3, UNCLEAR), "inconclusive", "may be worse"),
}
"""Arms without and with the fix, each (losses of the training, losses on what is kept from it, the lowest of these) → verdict and part of its reason."""


@pytest.mark.parametrize("name", VERDICTS)
def test_the_training_decides(name):
    before, after, verdict, reason = VERDICTS[name]
    told = by_training(pairs(before, after))
    assert told[0] == verdict
    assert reason in told[1]


@pytest.mark.parametrize(
    ("unseen", "verdict"),
    [
        ((0.9, 1.0, 0.95), "confirmed"),
        ((1.5, 1.6, 1.55), "made-worse"),
        ((0.7, 2.0, 2.5), "inconclusive"),
        (INF, "made-worse"),
    ],
)
@pytest.mark.parametrize("own", [0.01, 0.1, 0.3])
def test_what_was_not_seen_decides_where_it_is_clear_whatever_the_batch_that_was_learnt(unseen, own, verdict):
    """In both directions: neither a batch learnt by heart nor one that is learnt less closely counts."""
    told = by_training(pairs((0.1, 1.0), (own, unseen)))
    assert told[0] == verdict
    assert unseen == INF or "on what it has not seen" in told[1]


def test_a_training_that_breaks_off_counts_as_an_infinite_loss():
    assert loss_change(pairs((INF,), (1.0,))) == (-INF, -INF)
    low, high = loss_change(pairs((0.1, 1.0), (0.1, UNCLEAR)), "unseen")
    assert low < (low + high) / 2 < 0 < high


@pytest.mark.parametrize("of_alive", [0.5, 1.0, 2.0])
def test_one_or_two_seeds_settle_nothing_where_chance_plays_a_part(of_alive):
    for seeds, said in ((1, "1 seed does not tell"), (2, "2 seeds do not tell")):
        few = pairs(((0.8,) * seeds,), ((0.8 * of_alive,) * seeds,))
        verdict, reason = by_training(few)
        assert verdict == "inconclusive"
        assert said in reason
        assert loss_change(few) is None
        assert not too_wide(few)
    # One pair says all where every seed gives the same training.
    one = by_training(pairs(((0.8,),), ((0.8 * of_alive,),), by_chance=False))
    assert one[0] == {0.5: "confirmed", 1.0: "confirmed", 2.0: "made-worse"}[of_alive]


@pytest.mark.parametrize(
    ("after", "open_yet"),
    [
        ((0.3, UNCLEAR), True),
        ((0.05, UNCLEAR), False),  # The training's own loss clears it.
        ((0.3, (0.7, 2.0, 2.5)), False),  # Worse on average.
        ((0.3, (0.9, 1.0, 0.95)), False),  # Clear.
        (((),), False),
    ],
)
def test_only_a_fix_that_looks_harmless_and_is_not_shown_to_be_is_trained_more_often(after, open_yet):
    assert too_wide(pairs((0.1, 1.0) if after != ((),) else after, after)) is open_yet


@pytest.mark.parametrize("own", [0.05, 0.3])
def test_batches_that_the_weights_as_given_may_know_do_not_speak_against_drawing_them_anew(own):
    arms = ((0.1, 1.0, 0.5), (own, 4.0, 0.6))
    assert by_training(pairs(*arms))[0] == "made-worse"
    verdict, reason = by_training(pairs(*arms, redrawn=True))
    assert (verdict, "was not trained on" in reason) == (("inconclusive", True) if own < 0.1 else ("made-worse", False))


def test_what_follows_from_a_finding_that_stood_before_is_no_new_one():
    arm = partial(ArmResult, value=1.0)
    before = (arm(codes={"GS406": "error"}),) * 3
    after = (arm(codes={"GS406": "error", "GS302": "error"}, follows={"GS302": "GS406"}),) * 3
    assert Pairs(before, after).new_codes == ()
    assert Pairs((arm(),) * 3, after).new_codes == ("GS302", "GS406")


@pytest.mark.parametrize("several", [1, 3, 5])
def test_a_reason_is_told_whole(several):
    reason = f"the signal crosses its threshold, but {'what was measured ' * 14}decides nothing"
    shown = verdicts_text([Verdict("qk-clip", "inconclusive", reason, rate="at learning rate 0.1")] * several)
    assert " ".join(shown.split()).count(reason) == several
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(("stood", "new"), [(0.97, ()), (0.4, ("GS401",)), (None, ("GS401",))])
def test_what_stood_behind_a_cured_fault_is_not_made_by_the_fix(stood, new):
    before = ArmResult(codes={"GS301": "warning"}, numbers={} if stood is None else {"GS401": stood})
    after = ArmResult(codes={"GS401": "warning"}, numbers={"GS401": 0.98})
    found = Pairs((before,) * 3, (after,) * 3)
    assert found.new_codes == new
    assert {*found.new_codes, *found.unmasked} == {"GS401"}
