"""Sharp attention tried softer on a copy: a gain that nobody needs keeps a model from learning, a lookup needs its sharpness."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GATv2Conv, TransformerConv
from torch_geometric.utils import softmax

import gnnstab
from gnnstab.probe.optimizer._large_inputs import large_inputs
from gnnstab.probe.optimizer.softening import SPREAD, Softened, outputs_and_wide, spread, spread_over_edges
from gnnstab.records import Diagnosis
from gnnstab.records.vocabulary import OPTIMIZER_INPUT_SHARE, OPTIMIZER_SOFTER

NODES, WIDTH, TAGS = 24, 16, 6


class Cosine(nn.Module):
    """Attention by the angle between query and key, times a gain."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x: Tensor) -> Tensor:
        query, key = F.normalize(self.query(x), dim=-1) * self.gain, F.normalize(self.key(x), dim=-1)
        return F.scaled_dot_product_attention(query, key, self.value(x), scale=1.0)


class Crowd(nn.Module):
    """A mean over everybody is wanted."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.inp, self.norm, self.out = nn.Linear(4, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1)
        self.attend = Cosine(gain)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        return self.out(h + self.attend(self.norm(h))).squeeze(-1)


class Fused(Crowd):
    """The same with torch's own layer."""

    def __init__(self, gain: float) -> None:
        super().__init__(gain)
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        with torch.no_grad():
            self.attend.in_proj_weight[:WIDTH] *= gain

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        tokens = self.norm(h)
        return self.out(h + self.attend(tokens, tokens, tokens, need_weights=False)[0]).squeeze(-1)


class Lookup(nn.Module):
    """The value of the row with the same tag is wanted, and query and key begin as that."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.value, self.out = nn.Linear(4, WIDTH), nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 1))
        self.tag = nn.Parameter(sharpness * torch.eye(TAGS))

    def forward(self, x: Tensor) -> Tensor:
        tags = x[..., :TAGS] @ self.tag
        scores = (tags @ tags.transpose(-1, -2)).masked_fill(torch.eye(x.shape[1], dtype=torch.bool), -torch.inf)
        return self.out(scores.softmax(-1) @ self.value(x[..., TAGS:])).squeeze(-1)


class Neighbours(nn.Module):
    """A mean over the neighbours is wanted, beside what each is itself."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 1)
        self.conv = GATv2Conv(WIDTH, WIDTH // 4, heads=4)
        self.conv.att.data *= gain

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = F.elu(self.inp(x))
        return self.out(h + F.elu(self.conv(h, edge_index))).squeeze(-1)


class Stations(nn.Module):
    """Everybody hears those nearby; ``reach`` is in the unit of the positions."""

    def __init__(self, reach: float) -> None:
        super().__init__()
        self.value, self.out = nn.Linear(4, WIDTH), nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 1))
        self.reach = nn.Linear(2, 2, bias=False)
        self.reach.weight.data = torch.eye(2) / reach

    def forward(self, x: Tensor, where: Tensor) -> Tensor:
        places = self.reach(where)
        scores = -(places[:, None] - places[None]).square().sum(-1)
        return self.out(scores.softmax(-1) @ self.value(x)).squeeze(-1)


class Raw(nn.Module):
    """Takes positions as features."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.norm, self.out = nn.Linear(6, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1)
        self.conv = TransformerConv(WIDTH, WIDTH)

    def forward(self, x: Tensor, where: Tensor) -> Tensor:
        h = self.inp(torch.cat([x, where], -1))
        near = torch.cdist(where, where).argsort(1)[:, 1:7]
        edges = torch.stack([near.flatten(), torch.arange(len(x)).repeat_interleave(6)])
        return self.out(h + self.conv(h, edges)).squeeze(-1)


class Decided(nn.Module):
    """The gain of the norm in front of the attention was set by hand."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.inp, self.norm, self.out = nn.Linear(4, 2 * WIDTH), nn.LayerNorm(2 * WIDTH), nn.Linear(2 * WIDTH, 1)
        nn.init.constant_(self.norm.weight, gain)
        self.conv, self.back = TransformerConv(2 * WIDTH, WIDTH, heads=2), nn.LayerNorm(2 * WIDTH)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.inp(x)
        return self.out(h + self.back(self.conv(self.norm(h), edge_index))).squeeze(-1)


def map_of(number: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(number)
    x, where = torch.randn(60, 4, generator=g), 300 * torch.rand(60, 2, generator=g)
    near = (-(torch.cdist(where, where) / 12).square()).softmax(-1)
    return {"x": x, "where": where, "y": 2 * (near @ x)[:, 0]}


def village(number: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(number)
    x, edges = torch.randn(60, 4, generator=g), torch.randint(0, 60, (2, 360), generator=g)
    heard = torch.zeros(60, 4).index_add_(0, edges[1], x[edges[0]])
    return {"x": x, "edge_index": edges, "y": (heard / 2 + x)[:, 0]}


def crowd(number: int) -> dict[str, Tensor]:
    x = torch.randn(6, NODES, 4, generator=torch.Generator().manual_seed(number))
    return {"x": x, "y": 6 * x[..., 1].mean(1, keepdim=True) + 0.3 * x[..., 0]}


def tagged(number: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(number)
    tags = F.one_hot(torch.arange(2 * TAGS) % TAGS, TAGS).float().expand(8, -1, -1)
    content = torch.randn(8, 2 * TAGS, 4, generator=g)
    return {"x": torch.cat([tags, content], -1), "y": content.roll(TAGS, 1)[..., 0]}


def squared(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return F.mse_loss(output, batch["y"])


def said(model: nn.Module, make: Callable[[int], dict[str, Tensor]]) -> dict[str, Diagnosis]:
    """What `diagnose` says before, and a Monitor after 24 steps."""
    fresh, batches = copy.deepcopy(model), [make(number) for number in range(12)]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for batch in 2 * batches:
            optimizer.zero_grad()
            loss = squared(model(**{key: value for key, value in batch.items() if key != "y"}), batch)
            loss.backward()  # type: ignore[no-untyped-call]
            monitor.loss(loss)
            optimizer.step()
    own = torch.optim.Adam(fresh.parameters(), lr=3e-3)
    return {
        "monitor": monitor.diagnose(),
        "diagnose": gnnstab.diagnose(fresh, batch=batches[0], loss=squared, optimizer=own),
    }


def judged(found: dict[str, Diagnosis]) -> dict[str, Any]:
    return {face: [f.severity for f in d.findings if f.code == "GS301"] for face, d in found.items()}


def drawn(make: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model: nn.Module = make()
        return model


def test_a_gain_that_keeps_a_model_from_learning_is_the_root() -> None:
    found = said(drawn(lambda: Crowd(600.0)), crowd)
    # Both call the layer anew with an input of RMS 1, and so know that the weights alone make it one-hot.
    assert judged(found) == {"monitor": ["error"], "diagnose": ["error"]}
    for diagnosis in found.values():
        assert [cause.cause for cause in diagnosis.root_causes()] == ["attention-explosion"]
        assert "keeps the model from learning" in diagnosis.findings[0].message


def test_a_gain_within_a_fused_layer_that_keeps_a_model_from_learning_is_the_root() -> None:
    for diagnosis in said(drawn(lambda: Fused(300.0)), crowd).values():
        assert [cause.cause for cause in diagnosis.root_causes()] == ["attention-explosion"]
        assert "keeps the model from learning" in diagnosis.findings[0].message
    for diagnosis in said(drawn(lambda: Fused(1.0)), crowd).values():
        assert not diagnosis.at_least("warning")


def test_sharpness_from_the_start_is_judged_from_the_start() -> None:
    """After some steps the other weights have come to terms with it, and softening it would take that away."""
    found = said(drawn(lambda: Neighbours(60.0)), village)
    assert judged(found) == {"monitor": ["error"], "diagnose": ["error"]}
    for diagnosis in found.values():
        assert [cause.cause for cause in diagnosis.root_causes()] == ["attention-explosion"]
    for diagnosis in said(drawn(lambda: Neighbours(1.0)), village).values():
        assert not diagnosis.at_least("warning")


def test_a_sharpness_without_which_steps_learn_is_the_root_where_nothing_of_the_layer_can_be_undone() -> None:
    for diagnosis in said(drawn(lambda: Decided(14.0)), village).values():
        assert [cause.cause for cause in diagnosis.root_causes()] == ["attention-explosion"]
        (found,) = (f for f in diagnosis.findings if f.code == "GS302")
        assert found.severity == "error" and "keeps the model from learning" in found.message
        assert "not established" not in str(diagnosis)
    for diagnosis in said(drawn(lambda: Decided(1.0)), village).values():
        assert not diagnosis.at_least("warning")


def test_a_gain_that_suits_is_silent_and_costs_no_steps() -> None:
    for diagnosis in said(drawn(lambda: Crowd(4.0)), crowd).values():
        assert not diagnosis.at_least("warning")
        assert not [s for s in diagnosis.signals if s.name == OPTIMIZER_SOFTER]


def test_the_steps_say_what_an_output_of_zeros_would_lose_where_the_first_output_is_far_off() -> None:
    def loud() -> nn.Module:
        model = Crowd(40.0)
        model.out.bias.data.fill_(20.0)
        return model

    batch = crowd(0)
    for make, far_off in [(loud, True), (lambda: Crowd(40.0), False)]:
        model = drawn(make)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        diagnosis = gnnstab.diagnose(model, batch=batch, loss=squared, optimizer=optimizer)
        (signal,) = [s for s in diagnosis.signals if s.name == OPTIMIZER_SOFTER]
        zeros = float(batch["y"].square().mean())
        assert signal.detail["zeros"] == (pytest.approx(zeros, rel=1e-4) if far_off else None)


def test_sharp_and_right_from_the_start_is_information() -> None:
    found = said(drawn(lambda: Lookup(4.0)), tagged)
    assert judged(found) == {"monitor": ["info"], "diagnose": ["info"]}
    for diagnosis in found.values():
        (signal,) = [s for s in diagnosis.signals if s.name == OPTIMIZER_SOFTER]
        assert signal.value < 0.5
        assert not diagnosis.at_least("warning")


@pytest.mark.parametrize(("make", "raw"), [(lambda: Stations(15.0), False), (Raw, True)], ids=["a kernel", "features"])
def test_large_inputs_are_blamed_where_steps_learn_better_without_them(
    make: Callable[[], nn.Module], raw: bool
) -> None:
    for face, diagnosis in said(drawn(make), map_of).items():
        (signal,) = [s for s in diagnosis.signals if s.name == OPTIMIZER_INPUT_SHARE]
        assert signal.detail["names"] == ["where"], face
        assert (signal.detail["best"] > signal.detail["undone"]) is raw, face
        assert [f.code for f in diagnosis.findings if f.severity != "info" and f.code == "GS406"] == ["GS406"] * raw, (
            face
        )


def test_large_inputs_are_columns_and_vectors_of_measured_values() -> None:
    seconds, ids = 100 * torch.rand(9), torch.arange(9.0)[:, None]
    batch = {"x": torch.randn(9, 2), "age": seconds, "id": ids, "y": 50 * torch.rand(9, 1)}
    given = list[dict[str, Tensor]]()
    copy = type("Given", (nn.Module,), {"forward": lambda self, **batch: given.append(batch)})()
    found = large_inputs(dict.fromkeys(batch, False), [((), batch)], copy)
    assert found is not None and found[0].names == ("age",) and not found[1]
    found[0].undo(copy)
    copy(**batch)
    made = given[0].pop("age")
    assert all(tensor is batch[name] for name, tensor in given[0].items()) and made.shape == seconds.shape
    assert abs(float(made.mean())) < 1e-5 and abs(float(made.std(unbiased=False)) - 1) < 1e-4


@pytest.mark.parametrize("fused", [False, True])
def test_the_softmax_of_a_layer_is_softened_and_others_are_not(fused: bool) -> None:
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if fused:
                return F.scaled_dot_product_attention(x, x, x, scale=1.0)
            return (x @ x.transpose(-1, -2)).softmax(-1) @ x

    model, x = nn.ModuleDict({"a": Layer(), "b": Layer()}), 5 * torch.randn(2, 7, 3)
    before = model["a"](x), model["b"](x)
    mode = Softened(["a"])
    with mode:
        mode.watch(model)
        softer, same = model["a"](x), model["b"](x)
    factor = SPREAD / spread(x @ x.transpose(-1, -2), -1)
    expected = (factor * (x @ x.transpose(-1, -2))).softmax(-1) @ x
    assert torch.allclose(softer, expected, atol=1e-5)
    assert torch.equal(same, before[1])
    assert torch.equal(model["a"](x), before[0])
    assert mode.softened == {"a"}


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_whose_scores_a_fused_function_holds_is_softened(separate: bool, masked: bool) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"kdim": 6, "vdim": 6} if separate else {}
    attend, x = nn.MultiheadAttention(8, 2, batch_first=True, **sizes), torch.randn(3, 5, 8)
    nn.init.normal_(attend.in_proj_bias)
    with torch.no_grad():
        (attend.q_proj_weight if separate else attend.in_proj_weight[:8]).mul_(6)
    other = torch.randn(3, 5, 6) if separate else x
    ends = torch.arange(5) >= torch.tensor([[5], [4], [3]]) if masked else None
    model, mode = nn.ModuleDict({"a": attend}), Softened(["a"])
    given: dict[str, Any] = {"key_padding_mask": ends, "average_attn_weights": False}
    sharp = attend(x, other, other, **given)[1]
    with mode:
        mode.watch(model)
        output, soft = attend(x, other, other, **given)
    known = sharp.log().nan_to_num(neginf=-1e9)
    expected = (known * SPREAD / spread(known, -1)).softmax(-1)
    assert mode.softened == {"a"} and torch.allclose(soft, expected, atol=1e-4)
    output.sum().backward()
    weight = attend.q_proj_weight if separate else attend.in_proj_weight
    assert weight.grad is not None and weight.grad.abs().sum() > 0


def test_a_softmax_that_is_written_by_hand_is_softened_and_a_kernel_is_no_sharp_attention() -> None:
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            weights = (x @ x.T).exp()
            return weights @ x / weights.sum(1, keepdim=True)

    torch.manual_seed(0)
    model, x = nn.ModuleDict({"a": Layer(), "b": Layer()}), 2 * torch.randn(7, 3)
    before, mode = model["b"](x), Softened(["a"])
    with mode:
        mode.watch(model)
        softer, same = model["a"](x), model["b"](x)
    factor = SPREAD / spread((x @ x.T).flatten(), 0)
    assert torch.allclose(softer, (factor * (x @ x.T)).softmax(1) @ x, atol=1e-5)
    assert torch.equal(same, before) and mode.softened == {"a"}
    assert outputs_and_wide(model["b"], lambda: model["b"](x))[1] == []


def test_softmax_over_edges_is_softened_and_put_back() -> None:
    from torch_geometric.nn.conv import gat_conv

    conv, x = drawn(lambda: GATConv(4, 4)), 50 * torch.randn(5, 4)
    edges = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])
    before, mode = conv(x, edges), Softened(["GATConv"])
    with mode:
        mode.watch(conv)
        assert not torch.equal(conv(x, edges), before)
    assert gat_conv.softmax is softmax
    conv._forward_hooks.clear(), conv._forward_pre_hooks.clear()
    assert torch.equal(conv(x, edges), before)


def test_the_spread_is_that_within_targets_and_without_masks() -> None:
    scores = torch.tensor([[1.0, 3.0, -torch.inf], [10.0, 14.0, -1e9]])
    assert spread(scores, -1) == pytest.approx(((1 + 1 + 4 + 4) / 4) ** 0.5)
    flat, index = torch.tensor([[1.0], [3.0], [10.0], [14.0]]), torch.tensor([0, 0, 1, 1])
    assert spread_over_edges(flat, index) == pytest.approx(((1 + 1 + 4 + 4) / 4) ** 0.5)
    assert spread_over_edges(flat[:0], index[:0]) == 0
    assert spread_over_edges(flat, index, 6.0) == spread_over_edges(flat, index)
    assert spread_over_edges(flat, index, 6.5) == 6.5  # Half of the range: no larger spread can be within it.
    assert math.isnan(spread_over_edges(torch.full((4, 1), math.nan), index, 6.5))


def test_wide_scores_are_found_without_a_hook_on_what_calls_no_softmax() -> None:
    hooks = []

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            hooks.append(len(self.lin._forward_hooks))
            x = self.lin(x)
            return (x @ x.transpose(-1, -2)).softmax(-1) @ x

    model = nn.Sequential(Head())
    assert outputs_and_wide(model, lambda: len(model(50 * torch.randn(7, 3)))) == (7, ["0"])
    assert hooks == [0]
