"""One look of an intervention: what it measures, how a suspect is undone in it, and that nothing of it stays."""

import math

import pytest
import torch
from torch import nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GraphNorm, TransformerConv
from torch_geometric.nn.conv import transformer_conv as home

import gnnstab
from gnnstab.records import Signals
from gnnstab.verification.interventions import _inputs as inputs
from gnnstab.verification.interventions import _measuring as measuring
from gnnstab.verification.interventions._suspects import norms_told_of_graphs
from gnnstab.verification.interventions._trial import Case, Edit
from models.stacks import Stack, random_batch


def test_the_name_softmax_is_given_back_after_a_forward_that_fails():
    model, before = Stack(2).eval(), home.softmax
    signals = gnnstab.diagnose(model, batch=random_batch())
    with pytest.raises(RuntimeError):
        measuring.look(
            model, {**random_batch(), "x": torch.rand(64, 3)}, Edit(), loss=None, precision="fp32", layers=signals.layers,
            signals=frozenset(), backward=False,
        )  # fmt: skip
    assert home.softmax is before


def test_the_short_look_sees_what_the_full_one_sees():
    torch.manual_seed(0)
    model, batch = Stack(6, heads=2, concat=False).eval(), random_batch()
    with torch.no_grad():
        for conv in model.convs:
            conv.lin_query.weight *= 8
    full = gnnstab.diagnose(model, batch=batch)
    wanted = frozenset(
        {"score.max_abs", "precision.fp16_headroom", "output.max_abs", "channels.dead_share", "smoothness.relative"}
    )
    short = measuring.look(
        model, batch, Edit(), loss=None, precision="fp32", layers=full.layers, signals=wanted, backward=True
    ).signals
    reference = Signals("model", full.layers, full.signals)
    for name in (*wanted, "attention.entropy", "attention.one_hot_share"):
        for signal in short.find(name):
            assert signal.value == pytest.approx(reference.value(name, layer=signal.layer), rel=1e-4, abs=1e-6), name
    assert short.value("gradient.ratio") == pytest.approx(reference.value("gradient.ratio"), rel=1e-3)
    assert len(short.find("attention.entropy")) == 6


class OwnDense(nn.Module):
    """Attention of three heads over a whole set, by one of torch's ways."""

    def __init__(self, way):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(12, 12) for _ in range(3))
        self.way, self.num_heads = way, 3

    def forward(self, x):
        query, key, value = (part(x).view(2, 8, 3, 4).transpose(1, 2) for part in (self.query, self.key, self.value))
        if self.way == "fused":
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        else:
            mixed = torch.softmax(query @ key.transpose(-1, -2) / 2, -1) @ value
        return x + mixed.transpose(1, 2).reshape(2, 8, 12)


class TorchsOwn(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x):
        return x + self.attn(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("way", ["softmax", "fused", "torch's own"])
def test_dense_attention_is_seen_and_scaled_in_a_look(way):
    torch.manual_seed(0)
    model = (TorchsOwn() if way == "torch's own" else OwnDense(way)).eval()
    # A second one, alike, whose queries are multiplied by hand.
    by_hand = TorchsOwn() if way == "torch's own" else OwnDense(way)
    by_hand.load_state_dict(model.state_dict())
    factors = torch.tensor([1.0, 0.1, 0.01])
    rows = factors.repeat_interleave(4)
    with torch.no_grad():
        for part in (model, by_hand):
            weight = part.attn.in_proj_weight[:12] if way == "torch's own" else part.query.weight
            weight *= 60
        bias = by_hand.attn.in_proj_bias[:12] if way == "torch's own" else by_hand.query.bias
        weight *= rows[:, None]
        bias *= rows
    batch = {"x": torch.randn(2, 8, 12)}
    full = gnnstab.diagnose(model, batch=batch)
    (layer,) = [one.name for one in full.layers if one.attention]
    wanted = frozenset({"score.max_abs", "attention.entropy", "attention.one_hot_share"})

    def looked(edit):
        return measuring.look(
            model, batch, edit, loss=None, precision="fp32", layers=full.layers, signals=wanted, backward=True
        )

    reference, scaled = gnnstab.diagnose(by_hand.eval(), batch=batch), looked(Edit(score_factors={layer: factors}))
    for name in wanted:
        for short, other in ((looked(Edit()).signals, full), (scaled.signals, reference)):
            expected = Signals("model", other.layers, other.signals).value(name, layer=layer)
            assert short.value(name, layer=layer) == pytest.approx(expected, rel=1e-4), name
    x = batch["x"]
    with torch.no_grad():
        expected = by_hand.attn(x, x, x)[0] if way == "torch's own" else by_hand(x)
    assert torch.allclose(scaled.outputs[layer], expected, atol=1e-5), "what follows gets the scaled attention"


def test_ids_counts_and_flags_are_no_suspects():
    nodes = 30
    ids = torch.arange(nodes).float() * 1000
    x = torch.stack([ids, (ids % 7 == 0).float(), torch.randn(nodes), 50 * torch.randn(nodes)], 1)
    assert inputs.deviating(x, whole=False).tolist() == [3]
    assert inputs.deviating(x, whole=True).tolist() == [0, 3], "a weight multiplies the ids"
    changed = inputs.standardised(x, torch.tensor([3]))
    assert torch.equal(changed[:, :3], x[:, :3])
    assert changed[:, 3].std(unbiased=False) == pytest.approx(1, rel=1e-4)
    assert inputs.deviating(torch.randint(0, 9, (4, 2)), whole=True) is None
    assert inputs.deviating(torch.zeros(0, 3), whole=True) is None
    assert inputs.deviating(torch.full((5, 2), math.nan), whole=True) is None


@pytest.mark.parametrize("kind", ["data", "hetero", "dict", "dict of dicts", "tuple"])
def test_a_tensor_is_replaced_under_its_name(kind):
    x, other = torch.randn(4, 2), torch.randn(4, 2)
    hetero = HeteroData()
    hetero["user"].x, hetero["item"].x = x, other
    batch, name = {
        "data": (Data(x=x, edge_attr=other), "x"),
        "hetero": (hetero, "user.x"),
        "dict": ({"x": x, "edge_index": other}, "x"),
        "dict of dicts": ({"x_dict": {"user": x, "item": other}}, "x_dict.user"),
        "tuple": ((x, other), "x"),
    }[kind]
    model, new = Stack(1), torch.zeros(4, 2)
    assert inputs.tensors_of(batch, model)[name] is x
    changed = inputs.tensors_of(inputs.with_tensor(batch, x, new), model)
    assert changed[name] is new
    assert sum(value is other for value in changed.values()) == 1
    assert inputs.tensors_of(batch, model)[name] is x


class Normed(nn.Module):
    """A GraphNorm between two layers that is not told which node belongs to which graph."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = TransformerConv(16, 16), GraphNorm(16), TransformerConv(16, 16)

    def forward(self, x, edge_index, batch):
        return self.second(self.norm(self.first(x, edge_index)), edge_index)


def test_a_norm_gets_the_batch_that_it_was_called_without():
    model = Normed().eval()
    given = {**random_batch(), "batch": torch.arange(64) // 16}
    signals = Signals("model", (), context={"norm_without_batch": ("norm",)})
    case = Case(model, given, None, "fp32", signals, (), ())
    (trial,) = norms_told_of_graphs(case, measuring.Look(signals, math.nan, {}))
    seen = []
    with trial.edit.model(model) as changed:
        handle = model.norm.register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
        changed(**given)
        handle.remove()
    assert torch.equal(seen[0]["batch"], given["batch"])
    assert not model.norm._forward_pre_hooks


def test_a_clamp_is_taken_off_in_code_and_in_modules():
    x = torch.tensor([[-9.0, 0.5, 9.0]])

    def clamped(value):
        return (
            value.clamp(-1, 1),
            torch.clip(value, max=1.0),
            nn.Hardtanh()(value),
            nn.ReLU6()(value),
            value.clamp(min=0.1),
        )

    with measuring._Unclamped():
        free = clamped(x)
    assert all(torch.equal(free[i], x) for i in (0, 1, 2))
    assert free[3].tolist() == [[0.0, 0.5, 9.0]]
    assert free[4].tolist() == clamped(x)[4].tolist()
