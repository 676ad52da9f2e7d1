"""What is recommended for which cause, and what never is."""

import pytest

from gnnstab import fixes
from gnnstab.fixes import FIXES
from gnnstab.fixes.by_hand import ByHand
from gnnstab.records import FIVE_CAUSES, FURTHER_CAUSES, Cause, Finding, LayerFacts, Signal, Signals

LAYERS = (LayerFacts("conv", "TransformerConv", 0, True, (8, 8), 8, 1, True, 0.0, 0, options={"beta": False}),)
SIGNALS = Signals("model", LAYERS)


def recommended(cause, status="root-cause", *codes, other=()):
    causes = (Cause(cause, status, ""), *other)
    findings = [Finding(c, "n", cause, "error", "high", None, None, None, "loss", 1.0, 0.0, "", "m") for c in codes]
    return [advice.fix for advice in fixes.recommend(causes, findings, SIGNALS)[0].fixes]


def test_an_exploding_net_never_gets_dropout_and_gets_beta_only_then():
    for status in ("root-cause", "contributing"):
        assert recommended("no-dropout", status, "GS204") == []
        assert recommended("beta-disabled", status, "GS204") == ["beta"]
        assert recommended("beta-disabled", status, "GS203") == []


def test_identity_paths_for_depth_and_never_the_small_residual():
    assert recommended("no-residual", "root-cause", "GS203") == ["pre-norm-residual", "residual-depth-init"]
    assert recommended("unsuitable-init", "root-cause", "GS204")[:2] == ["residual-depth-init", "unit-gain-init"]
    assert "depth-init" not in recommended("unsuitable-init", "root-cause", "GS203")


def test_the_sum_is_treated_first_and_never_by_the_mean_alone():
    assert recommended("sum-aggregation") == ["mean-aggregation-root", "norm-after-sum"]
    upstream = (Cause("sum-aggregation", "root-cause", ""),)
    assert recommended("attention-explosion", "contributing", "GS301", other=upstream) == recommended("sum-aggregation")
    assert recommended("attention-explosion", "root-cause", "GS301")[0] == "qk-clip"
    assert recommended("attention-explosion", "root-cause", "GS302")[0] == "qk-norm"
    grown = (Cause("unsuitable-init", "root-cause", ""),)
    assert recommended("attention-explosion", "root-cause", "GS302", other=grown)[0] == "residual-depth-init"


def test_large_weights_that_training_has_not_aligned_are_drawn_anew_and_others_scaled():
    causes = [Cause("attention-explosion", "root-cause", "")]
    first = []
    for alignment in (1.0, 1.39, 1.6):
        signals = Signals("model", LAYERS, values=(Signal("logit.alignment", alignment, "conv", 0),))
        first.append(fixes.recommend(causes, [], signals)[0].fixes[0].fix)
    assert first == ["reinit-qk", "reinit-qk", "qk-clip"]


def test_every_cause_that_can_be_the_root_has_a_fix():
    for cause in {*FIVE_CAUSES, *FURTHER_CAUSES} - {"beta-disabled"}:
        assert recommended(cause), cause


def test_absent_and_not_evaluable_causes_get_nothing_and_present_ones_say_that_nothing_asks_for_it():
    assert recommended("no-dropout", "absent") == recommended("no-dropout", "not-evaluable") == []
    (cause,) = fixes.recommend([Cause("no-dropout", "present", "")], [], SIGNALS)
    assert cause.fixes[0].change == "TransformerConv(8, 8, dropout=0.1)  # conv"
    assert cause.fixes[0].verdict == "not-tested"
    assert "no symptom asks for it" in cause.fixes[0].note


def test_every_root_cause_with_a_fix_names_known_fixes_and_how_to_test_them():
    for cause in (*FIVE_CAUSES, *FURTHER_CAUSES):
        (found,) = fixes.recommend([Cause(cause, "root-cause", "")], [], SIGNALS)
        for advice in found.fixes:
            assert advice.fix in FIXES
            by_hand = isinstance(FIXES[advice.fix], ByHand)
            assert ("by hand" if by_hand else f"gnnstab verify --fix {advice.fix}") in advice.note


def test_the_table_is_complete_and_its_causes_are_known():
    for name, fix in FIXES.items():
        assert name == fix.name
        assert set(fix.causes) <= {*FIVE_CAUSES, *FURTHER_CAUSES}
        assert not (fix.keeps_function and fix.needs_fresh_weights)
        assert fix.__doc__
        assert fix.cost


@pytest.mark.parametrize(
    ("signal", "says"),
    [
        (
            Signal("place.weight_sum", 40.0, "conv", detail={"over": "axis 1 of 2", "messages": True}),
            "torch_geometric.utils.softmax(scores, index)",
        ),
        (Signal("place.weight_sum", 40.0, "attend", detail={"over": "axis 1 of 3"}), "scores.softmax(-1)"),
        (
            Signal("place.gradient_stops", 2.0, "span_norm", detail={"operation": "layer_norm"}),
            "in place of span_norm(x)",
        ),
    ],
    ids=["softmax over all edges", "softmax over rows", "norm of one number"],
)
def test_the_change_undoes_what_the_rule_has_seen(signal, says):
    signals = Signals("model", (), (signal,))
    (advised,) = fixes.recommend((Cause("normalization-misuse", "root-cause", ""),), [], signals)
    assert [fix.fix for fix in advised.fixes] == ["undo-normalisation"]
    assert says in advised.fixes[0].change
