"""NaN and Inf are found wherever a file keeps them, and not where they are meant."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gnnstab
from gnnstab.checkpoint import load
from gnnstab.report.summary import not_covered
from models.stacks import Stack

Save = Callable[..., Path]
NAN, INF = math.nan, math.inf


def bad(*shape: int, value: float = NAN) -> Tensor:
    return torch.full(shape, value)


def adam(**state: Any) -> dict[str, Any]:
    return {"state": {0: {"exp_avg": torch.ones(3, 3), **state}}, "param_groups": [{"params": [0], "lr": 1e-3}]}


def whole(**attributes: Any) -> nn.Module:
    model = Stack(2)
    for name, value in attributes.items():
        object.__setattr__(model, name, value)
    return model


def spoilt() -> nn.Module:
    model = Stack(2)
    with torch.no_grad():
        model.convs[1].lin_key.weight[0] = NAN
    return model


MODEL = Stack(2).state_dict()


def beside(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, **more}


FOUND: dict[str, tuple[Callable[[], Any], str]] = {
    "a norm beside the encoder": (lambda: beside(norm={"weight": bad(3), "bias": torch.zeros(3)}), "norm.weight"),
    "a temperature": (lambda: beside(temperature=bad(1)), "temperature"),
    "a number": (lambda: beside(log_alpha=torch.tensor(NAN)), "log_alpha"),
    "a row of Inf": (lambda: beside(shift=bad(3, value=INF)), "shift"),
    "a list of an optimizer": (lambda: beside(o=adam(old_dirs=[bad(3), bad(3)])), "o.state.0.old_dirs.1"),
    "a dict of an optimizer": (lambda: beside(o=adam(precond={"q": bad(3, 3)})), "o.state.0.precond.q"),
    "a rate": (lambda: beside(o={**adam(), "param_groups": [{"params": [0], "lr": bad()}]}), "o.param_groups.0.lr"),
    "weights that an optimizer keeps": (lambda: beside(o={**adam(), "master": [bad(3, 3)]}), "o.master.0"),
    "a state of no parameter": (
        lambda: beside(o={**adam(), "state": {7: {"exp_avg": bad(3)}}}),
        "o.state.7.exp_avg",
    ),
    "an attribute of a module": (lambda: whole(edge_weight=bad(9)), "edge_weight"),
    "a list of modules": (lambda: whole(others=[spoilt()]), "others.0.convs.1.lin_key.weight"),
    "a dict of modules": (lambda: whole(others={"a": spoilt()}), "others.a.convs.1.lin_key.weight"),
    "two paths of one name": (
        lambda: beside(ema={"a.b": {"c": bad(4, 4)}, "a": {"b.c": torch.ones(4, 4)}}),
        "ema.a.b.c",
    ),
    "a weight of 0 and Inf": (lambda: beside(x={"w.weight": torch.eye(4).log()}), "x.w.weight"),
    "a mask with a NaN": (lambda: {**MODEL, "mask": torch.eye(4).log().fill_diagonal_(NAN)}, "mask"),
    "a bias of its own": (lambda: {**MODEL, "lin.bias": torch.tensor([1.0, -INF])}, "lin.bias"),
    "bounds of the wrong sign": (lambda: {**MODEL, "min_val": torch.tensor([1.0, -INF])}, "min_val"),
}


def closed(*shape: int) -> Tensor:
    """0, and a first row of −∞."""
    tensor = torch.zeros(*shape)
    tensor[0] = -INF
    return tensor


def causal(n: int) -> Tensor:
    """0, and −∞ where a column is beyond the row."""
    return torch.full((n, n), -INF).triu(1)


def under_a_mask() -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in MODEL.items()}
    state["convs.0.lin_query.weight"][0] = -INF
    return {"attn_mask": state["convs.0.lin_query.weight"], **state}


def stepped(name: str, tensor: Tensor) -> dict[str, Any]:
    """A network of one more parameter, with the state of the optimizer that trains it."""
    model = {"lin.weight": torch.ones(3, 5), name: tensor}
    state = {i: {"exp_avg": torch.ones_like(t), "step": 1} for i, t in enumerate(model.values())}
    return {"model": model, "optimizer": {"state": state, "param_groups": [{"params": [0, 1], "lr": 1e-3}]}}


FOUND |= {
    "a rate that is no number": (
        lambda: beside(o={**adam(), "param_groups": [{"params": [0], "lr": NAN}]}),
        "o.param_groups.0.lr",
    ),
    "a share of a pair": (
        lambda: beside(o={**adam(), "param_groups": [{"params": [0], "lr": 1e-3, "betas": (0.9, NAN)}]}),
        "o.param_groups.0.betas.1",
    ),
    "a rate in a tuple": (
        lambda: beside(o={**adam(), "param_groups": ({"params": [0], "lr": NAN},)}),
        "o.param_groups.0.lr",
    ),
    "a bound whose twin has seen numbers": (
        lambda: {**MODEL, "out_min": torch.tensor([1.0, 2.0]), "out_max": bad(2, value=-INF)},
        "out_max",
    ),
    "an endless rate": (
        lambda: beside(o={**adam(), "param_groups": [{"params": [0], "lr": INF}]}),
        "o.param_groups.0.lr",
    ),
    "a score of a callback": (
        lambda: beside(callbacks={"best": {"best_model_score": torch.tensor(NAN)}}),
        "callbacks.best.best_model_score",
    ),
    "a scale of a scaler": (lambda: beside(scaler={"scale": torch.tensor(NAN)}), "scaler.scale"),
    "a rate of a scheduler": (lambda: beside(scheduler={"last_lr": torch.tensor(NAN)}), "scheduler.last_lr"),
    "a learned key": (lambda: {**MODEL, "attn.bias_k": closed(2, 1, 4)}, "attn.bias_k"),
    "a vector of attention": (lambda: {**MODEL, "conv.att_src": closed(2, 4)}, "conv.att_src"),
    "a weight of a GRU": (lambda: {**MODEL, "gru.weight_hh_l0": closed(12, 4)}, "gru.weight_hh_l0"),
    "a table of positions": (lambda: {**MODEL, "rel_bias_table": closed(8, 3) + torch.eye(8, 3)}, "rel_bias_table"),
    "a factor": (lambda: {**MODEL, "max_scale": bad(4, value=-INF)}, "max_scale"),
    "a weight that is a mask by another name": (under_a_mask, "convs.0.lin_query.weight"),
    "a number that is averaged": (
        lambda: {"model": MODEL | {"temp": torch.ones(1)}, "ema": MODEL | {"temp": torch.tensor([INF])}},
        "ema.temp",
    ),
    "averaged weights of 0 and Inf": (
        lambda: {"model": MODEL | {"t.att_dst": torch.ones(2, 4)}, "ema": MODEL | {"t.att_dst": closed(2, 4)}},
        "ema.t.att_dst",
    ),
    "what an optimizer trains": (lambda: stepped("free_mask", closed(4, 4)), "free_mask"),
    "a moment of 0 and Inf": (lambda: beside(o=adam(exp_avg=causal(3))), "o.0.exp_avg"),
    "what an optimizer keeps of 0 and Inf": (lambda: beside(o=adam(old_mask=[causal(4)])), "o.state.0.old_mask.0"),
    "zeros that broke": (lambda: {**MODEL, "lora_B": closed(8, 2)}, "lora_B"),
    "zeros of as many rows as columns that broke": (lambda: {**MODEL, "proj": closed(8, 8)}, "proj"),
    "averaged zeros that broke": (lambda: beside(ema={"net": MODEL | {"W_o": closed(8, 8)}}), "ema.net.W_o"),
    "what stands in for a masked row": (lambda: {**MODEL, "mask_token": closed(2, 4)}, "mask_token"),
}

MEANT: dict[str, Callable[[], Any]] = {
    "a best score": lambda: beside(best=torch.tensor(INF), callbacks={"stop": {"best_score": torch.tensor(-INF)}}),
    "an observer that saw nothing": lambda: {
        **MODEL,
        "a.min_val": torch.tensor(INF),
        "a.max_val": torch.full((3,), -INF),
    },
    "a causal mask": lambda: {**MODEL, "mask": causal(4)},
    "ALiBi": lambda: {**MODEL, "alibi_bias": causal(4) + torch.arange(4.0)},
    "a bound of an optimizer": lambda: beside(
        o={**adam(), "param_groups": [{"params": [0], "lr": 1e-3, "max_norm": INF}]}
    ),
    "a mask of an averaged model": lambda: {
        name: MODEL | {"mask": closed(4, 4), "attn_bias": closed(4, 4) + torch.eye(4)} for name in ("model", "ema")
    },
    "a mask that no optimizer trains": lambda: {**stepped("free", torch.ones(4, 3)), "buffers": {"mask": closed(4, 4)}},
    "bounds that are one pair": lambda: {
        **MODEL,
        "act_min": bad(3, value=INF),
        "act_max": bad(3, value=-INF),
        "running_max": bad(1, value=-INF),
    },
    "a mask by no word": lambda: {**MODEL, "m": causal(3), "of_heads": causal(4).expand(2, 1, 4, 4).clone()},
    "pairs that are far apart": lambda: {**MODEL, "adj": closed(6, 6), "padding": closed(2, 7), "future": closed(3, 9)},
    "moments that are zero": lambda: beside(o=adam(exp_avg=torch.zeros(3, 3)), causal=causal(3)),
    "zeros": lambda: {**MODEL, "lora_B": torch.zeros(8, 2), "proj": torch.zeros(8, 8)},
    "a mask in an attribute": lambda: whole(causal=causal(4)),
    "state of an optimizer": lambda: beside(o=adam(al=[None, torch.tensor(1.0)], old=[torch.ones(3)])),
}

OPEN = torch.tensor([INF, 1.0])
MEANT |= {
    f"{name} in a model": (lambda name=name, value=value: {**MODEL, f"policy.{name}": value})
    for name, value in {
        "best": torch.tensor(INF),
        "best_val_loss": bad(1, value=INF),
        "best_scores": torch.tensor([0.5, -INF]),
        "highest_return": torch.tensor(-INF),
        "min_loss": torch.tensor(INF),
        "action_low": -OPEN,
        "action_max": OPEN,
        "obs_high": bad(3, value=INF),
        "upper_bound": OPEN,
        "bounds": torch.stack([-OPEN, OPEN]),
        "clip_value": torch.tensor(INF),
        "log_prior": torch.tensor([0.0, 0.5, 0.5]).log(),
        "class_logprior": torch.tensor([-INF, 0.0, -1.0]),
        "log_class_probs": torch.tensor([1.0, 0.0]).log(),
        "log_zero": torch.tensor(-INF),
        "neg_inf": torch.tensor(-INF),
        "b": torch.tensor([-INF, 0.0, 1.0, INF]),  # Edges of bins, and distances, by their form alone.
        "d": torch.tensor([[0.0, 2.0, INF], [2.0, 0.0, 1.0], [INF, 1.0, 0.0]]),
        "max_norm": torch.tensor(INF),
        "temperature_max": bad(1, value=INF),
    }.items()
}
FOUND |= {
    f"{name} in a model": (lambda name=name, value=value: {**MODEL, f"policy.{name}": value}, f"policy.{name}")
    for name, value in {
        "best_loss": torch.tensor(-INF),
        "best_reward": torch.tensor(INF),
        "best_metric": torch.tensor(NAN),
        "best_theta": OPEN,
        "lower_bound": torch.tensor(INF),
        "action_high": -OPEN,
        "action": OPEN,
        "action_low": torch.tensor([-INF, NAN]),
        "low_rank": -OPEN,
        "high.bias": OPEN,
        "prior_mu": -OPEN,
        "log_prior": bad(3, value=-INF),
        "class_log_prior": torch.tensor([-INF, 3.0]),
        "log_alpha": torch.tensor(-INF),
        "exp_inf": bad(3, value=INF),
        "unordered": torch.tensor([-INF, 1.0, 0.0, INF]),
        "far": torch.tensor([[0.0, 2.0], [-INF, 0.0]]),
        "near": torch.tensor([[1.0, INF], [INF, 0.0]]),
        "max_norm": torch.tensor(-INF),
        "norm_act": torch.tensor(INF),
        "norm.running_mean": -OPEN,
        "norm.running_var": bad(3, value=INF),
    }.items()
}
FOUND |= {
    "a bound that an optimizer trains": (lambda: stepped("lower", -OPEN), "lower"),
    "a prior of an averaged model": (lambda: {"model": MODEL, "ema": MODEL | {"prior": OPEN}}, "ema.prior"),
}


def non_finite(file: Path) -> set[str]:
    signals = gnnstab.diagnose(file).signals
    return {str(s.detail["parameter"]) for s in signals if s.name == "weight.non_finite" and s.value > 0}


@pytest.mark.parametrize("case", FOUND)
def test_is_found(case: str, saved: Save) -> None:
    make, name = FOUND[case]
    assert name in non_finite(saved(make()))


@pytest.mark.parametrize("case", MEANT)
def test_is_meant(case: str, saved: Save) -> None:
    assert non_finite(saved(MEANT[case]())) == set()


@pytest.mark.parametrize("unsafe", [False, True])
def test_what_a_module_holds_is_told_once(unsafe: bool, saved: Save) -> None:
    model = whole(again=[], own=torch.ones(3))
    model.again.append(model.convs[0].lin_key.weight)
    checkpoint = load(saved(model), unsafe=unsafe)
    assert set(checkpoint.shadows) == {"own"}, "what the state dict names is scanned there"
    assert set(checkpoint.tensors) == set(model.state_dict())


@pytest.mark.parametrize(("make", "told"), [(spoilt, True), (lambda: Stack(2), False)])
def test_rules_that_were_not_asked_leave_nan_in_the_open(
    make: Callable[[], nn.Module], told: bool, saved: Save
) -> None:
    diagnosis = gnnstab.diagnose(saved(make().state_dict()), select="GS301")
    assert ("the NaN or Inf in the weights (GS502)" in not_covered(diagnosis)) is told
