"""Every fix on every kind of model: a changed copy that trains, saves and loads, and an untouched original."""

import copy
import io
import re
import threading

import numpy as np
import pytest
import torch
from torch_geometric.nn import AGNNConv

from gnnstab import fixes
from gnnstab.errors import FixError
from gnnstab.fixes import FIXES
from gnnstab.fixes.by_hand import ByHand
from gnnstab.fixes.table import FORMER, find
from gnnstab.verification.fix_spec import fix_specs
from models.informarl import Actor, sample_batch
from models.stacks import Hetero, Stack, SumThenAttention, hetero_batch, random_batch, transformed

SCORES = {"degree": 8.0}
TRAINING_ONLY = {"lower-lr", "gradient-clipping", "adam-eps"}
BY_HAND = {name for name, fix in FIXES.items() if isinstance(fix, ByHand)}
NO_PLACE = {"reinit-gate", "layer-norm", "root-weight", "remove-clamp", *BY_HAND}
"""Fixes that find no place in the models below: see test_repairs.py."""

AGGREGATION = {"aggregation", "mean-aggregation-root", "norm-after-sum"}


def options_for(name, model, batch):
    if name == "qk-clip":
        return {"scores": {n: [50.0] * m.heads for n, m in model.named_modules() if hasattr(m, "lin_query")}, **SCORES}
    if name in ("mean-aggregation-root", "norm-after-sum", "input-standardisation"):
        return {"batch": batch}
    return {}


def small_actor_batch():
    return {k: v[:3] for k, v in sample_batch().items()}


CASES = {
    "stack": (lambda: Stack(3, heads=2, concat=False, edge_dim=None), lambda: random_batch(20)),
    "actor": (Actor, small_actor_batch),
    "hetero": (Hetero, hetero_batch),
    "to_hetero": (transformed, lambda: {k.removesuffix("_dict"): v for k, v in hetero_batch().items()}),
}


def total(output):
    return sum(v.square().sum() for v in output.values()) if isinstance(output, dict) else output.square().sum()


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def pairs():
    for case in CASES:
        for name in sorted(set(FIXES) - NO_PLACE):
            sums = case == "actor" or name not in AGGREGATION
            # Features by node type, and modules that sum nothing, are refused: see test_refusals_say_what_is_missing.
            if sums and not (case in ("hetero", "to_hetero") and name == "input-standardisation"):
                yield case, name


@pytest.mark.parametrize(("case", "name"), list(pairs()))
def test_the_copy_trains_saves_and_loads_and_the_original_is_untouched(case, name):
    make, data = CASES[case]
    model, batch = make().train(), data()
    before, random, numpy_state = state_of(model), torch.get_rng_state(), np.random.get_state()[1].copy()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    changed = fixes.apply(model, name, **options_for(name, model, batch))

    assert torch.equal(random, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert changed is not model
    assert changed.training
    assert set(before) <= set(changed.state_dict())

    optimizer = torch.optim.SGD(changed.parameters(), lr=1e-6)
    first = total(changed(**batch))
    first.backward()
    optimizer.step()
    assert first.isfinite()
    assert all(
        p.grad is not None for n, p in changed.named_parameters() if "root_term" in n or "norm_" in n or "lin_beta" in n
    )
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())

    changed.eval()
    expected = total(changed(**batch))
    fresh = fixes.apply(make(), name, **options_for(name, model, batch)).eval()
    fresh.load_state_dict(changed.state_dict())
    assert torch.equal(total(fresh(**batch)), expected)
    assert torch.equal(total(copy.deepcopy(changed)(**batch)), expected)
    if case != "to_hetero":
        whole = io.BytesIO()
        torch.save(changed, whole)
        whole.seek(0)
        assert torch.equal(total(torch.load(whole, weights_only=False)(**batch)), expected)


@pytest.mark.parametrize("name", sorted(set(FIXES) - TRAINING_ONLY - NO_PLACE - {"dropout", "fp32-attention"}))
def test_every_structural_fix_changes_what_the_actor_computes(name):
    torch.manual_seed(0)
    model, batch = Actor().eval(), small_actor_batch()
    changed = fixes.apply(
        model, name, **options_for(name, model, batch), **({"limit": 0.5} if name == "activation-clamp" else {})
    )
    assert not torch.allclose(changed(**batch), model(**batch))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["beta", "pre-norm-residual", "graph-norm", "qk-norm", "depth-init", "score-cap"])
def test_dtype_and_mode_are_kept(name, dtype):
    model = Stack(2, heads=2, concat=False).to(dtype).eval()
    changed = fixes.apply(model, name)
    assert {p.dtype for p in changed.parameters()} == {dtype}
    assert not any(m.training for m in changed.modules())
    batch = random_batch(20)
    assert changed(batch["x"].to(dtype), batch["edge_index"]).dtype == dtype


def test_new_parameters_come_from_the_seed_alone():
    model = Stack(2)
    one, two = fixes.apply(model, "beta"), fixes.apply(model, "beta")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    other = fixes.apply(model, "beta", seed=1)
    assert not torch.equal(one.convs[0].lin_beta.weight, other.convs[0].lin_beta.weight)


@pytest.mark.parametrize(
    ("make", "name", "options", "missing"),
    [
        (Stack, "mean-aggregation-root", {}, "no module that aggregates by a sum"),
        (AGNNConv, "aggregation", {}, "no module that aggregates by a sum"),
        (SumThenAttention, "norm-after-sum", {}, "pass batch="),
        (Stack, "qk-clip", {}, "pass signals="),
        (Stack, "residuals", {}, "did you mean 'residual'"),
        (Hetero, "input-standardisation", {"batch": hetero_batch()}, "no node features"),
        (Stack, "input-standardisation", {}, "pass batch="),
        (lambda: Stack(2, root_weight=False), "beta", {}, "no TransformerConv"),
        (lambda: torch.nn.Linear(2, 2), "dropout", {}, "no attention layer"),
        (Stack, "dropout", {"p": 1.5}, "must lie in"),
        (Stack, "score-cap", {"cap": 0}, "must be positive"),
        (Stack, "activation-clamp", {"limit": float("inf")}, "limit=inf must be positive and finite"),
        (Stack, "lower-lr", {"factor": float("nan")}, "factor=nan must be positive"),
        (Stack, "gradient-clipping", {"percentile": 101}, "must lie in .0, 100."),
        (Stack, "residual", {"weight": "much"}, "weight='much' is no number"),
        (SumThenAttention, "aggregation", {"aggr": "average"}, "is no aggregation of PyG"),
    ],
)
def test_refusals_say_what_is_missing(make, name, options, missing):
    with pytest.raises(FixError, match=missing):
        fixes.apply(make(), name, **options)


@pytest.mark.parametrize("name", sorted(BY_HAND))
def test_what_the_tool_cannot_do_is_said(name):
    with pytest.raises(FixError, match="make it by hand"):
        fixes.apply(Stack(2), name)


def test_a_model_that_cannot_be_copied_is_named():
    stack = Stack(2)
    stack.lock = threading.Lock()
    with pytest.raises(FixError, match="Stack cannot be copied"):
        fixes.apply(stack, "dropout")


def test_unwraps_what_torch_compile_returns():
    stack = Stack(2)
    assert isinstance(fixes.apply(torch.compile(stack, backend="eager"), "dropout"), Stack)


@pytest.mark.parametrize(("former", "name"), FORMER.items())
def test_a_former_name_is_still_known(former, name):
    assert find(former) is find(name)


@pytest.mark.parametrize("name", sorted(FIXES))
def test_every_option_is_told_in_the_docstring_and_any_other_is_refused(name):
    fix = find(name)
    assert set(fix.options) <= set(re.findall(r"``(\w+)``", (type(fix).__doc__ or "").partition("Option")[2]))
    model = Stack(2, heads=2, concat=False, edge_dim=None)
    for refused in (
        lambda: fixes.apply(model, name, elsewhere=1),
        lambda: fixes.change(name, [], elsewhere=1),
        lambda: fix_specs(f"{name}:elsewhere=1"),
    ):
        with pytest.raises(FixError, match=f"{name} has no option 'elsewhere'"):
            refused()
