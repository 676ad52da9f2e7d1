"""Facts of a checkpoint become signals, and everything that is missing says what to pass."""

from __future__ import annotations

import pytest

from gnnstab.checkpoint import load, recover
from gnnstab.checkpoint.facts import CheckpointFacts, Undecided
from gnnstab.errors import NotEvaluable
from gnnstab.records import SIGNALS, Blind, LayerFacts, Signal
from gnnstab.signals.weights import from_checkpoint

LAYER = LayerFacts(name="conv", kind="TransformerConv", position=0, attention=True, heads=2)
FACTS = CheckpointFacts(
    path="x.pt",
    layers=(LAYER,),
    values=(Signal("logit.spectral", 0.5, "conv", 0, source="weights"),),
    undecided=(Undecided("dropout", "a probability is no tensor", "--model pkg.mod:factory", ("conv",)),),
    assumptions=("heads=2: given",),
    linear_initialisation="orthogonal(1.41)",
    trained=True,
    progress={"epoch": 3, "global_step": 40},
)


def test_what_the_rules_find() -> None:
    signals = from_checkpoint(FACTS)
    assert signals.kind == "checkpoint"
    assert signals.value("logit.spectral", layer="conv", head=0) == 0.5
    assert signals.depth == 1
    for key, expected in {
        "trained": True,
        "linear_initialisation": "orthogonal(1.41)",
        "assumptions": ["heads=2: given"],
        "layers_expected": 1,
        "step": 40,
    }.items():
        assert signals.context[key] == expected


def test_every_missing_signal_says_what_to_pass() -> None:
    signals = from_checkpoint(FACTS)
    for name in SIGNALS:
        reason = signals.why_missing(name)
        if not name.startswith(("logit.", "gain.", "weight.")):
            assert any(word in reason for word in ("--model", "--batch", "Monitor", "save optimizer")), (
                f"{name}: {reason}"
            )
    for name in ("attention.entropy", "score.max_abs", "gradient.ratio", "aggregation.exponent"):
        with pytest.raises(NotEvaluable, match=r"--model pkg\.mod:factory --batch FILE"):
            signals.need(name)
    assert "--model" in signals.why_missing("dropout")


def test_open_heads_and_broken_weights_explain_missing_norms() -> None:
    from dataclasses import replace

    open_heads = replace(FACTS, undecided=(Undecided("heads", "no trace", "--heads N", ("conv",)),))
    assert "--heads N" in from_checkpoint(open_heads).why_missing("logit.frobenius")
    broken = replace(FACTS, values=(Signal("weight.non_finite", 2.0, "conv", source="weights"),))
    assert "NaN or Inf" in from_checkpoint(broken).why_missing("gain.value")


def test_an_optimizer_that_could_not_be_tied_is_explained() -> None:
    from dataclasses import replace

    tied = replace(FACTS, optimizers=("optimizer: 3 entries that cannot be tied",))
    assert "cannot be tied" in from_checkpoint(tied).why_missing("optimizer.gradient_rms")


def test_no_layer_at_all() -> None:
    signals = from_checkpoint(CheckpointFacts("x.pt"))
    assert "no TransformerConv" in signals.why_missing("attention.entropy")
    other = from_checkpoint(CheckpointFacts("x.pt", unjudged=(Blind("gat", "score", "looks like GATConv"),)))
    assert "gat looks like GATConv" in other.why_missing("logit.spectral")
    assert other.context["layers_expected"] == 1


def test_a_real_file(request: pytest.FixtureRequest) -> None:
    path = request.config.rootpath / "tests" / "data" / "informarl" / "healthy_3agents" / "critic.pt"
    signals = from_checkpoint(recover(load(path)))
    assert signals.depth == 3
    assert signals.context["trained"] is True
    assert all(s.source == "weights" for s in signals.values)
    assert max(s.value for s in signals.need("weight.non_finite")) == 0
