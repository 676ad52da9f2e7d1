"""The protocol on networks whose truth is known, kept tiny; the full reproduction is tests/benchmarks/proof.py."""

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.errors import FixError, UsageError
from gnnstab.records import Cause, Coverage, Diagnosis, FixAdvice, Signal, Signals, Target
from gnnstab.rules.gs601_learning_rate_too_high import LearningRateTooHigh
from gnnstab.verification import _judging as judging
from gnnstab.verification import prove
from gnnstab.verification._fresh_copies import fresh_twin
from gnnstab.verification._objective import objective_for, shuffled
from gnnstab.verification.measuring import measured_on, observe
from gnnstab.verification.targets import choose
from models.informarl import Actor, load_actor, sample_batch
from models.stacks import Stack, random_batch


def small_batch(graphs=4):
    return {k: v[:graphs] for k, v in sample_batch().items()}


def everything(model):
    return {
        **{k: v.clone() for k, v in model.state_dict().items()},
        **{f"{k}.grad": p.grad for k, p in model.named_parameters()},
    }


@pytest.fixture(scope="module")
def deep():
    """PyG's default initialisation, 16 layers: gradients vanish."""
    torch.manual_seed(0)
    return Stack(14, 8).train()


@pytest.fixture(scope="module")
def sharp():
    """Two layers whose attention is one-hot, their batch, and the finding: where an arm is all that is asked for, a fifth of `deep`."""
    torch.manual_seed(0)
    model, batch = Stack(2, 8).train(), random_batch(12, 4, 8)
    with torch.no_grad():
        for conv in model.convs:
            conv.lin_query.weight.mul_(1e3)
    return model, {"batch": batch, "finding": next(f for f in observe(model, batch).findings if f.code == "GS301")}


@pytest.fixture(scope="module")
def verdicts(deep):
    fixes = ["residual:weight=0.1", "pre-norm-residual", "beta"]
    return {v.fix: v for v in gnnstab.verify(deep, fixes, batch=random_batch(16, 5, 8), seeds=3, steps=40, lr=5e-3)}


def test_the_small_residual_has_no_effect_and_the_whole_one_works(verdicts):
    assert verdicts["residual"].verdict == "no-effect"
    assert verdicts["pre-norm-residual"].verdict == "confirmed"
    assert verdicts["pre-norm-residual"].signal == "gradient.ratio"
    assert verdicts["pre-norm-residual"].before < 1e-3 < 1e-2 <= verdicts["pre-norm-residual"].after <= 1e2
    assert verdicts["pre-norm-residual"].effect >= 1


def test_beta_makes_a_vanishing_stack_worse(verdicts):
    assert verdicts["beta"].verdict == "made-worse"
    assert verdicts["beta"].after < 0.1 * verdicts["beta"].before


def test_a_verdict_says_what_was_compared_and_minimised(verdicts):
    verdict = verdicts["pre-norm-residual"]
    assert "3 pairs of fresh twins" in verdict.arms
    assert "own feature + 2 × mean feature of the neighbours" in verdict.objective
    assert "40 steps of Adam(lr=0.005" in verdict.objective
    assert verdict.loss_after <= verdict.loss_before * 1.1
    assert verdict.seeds == 3
    assert verdict.rate == "at learning rate 0.005"
    assert verdict.because == f"{verdict.reason} (at learning rate 0.005)"
    assert verdict.spread > 0
    assert verdict.step_time > 0
    assert "Not trained" in verdicts["residual"].objective
    assert "x = x + " in verdict.change


def test_the_rate_is_that_of_the_optimizer_and_a_loss_is_asked_for(deep):
    optimizer = torch.optim.SGD(deep.parameters(), lr=0.005)
    (verdict,) = gnnstab.verify(
        deep, "pre-norm-residual", batch=random_batch(16, 5, 8), seeds=1, steps=2, optimizer=optimizer
    )
    assert "2 steps of SGD(lr=0.005)" in verdict.objective
    assert verdict.rate == "at learning rate 0.005"
    assert "pass loss= to judge by yours" in verdict.reason


def test_nothing_of_the_users_is_touched():
    model, batch = Stack(6, 8).train(), random_batch(12, 4, 8)
    model(**batch).sum().backward()
    before, kept = everything(model), {k: v.clone() for k, v in batch.items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    gnnstab.verify(model, ["beta", "dropout", "lower-lr"], batch=batch, seeds=1, steps=2)
    assert all(torch.equal(before[k], v) for k, v in everything(model).items())
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    assert all(torch.equal(kept[k], v) for k, v in batch.items())
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    assert all(m.training for m in model.modules())


def test_the_sum_is_what_saturates_the_real_actor():
    found = gnnstab.verify(
        load_actor(), ["norm-after-sum", "residual:weight=0.1", "beta"], batch=small_batch(), seeds=2, steps=3
    )
    normed, residual, beta = found
    assert normed.signal == "attention.entropy"
    assert normed.layer == "gnn.gnn1"
    assert normed.after > 0.9 > 0.5 > normed.before
    assert normed.effect > 1
    assert residual.verdict == beta.verdict == "no-effect"


def test_fp16_overflow_is_cured_by_fp32_attention_in_the_layer_that_overflows_and_nowhere_else():
    model = load_actor("agents7_lr7e-2_amp16_nan_crash")
    fixes = ["fp32-attention", ("fp32-attention", {"only": ["gnn.gnn1"]})]
    everywhere, elsewhere = gnnstab.verify(model, fixes, batch=small_batch(64), precision="fp16", seeds=3, steps=2)
    assert everywhere.verdict == "confirmed"
    assert everywhere.before > 0 == everywhere.after
    assert elsewhere.verdict == "no-effect"


def test_headroom_is_judged_in_the_number_format_of_the_layer():
    model, batch = load_actor("agents7_lr7e-2_amp16_nan_crash"), small_batch(12)
    found = [f for f in observe(model, batch, precision="fp16").findings if f.signal == "precision.fp16_headroom"]
    finding = next(f for f in found if f.layer == "gnn.gnn2.1")
    fixes = ["fp32-attention", ("fp32-attention", {"only": ["gnn.gnn2.1"]}), ("fp32-attention", {"only": ["gnn.gnn1"]})]
    options = {"batch": batch, "precision": "fp16", "seeds": 3, "steps": 2, "finding": finding}
    everywhere, there, elsewhere = gnnstab.verify(model, fixes, **options)
    assert (everywhere.signal, everywhere.layer) == (finding.signal, "gnn.gnn2.1")
    assert [v.verdict for v in (everywhere, there, elsewhere)] == ["confirmed", "inconclusive", "no-effect"]
    assert everywhere.before < 1 < everywhere.after
    assert "GS501 still fires on another layer" in there.reason


def test_a_healthy_model_has_nothing_to_cure():
    (verdict,) = gnnstab.verify(Stack(2, 8), "beta", batch=random_batch(16, 4, 8), seeds=1, steps=1)
    assert verdict.verdict == "not-tested"
    assert "nothing to cure" in verdict.reason and "the weights are as they were drawn" in verdict.reason


def test_a_fix_without_a_place_is_not_tested(deep):
    (verdict,) = gnnstab.verify(deep, "norm-after-sum", batch=random_batch(16, 5, 8), seeds=1, steps=1)
    assert verdict.verdict == "not-tested"
    assert "no module that aggregates by a sum" in verdict.reason


def test_an_initialisation_of_ones_own_comes_from_the_factory():
    """Orthogonal with gain √2 explodes; reset_parameters alone would hide that."""

    def factory():
        model = Stack(10, 8)
        for p in model.parameters():
            nn.init.orthogonal_(p, gain=1.8) if p.dim() > 1 else nn.init.zeros_(p)
        return model

    batch = random_batch(16, 5, 8)
    torch.manual_seed(0)
    model = factory()
    goal = choose([f for f in observe(model, batch).findings if f.signal == "gradient.ratio"])
    assert not goal.rises
    finding = next(f for f in observe(model, batch).findings if f.code == "GS204")
    (verdict,) = gnnstab.verify(
        model, "unit-gain-init", batch=batch, seeds=2, steps=2, factory=factory, finding=finding
    )
    assert verdict.before > 1e2 > verdict.after
    assert "your factory" in verdict.arms
    with pytest.raises(UsageError, match="other parameters"):
        gnnstab.verify(
            model, "unit-gain-init", batch=batch, seeds=1, steps=1, factory=lambda: Stack(2, 8), finding=finding
        )


def test_the_same_call_gives_the_same_verdict_and_a_store_continues(tmp_path, sharp):
    model, asked = sharp
    store, said = tmp_path / "arms.jsonl", []
    options = {**asked, "seeds": 1, "steps": 2}
    first = gnnstab.verify(model, "pre-norm-residual", **options, store=store)
    assert first[0].verdict != "not-tested"
    again = gnnstab.verify(model, "pre-norm-residual", **options, store=store, progress=said.append)
    assert not any("/" in line for line in said), "no arm was run again"
    fresh = gnnstab.verify(model, "pre-norm-residual", **options)
    for other in (again[0], fresh[0]):
        assert (other.before, other.after, other.loss_after) == (first[0].before, first[0].after, first[0].loss_after)


def test_an_interrupt_is_no_verdict_and_keeps_what_is_finished_in_the_store(deep, tmp_path):
    store, asked = tmp_path / "arms.jsonl", {"batch": random_batch(16, 5, 8), "seeds": 2, "steps": 1}

    def stop(said):
        if said.startswith("3/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gnnstab.verify(deep, "residual", **asked, store=store, progress=stop)
    assert len(store.read_text().splitlines()) == 3
    rest = []
    gnnstab.verify(deep, "residual", **asked, store=store, progress=rest.append)
    assert [line[:4] for line in rest if "/" in line] == ["4/4 "]


def test_prove_puts_verdicts_into_the_diagnosis_and_confirmed_fixes_first(deep, verdicts, monkeypatch):
    monkeypatch.setattr("gnnstab.verification._proof.verify", lambda model, names, **_: [verdicts[n] for n in names])
    advice = (FixAdvice("beta", "…"), FixAdvice("pre-norm-residual", "kept"))
    causes = (Cause("no-residual", "root-cause", "why", ("GS203",), advice), Cause("no-dropout", "present", ""))
    diagnosis = Diagnosis(Target("model", "Stack"), Coverage(14, 14), causes, (), ())
    proven = prove(diagnosis, deep, batch=random_batch(16, 5, 8))
    fixes = proven.causes[0].fixes
    assert [f.fix for f in fixes] == ["pre-norm-residual", "beta"]
    assert [f.verdict for f in fixes] == ["confirmed", "made-worse"]
    assert fixes[0].change == "kept"
    assert fixes[0].before < fixes[0].after
    assert proven.causes[1] == causes[1]


def _too_fast():
    """A network, its batch, its loss, and what is said of them with Adam at a rate of 2."""
    torch.manual_seed(0)
    model, batch, target = Stack(2, 16), random_batch(24, 4, 16), torch.randn(24, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=2.0)

    def loss(output, batch):
        return (output - target).square().mean()

    return model, batch, loss, gnnstab.diagnose(model, batch=batch, loss=loss, optimizer=optimizer)


def test_a_rate_that_the_optimizer_alone_shows_is_judged_by_that_and_not_by_what_it_did_to_the_weights():
    model, batch, loss, diagnosis = _too_fast()
    assert [cause.cause for cause in diagnosis.root_causes()] == ["learning-rate"]
    proven = prove(diagnosis, model, batch=batch, loss=loss, seeds=3, steps=60, lr=2.0)
    (root,) = proven.root_causes()
    assert [(f.fix, f.verdict) for f in root.fixes] == [("lower-lr", "confirmed"), ("gradient-clipping", "no-effect")]


def test_bad_requests_are_refused():
    model, batch = Stack(2, 8), random_batch(12, 4, 8)
    with pytest.raises(FixError, match="unknown fix"):
        gnnstab.verify(model, "no-such", batch=batch)
    with pytest.raises(UsageError, match="at least 1"):
        gnnstab.verify(model, "beta", batch=batch, seeds=0)
    with pytest.raises(UsageError, match="name=value"):
        gnnstab.verify(model, "beta:oops", batch=batch)
    with pytest.raises(UsageError, match="no fix"):
        gnnstab.verify(model, [], batch=batch)


def test_trainings_that_leave_it_open_are_repeated_from_as_many_seeds_again(monkeypatch):

    monkeypatch.setattr(judging, "too_wide", lambda pairs: len(pairs.after) == 2)
    model, seen = Stack(14, 8), []
    (verdict,) = gnnstab.verify(
        model, "pre-norm-residual", batch=random_batch(24, 4, 8), seeds=2, steps=2, progress=lambda p: seen.append(p)
    )
    assert verdict.seeds == 4
    assert "; 2 seeds did not decide, so 4 were trained" in verdict.arms


def test_a_learning_rate_is_judged_from_fresh_weights_by_the_median_over_all_matrices():
    """Weights that too large a rate has ruined do not come back; a bias near zero says nothing about the rate."""
    deep, batch, loss = Stack(3, 8), random_batch(24, 4, 8), lambda out, _: out.square().mean()
    with torch.no_grad():
        for conv in deep.convs:
            conv.lin_query.weight.mul_(1e3)
            conv.lin_value.bias.fill_(1e-9)
    said = Signals(
        kind="model",
        layers=(),
        values=(Signal("optimizer.lr_to_rms", 0.31, "convs.1", detail={"parameter": "convs.1.lin_key.weight"}),),
    )
    (finding,) = LearningRateTooHigh().check(said)
    assert finding.severity == "info", "a hint; asked for by name it is judged all the same"
    (verdict,) = gnnstab.verify(deep, "lower-lr", batch=batch, loss=loss, lr=0.2, finding=finding, seeds=2, steps=3)
    assert verdict.layer is None
    assert "pairs of fresh twins" in verdict.arms
    assert verdict.threshold == 0.1
    assert 0.2 / verdict.before == pytest.approx(8**-0.5 / 3**0.5, rel=0.1), "RMS of PyG's U(-1/√D, 1/√D)"
    assert verdict.after == pytest.approx(verdict.before / 3)


def test_half_of_several_batches_is_kept_from_the_training_of_your_loss():

    batches = [random_batch(n, 4, 8) for n in (12, 14, 16, 18, 20)]
    objective = objective_for(
        Stack(2, 8), [((), b) for b in batches], batches, lambda out, b: out.sum() * 0 + len(b["x"]), 0
    )
    assert objective.batches == 3
    assert objective.unseen(Stack(2, 8)) == (18 + 20) / 2
    assert "all batches but the last 2" in objective.description
    loss = objective.loss
    assert measured_on(batches, loss) == batches[:3]
    assert measured_on(batches[:2], loss) is batches[0]
    assert measured_on(batches, None) is batches


def test_a_training_without_chance_is_run_once_and_a_training_with_chance_for_every_seed(sharp):
    model, asked = sharp
    options = {**asked, "loss": lambda out, _: out.square().mean(), "steps": 1}
    same, other = gnnstab.verify(model, ["qk-clip", "pre-norm-residual"], seeds=2, **options)
    assert same.arms == "Compared: the current weights with and without it, once: every seed gives the same training"
    assert same.seeds == 1
    assert "every seed" not in other.arms


def test_unseen_features_are_others_of_the_same_task_and_the_same_for_both_arms():

    model, batch = Stack(2, 8), random_batch(16, 5, 8)
    call = ((), batch)
    _, other = shuffled(call, 16)
    assert other["edge_index"] is batch["edge_index"]
    assert not torch.equal(other["x"], batch["x"])
    assert torch.equal(other["x"].sort(0).values, batch["x"].sort(0).values)
    assert torch.equal(other["x"], shuffled(call, 16)[1]["x"])
    assert shuffled(call, 7) is None
    objective = objective_for(model, [call], [batch], None, 0)
    assert objective.unseen(model) != objective.loss(model, 0)
    assert objective_for(model, [call], [batch], lambda out, _: out.sum(), 0).unseen is None


def test_a_rule_about_the_data_is_cured_when_it_falls_silent():
    """The share of isolated nodes stays what it is; with a root term it is no fault any more."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(TransformerConv(8, 8, root_weight=False) for _ in range(2))

        def forward(self, x, edge_index):
            for conv in self.convs:
                x = conv(x, edge_index).tanh()
            return x

    torch.manual_seed(0)
    model, batch = Net(), random_batch(24, 5, 8)
    batch["edge_index"] = batch["edge_index"][:, batch["edge_index"][1] > 4]
    finding = next(f for f in observe(model, batch).findings if f.code == "GS402")
    verdict, other = gnnstab.verify(
        model, ["root-weight", "residual:weight=0.1"], batch=batch, seeds=2, steps=20, lr=1e-2, finding=finding
    )
    assert verdict.reason.startswith("the signal crosses its threshold")
    assert (verdict.before, verdict.after, verdict.threshold) == (None, None, None)
    assert other.verdict == "no-effect"


def test_what_the_signal_refutes_at_once_is_not_measured_on_more_seeds(deep):
    said = []
    batch = random_batch(16, 5, 8)
    (verdict,) = gnnstab.verify(deep, "residual:weight=0.1", batch=batch, seeds=5, steps=1, progress=said.append)
    assert verdict.verdict == "no-effect"
    assert verdict.seeds == 2
    assert sum("/" in line for line in said) == 4


def test_actor_import_is_used_for_twins():

    one, two = fresh_twin(Actor(), 0), fresh_twin(Actor(), 0)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(fresh_twin(one, 1).gnn.gnn1.lin_query.weight, one.gnn.gnn1.lin_query.weight)


def test_several_processes_give_what_one_gives():
    deep, options = Stack(4, 8), {"batch": random_batch(16, 5, 8), "seeds": 1, "steps": 2}
    one = gnnstab.verify(deep, ["residual:weight=0.1"], **options)
    two = gnnstab.verify(deep, ["residual:weight=0.1"], **options, workers=2)
    assert [(v.verdict, v.before, v.after, v.reason) for v in two] == [
        (v.verdict, v.before, v.after, v.reason) for v in one
    ]
