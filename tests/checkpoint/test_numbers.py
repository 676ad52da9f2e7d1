"""Every number of a layer against a plain float64 recomputation that forms the matrices."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

import gnnstab
from effort import at_most
from gnnstab.checkpoint import _scan, recover, recover_model
from gnnstab.checkpoint.facts import CheckpointFacts
from stored import stored

CASES = [
    {"in_channels": 6, "out_channels": 4, "heads": 3, "concat": False, "edge_dim": 2},
    {"in_channels": 3, "out_channels": 9, "heads": 2, "concat": True, "edge_dim": 12, "beta": True},
    {"in_channels": (5, 7), "out_channels": 4, "heads": 2, "concat": False, "bias": False},
    {"in_channels": 16, "out_channels": 16, "heads": 1, "concat": True},
]


def _facts(conv: TransformerConv, **options: object) -> CheckpointFacts:
    return recover(stored({f"layer.{name}": tensor for name, tensor in conv.state_dict().items()}), **options)


def _value(facts: CheckpointFacts, name: str, head: int | None = None) -> float:
    return next(s.value for s in facts.values if s.name == name and s.head == head and s.layer == "layer")


def _conv(case: dict, seed: int = 0) -> TransformerConv:
    torch.manual_seed(seed)
    conv = TransformerConv(**case)
    for parameter in conv.parameters():
        parameter.data.mul_(3.0)
    return conv


def _heads(conv: TransformerConv, part: str, *, bias: bool) -> list[np.ndarray]:
    linear = getattr(conv, f"lin_{part}")
    weight = linear.weight.detach().double().numpy()
    if bias and linear.bias is not None:
        weight = np.concatenate([weight, linear.bias.detach().double().numpy()[:, None]], axis=1)
    return [weight[h * conv.out_channels : (h + 1) * conv.out_channels] for h in range(conv.heads)]


@pytest.mark.parametrize("case", CASES)
def test_logit_norms(case: dict) -> None:
    conv = _conv(case)
    facts = _facts(conv, heads=conv.heads)
    norm, root = np.linalg.norm, math.sqrt(conv.out_channels)
    for head in range(conv.heads):
        query, key = (_heads(conv, part, bias=False)[head] for part in ("query", "key"))
        biased_query, biased_key = (_heads(conv, part, bias=True)[head] for part in ("query", "key"))
        matrix = biased_query.T @ biased_key / root
        expected = {
            "logit.spectral_qk": norm(query.T @ key, 2) / root,
            "logit.spectral": norm(matrix, 2),
            "logit.frobenius": norm(matrix[:, : key.shape[1]]),
            "logit.alignment": root * norm(query.T @ key) / norm(query) / norm(key),
        }
        if conv.lin_edge is not None:
            expected["logit.edge_spectral"] = norm(biased_query.T @ _heads(conv, "edge", bias=False)[head], 2) / root
        assert {name: _value(facts, name, head) for name in expected} == pytest.approx(expected, rel=1e-10)
    assert _value(facts, "logit.spectral") == max(_value(facts, "logit.spectral", h) for h in range(conv.heads))
    assert any(s.name == "logit.edge_spectral" for s in facts.values) is (conv.lin_edge is not None)


def test_the_spectral_norm_bounds_the_scores_and_the_frobenius_norm_is_their_typical_spread() -> None:
    """The bound holds for real scores; the typical value is met by Gaussian inputs of RMS 1."""
    conv = _conv({"in_channels": 32, "out_channels": 16, "heads": 2, "concat": False})
    facts = _facts(conv)
    x = torch.randn(400, 32, generator=torch.Generator().manual_seed(1))
    query = conv.lin_query(x).view(400, 2, 16)
    key = conv.lin_key(x).view(400, 2, 16)
    scores = torch.einsum("ihc,jhc->hij", query, key).double().detach() / 4.0
    length = torch.cat([x, torch.ones(400, 1)], dim=1).double().norm(dim=1)
    for head in range(2):
        bound = _value(facts, "logit.spectral", head) * length[:, None] * length[None, :]
        assert bool((scores[head].abs() <= bound * (1 + 1e-6)).all())
        within = float(scores[head].std(dim=1).square().mean().sqrt())
        assert within == pytest.approx(_value(facts, "logit.frobenius", head), rel=0.1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("activation", "phi"), [(None, 0.5), ("relu", 0.5), ("tanh", 1.0), ("identity", 1.0)])
def test_gains_and_interval(case: dict, activation: str | None, phi: float) -> None:
    conv = _conv(case)
    facts = _facts(conv, heads=conv.heads, activation=activation)
    value = conv.lin_value.weight.detach().double().numpy()
    if not conv.concat:
        value = sum(np.split(value, conv.heads)) / conv.heads
    skip = conv.lin_skip.weight.detach().double().numpy()
    g_value, g_skip = (math.sqrt(np.sum(w**2) / w.shape[1]) for w in (value, skip))
    b = 0.25 if conv.beta else 1.0
    assert _value(facts, "gain.value") == pytest.approx(g_value, rel=1e-10)
    assert _value(facts, "gain.skip") == pytest.approx(g_skip, rel=1e-10)
    assert _value(facts, "gain.lambda_low") == pytest.approx(0.5 * math.log(phi * b * g_skip**2), rel=1e-9)
    assert _value(facts, "gain.lambda_high") == pytest.approx(
        0.5 * math.log(phi * b * (g_skip**2 + g_value**2)), rel=1e-9
    )
    word = "given" if activation else "assumed"
    assert any(line.startswith(f"activation={activation or 'relu'}: {word}") for line in facts.assumptions)


def test_reference_values_of_a_fresh_layer() -> None:
    """‖M_h‖_F of a square layer with one head: about 1/3 for PyG's default, 2 for an orthogonal matrix of gain √2."""
    torch.manual_seed(0)
    conv = TransformerConv(128, 128)
    assert _value(_facts(conv, heads=1), "logit.frobenius") == pytest.approx(1 / 3, rel=0.1)
    for linear in (conv.lin_query, conv.lin_key):
        torch.nn.init.orthogonal_(linear.weight, math.sqrt(2))
        torch.nn.init.zeros_(linear.bias)
    assert _value(_facts(conv, heads=1), "logit.frobenius") == pytest.approx(2.0, rel=1e-5)


def test_zero_weights_have_no_gain() -> None:
    conv = _conv(CASES[0])
    for parameter in conv.parameters():
        parameter.data.zero_()
    facts = _facts(conv)
    assert _value(facts, "logit.spectral") == 0
    assert _value(facts, "gain.lambda_high") == -math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_weights_are_counted_and_have_no_norms(bad: float) -> None:
    conv = _conv(CASES[0])
    conv.lin_key.weight.data[1, :3] = bad
    conv.lin_skip.bias.data[0] = bad
    facts = _facts(conv)
    counts = {s.detail["parameter"]: s.value for s in facts.values if s.name == "weight.non_finite"}
    assert {name: count for name, count in counts.items() if count} == {
        "layer.lin_key.weight": 3.0,
        "layer.lin_skip.bias": 1.0,
    }
    assert not [s for s in facts.values if s.name.startswith(("logit.", "gain."))]
    assert "layer.lin_key.weight" not in {s.detail["parameter"] for s in facts.values if s.name == "weight.rms"}


def test_weight_rms() -> None:
    conv = _conv(CASES[1])
    rms = {s.detail["parameter"]: s.value for s in _facts(conv, heads=2).values if s.name == "weight.rms"}
    for name, parameter in conv.named_parameters():
        expected = math.sqrt(np.mean(parameter.detach().double().numpy() ** 2))
        assert rms[f"layer.{name}"] == pytest.approx(expected, rel=1e-12)


def test_work_grows_with_the_number_of_layers() -> None:
    state = TransformerConv(128, 32, heads=4, concat=False).state_dict()
    tensors = {f"convs.{i}.{name}": tensor * (1 + i / 1000) for i in range(60) for name, tensor in state.items()}
    with at_most(calls=1_000_000):
        facts = recover(stored(tensors))
    assert len(facts.layers) == 60


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(0, 7), min_size=0, max_size=4),
    transposed=st.booleans(),
    bad=st.integers(0, 3),
    seed=st.integers(0, 100),
)
def test_scan_in_pieces_equals_the_whole(shape: list[int], transposed: bool, bad: int, seed: int) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    tensor = tensor.mT if transposed and tensor.dim() > 1 else tensor
    flat = tensor.reshape(-1).clone()
    flat[:bad] = torch.tensor([math.nan, math.inf, -math.inf], dtype=torch.float64)[: flat[:bad].numel()]
    tensor = flat.reshape(tensor.shape)
    if transposed and tensor.dim() > 1:
        tensor = tensor.mT.contiguous().mT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_scan, "PIECE", 5)
        patch.setattr(_scan, "BLOCK", 11)
        found = _scan.scan(tensor)
    entries = tensor.numpy().reshape(-1)
    assert found.count == entries.size
    assert found.non_finite == int((~np.isfinite(entries)).sum())
    if found.non_finite or not entries.size:
        assert math.isnan(found.rms)
    else:
        assert found.rms == pytest.approx(math.sqrt(np.mean(entries**2)))
        assert (found.minimum, found.maximum) == (entries.min(), entries.max())


@pytest.mark.parametrize(
    ("buffer", "bad"),
    [
        (torch.full((4, 4), -math.inf).triu(1), 0),
        (torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1) > 0, math.inf), 6),
        (torch.full((4, 4), -math.inf), 16),
        (torch.randn(4, 4).masked_fill(torch.eye(4) > 0, -math.inf), 4),
    ],
)
def test_a_mask_of_zero_and_minus_infinity_is_no_broken_weight(buffer: Tensor, bad: int) -> None:
    model = nn.Module()
    model.register_buffer("allowed", buffer)
    model.conv = _conv(CASES[0])
    facts = recover_model(model)
    assert sum(s.value for s in facts.values if s.name == "weight.non_finite") == bad
    assert any("mask" in note for note in facts.notes) is (bad == 0)


@pytest.mark.parametrize(
    ("strength", "agree", "severity"),
    [(1.0, False, None), (5.0, True, "info"), (5.0, False, "warning"), (40.0, True, "warning")],
)
def test_of_unknown_heads_the_least_of_all_that_are_tried_is_told_and_judged(
    strength: float, agree: bool, severity: str | None, tmp_path: Path
) -> None:
    """What training may have meant stays information where no number of heads was observed, unless no gradient is left with any."""
    torch.manual_seed(0)
    conv = TransformerConv(16, 4, heads=4)
    if agree:
        shared = torch.outer(torch.randn(16), torch.randn(16)) / 6
        conv.lin_query.weight.data.add_(shared)
        conv.lin_key.weight.data.add_(shared)
    for part in (conv.lin_query, conv.lin_key):
        part.weight.data.mul_(strength)
    known = [_facts(conv, heads=heads) for heads in (1, 2, 4, 8, 16)]
    for name in ("logit.frobenius", "logit.spectral", "logit.alignment"):
        assert _value(_facts(conv), name) == min(_value(facts, name) for facts in known)
    torch.save({f"layer.{name}": tensor for name, tensor in conv.state_dict().items()}, tmp_path / "file.pt")
    diagnosis = gnnstab.diagnose(tmp_path / "file.pt")
    found = [finding for finding in diagnosis.findings if finding.code == "GS301"]
    assert [finding.severity for finding in found] == [severity] * (severity is not None)
    assert bool(diagnosis.at_least("warning")) is (severity == "warning")
    assert all("whichever of 1, 2, 4, 8, 16 their number is" in f.message and f.confidence != "high" for f in found)
    assert any("1, 2, 4, 8, 16 tried" in line for line in diagnosis.coverage.assumptions)
