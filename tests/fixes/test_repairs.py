"""Fixes that repair what is broken in single places: reinitialised weights, exchanged norms, clamps, changes by hand."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch_geometric.nn
from torch import nn
from torch_geometric.nn import GATConv, GraphNorm, HGTConv, LayerNorm, MessagePassing, TransformerConv
from torch_geometric.utils import softmax

import gnnstab
from gnnstab import fixes
from gnnstab.errors import FixError
from gnnstab.observation import measured_signals
from gnnstab.records import LayerFacts, Signal, Signals
from models.stacks import Stack, random_batch


class Net(nn.Module):
    """Two gated layers with GraphNorm and a clamp between them."""

    def __init__(self, **options):
        super().__init__()
        self.convs = nn.ModuleList(TransformerConv(8, 8, **options) for _ in range(2))
        self.norm = GraphNorm(8)
        self.parts = nn.Sequential(nn.ReLU6(), nn.Hardtanh(-0.1, 0.1))

    def forward(self, x, edge_index, batch=None):
        x = self.parts(self.norm(self.convs[0](x, edge_index), batch))
        return self.convs[1](x, edge_index)


def changed_parameters(one, other):
    theirs = dict(other.named_parameters())
    return {n for n, p in one.named_parameters() if n not in theirs or not torch.equal(p, theirs[n])}


def test_queries_and_keys_are_drawn_anew_and_nothing_else():
    model = Stack(2, 8)
    with torch.no_grad():
        for conv in model.convs:
            conv.lin_query.weight *= 100
    fixed = fixes.apply(model, "reinit-qk", seed=3)
    assert {n.split(".")[2] for n in changed_parameters(fixed, model)} == {"lin_query", "lin_key"}
    assert fixed.convs[0].lin_query.weight.abs().max() < 1
    again = fixes.apply(model, "reinit-qk", seed=3)
    assert changed_parameters(fixed, again) == set()
    one = fixes.apply(model, "reinit-qk", only=["convs.1"])
    assert {n.split(".")[1] for n in changed_parameters(one, model)} == {"1"}


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    ("layer", "drawn"),
    [
        (lambda: GATConv(8, 8), {"att_src", "att_dst"}),
        (lambda: GATConv(8, 8, edge_dim=3), {"att_src", "att_dst", "att_edge"}),
        (lambda: GATConv((8, 8), 8), {"att_src", "att_dst", "lin_dst.weight"}),
        (lambda: nn.MultiheadAttention(8, 2), {"in_proj_weight"}),
        (lambda: nn.MultiheadAttention(8, 2, kdim=6), {"q_proj_weight", "k_proj_weight"}),
    ],
)
def test_the_printed_lines_draw_what_a_layer_of_this_configuration_has(layer, drawn, stored, tmp_path):
    model = nn.ModuleDict({"conv": layer()})
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    (facts,) = gnnstab.diagnose(tmp_path / "weights.pt" if stored else model).layers
    before = copy.deepcopy(model["conv"].state_dict())
    owner = SimpleNamespace(conv=model["conv"])
    exec(fixes.change("reinit-qk", [facts]), {"torch": torch, "torch_geometric": torch_geometric, "self": owner})
    assert {n for n, tensor in model["conv"].state_dict().items() if not torch.equal(tensor, before[n])} == drawn


def test_a_learned_factor_on_the_scores_goes_back_to_one():
    model = nn.ModuleDict({"conv": HGTConv(6, 6, (["a"], [("a", "r", "a")]), heads=2)})
    with torch.no_grad():
        model["conv"].p_rel["a__r__a"].fill_(40.0)
    fixed = fixes.apply(model, "reinit-qk", seed=3)
    assert fixed["conv"].p_rel["a__r__a"].tolist() == [[1.0, 1.0]]
    line = "torch_geometric.nn.inits.ones(self.conv.p_rel)"
    assert line in fixes.change("reinit-qk", gnnstab.diagnose(model).layers)
    exec(line, {"torch_geometric": torch_geometric, "self": SimpleNamespace(conv=model["conv"])})
    assert model["conv"].p_rel["a__r__a"].tolist() == [[1.0, 1.0]]


def test_the_gate_is_drawn_anew():
    model = Net(beta=True)
    with torch.no_grad():
        model.convs[0].lin_beta.weight *= 100
    fixed = fixes.apply(model, "reinit-gate")
    assert changed_parameters(fixed, model) == {"convs.0.lin_beta.weight", "convs.1.lin_beta.weight"}
    assert fixed.convs[0].lin_beta.weight.abs().max() < 1
    with pytest.raises(FixError, match="no layer of Net has lin_beta"):
        fixes.apply(Net(), "reinit-gate")


def test_a_gate_that_is_seen_to_be_stuck_is_the_one_that_is_drawn_anew():
    model = nn.ModuleDict({"gates": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])})
    with torch.no_grad():
        model["gates"][1].bias.fill_(-30.0)
    stuck = Signal("place.gradient_stops", 2.0, "gates.1", detail={"operation": "sigmoid", "parameters": []})
    fixed = fixes.apply(model, "reinit-gate", signals=Signals("model", (), (stuck,)))
    assert changed_parameters(fixed, model) == {"gates.1.weight", "gates.1.bias"}
    assert fixes.change("reinit-gate", (), Signals("model", (), (stuck,))) == "model.gates[1].reset_parameters()"


@pytest.mark.parametrize(
    ("signal", "reinitialised"),
    [
        (Signal("channels.dead_share", 1.0, "convs.1"), {"1"}),
        (Signal("weight.rms", 1e25, "convs.0"), {"0"}),
        (Signal("weight.non_finite", 3.0, "convs.0"), {"0"}),
        (Signal("channels.dead_share", 0.5, "convs.1"), {"0", "1"}),
    ],
)
def test_only_broken_layers_are_drawn_anew_where_the_signals_show_them(signal, reinitialised):
    model = Stack(2, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    signals = Signals("model", (), values=(signal,))
    fixed = fixes.apply(model, "reinit-layers", signals=signals)
    assert {n.split(".")[1] for n in changed_parameters(fixed, model)} == reinitialised
    layers = [LayerFacts(f"convs.{i}", "TransformerConv", i, True) for i in range(2)]
    lines = fixes.change("reinit-layers", layers, signals).splitlines()
    assert lines == [f"self.convs[{i}].reset_parameters()" for i in sorted(reinitialised)]


def test_layer_norm_takes_the_place_of_graph_norm_and_keeps_graphs_of_one_node_alive():
    model, x = Net().double().eval(), torch.randn(2, 8, dtype=torch.float64)
    edges, batch = torch.zeros(2, 0, dtype=torch.long), torch.tensor([0, 1])
    fixed = fixes.apply(model, "layer-norm")
    assert isinstance(fixed.norm, LayerNorm)
    assert isinstance(model.norm, GraphNorm)
    assert not fixed.norm.training
    assert fixed.norm.weight.dtype == torch.float64
    assert model.norm(x, batch).abs().max() < 1e-3 < fixed.norm(x, batch).std()
    assert fixed(x, edges, batch).isfinite().all()
    with pytest.raises(FixError, match="no GraphNorm"):
        fixes.apply(Stack(2), "layer-norm")


def test_the_root_term_reaches_nodes_without_edges():
    model = Net(root_weight=False)
    x, edges = torch.randn(3, 8), torch.tensor([[0], [1]])
    assert not model.convs[0](x, edges)[2].any()
    fixed = fixes.apply(model, "root-weight")
    assert fixed.convs[0](x, edges)[2].any()
    assert not model.convs[0].root_weight
    with pytest.raises(FixError, match="has its root term"):
        fixes.apply(Net(), "root-weight")


def test_clamps_that_are_modules_are_taken_out():
    fixed = fixes.apply(Net(), "remove-clamp")
    x = torch.tensor([-1.0, 50.0])
    assert fixed.parts(x).tolist() == [0.0, 50.0]
    with pytest.raises(FixError, match="by hand"):
        fixes.apply(Stack(2), "remove-clamp")


def test_a_redrawn_network_trains():
    model, batch = Stack(3, 8), random_batch(12, 4, 8)
    fixed = fixes.apply(model, "reinit-qk")
    fixed(**batch).square().sum().backward()
    assert all(p.grad is not None for p in fixed.parameters())


class OwnAttention(MessagePassing):
    """Attention of somebody's own code, without 1/√d; (N, 16) → (N, 16)."""

    def __init__(self):
        super().__init__(aggr="add", node_dim=0)
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        for part in (self.q, self.k):
            nn.init.xavier_uniform_(part.weight, gain=3)

    def forward(self, x, edge_index):
        q, k, v = (part(x).view(-1, 2, 8) for part in (self.q, self.k, self.v))
        return self.propagate(edge_index, q=q, k=k, v=v).flatten(1)

    def message(self, q_i, k_j, v_j, index, size_i):
        return v_j * softmax((q_i * k_j).sum(-1), index, num_nodes=size_i).unsqueeze(-1)


def test_qk_clip_knows_attention_of_own_code():
    torch.manual_seed(0)
    model = OwnAttention()
    batch = {"x": torch.randn(40, 16), "edge_index": torch.randint(0, 40, (2, 400))}
    found = gnnstab.diagnose(model, batch=batch)
    advised = [fix for cause in found.causes for fix in cause.fixes if fix.fix == "qk-clip"]
    flat = " ".join(advised[0].change.replace("#", "").split())
    assert flat.startswith("in the code of model: multiply the scores before the softmax by"), "the layer is the model"
    assert "once" not in flat, "code acts at every step"
    assert "repeated" not in fixes.FIXES["qk-clip"].cost and "max|s| is" in fixes.FIXES["qk-clip"].__doc__
    signals = measured_signals(model, batch)
    changed = measured_signals(fixes.apply(model, "qk-clip", signals=signals), batch)
    cap = 3 * math.sqrt(2 * math.log(signals.value("degree.median")))
    assert signals.value("score.max_abs") > cap >= changed.value("score.max_abs") / 1.001
    with pytest.raises(FixError, match="multiply the scores by hand"):
        fixes.apply(model, "qk-clip", scores={type(model).__name__: [40.0, 40.0]}, degree=10)
