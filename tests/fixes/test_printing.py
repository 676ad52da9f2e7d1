"""The printed change: the user's own arguments, runnable code, honest gaps."""

import ast
import dataclasses
import inspect
import textwrap

import numpy as np
import pytest
import torch
import torch_geometric
from torch import nn
from torch_geometric.nn import TransformerConv

from gnnstab import fixes
from gnnstab.errors import FixError, UsageError
from gnnstab.fixes import FIXES
from gnnstab.fixes.aggregation import OF_PYG
from gnnstab.fixes.printing import WIDTH, attribute_names, looped, with_narrow_comments
from gnnstab.records import Event, LayerFacts, Series, Signal, Signals
from gnnstab.records.vocabulary import (
    LOSS_MARKED_TARGETS,
    OPTIMIZER_GROUP_RATE,
    OPTIMIZER_LOSS_RISE,
    PLACE_LOST_DIGITS,
    PLACE_NORMALISED_AWAY,
)
from models.informarl import Actor


def facts(name="gnn.gnn1", **known):
    options = {"in_channels": (16, 16), "out_channels": 16, "heads": 3, "concat": False, "beta": False, "dropout": 0.0}
    return LayerFacts.of(name, "TransformerConv", 0, True, **{**options, "edge_dim": 1, "activation": "relu", **known})


THREE = [facts("gnn.gnn1"), facts("gnn.gnn2.0"), facts("gnn.gnn2.1")]


BARE = LayerFacts("conv", "TransformerConv", 0, True)
SUM = LayerFacts("embed", "SumEmbedding", 0, False)


@pytest.mark.parametrize(
    ("fix", "layers", "options", "text"),
    [
        ("dropout", [facts()], {}, "# gnn.gnn1\nTransformerConv(16, 16, heads=3, concat=False, edge_dim=1, dropout=0.1)"),
        # Equal layers share one line, and an argument that is replaced appears once.
        ("dropout", [facts(n, dropout=0.5) for n in ("a", "b")], {"p": 0.2},
         "# a, b\nTransformerConv(16, 16, heads=3, concat=False, edge_dim=1, dropout=0.2)"),
        ("beta", [BARE], {}, "TransformerConv(..., ..., beta=True)  # conv"),
        ("dropout", [SUM, BARE], {}, "TransformerConv(..., ..., dropout=0.1)  # conv"),
    ],
)  # fmt: skip
def test_a_constructor_is_printed_with_the_users_own_arguments(fix, layers, options, text):
    assert fixes.change(fix, layers, **options) == text


def test_residual_prints_the_lines_of_forward():
    assert fixes.change("residual", THREE, weight=0.1).splitlines() == [
        "x = 0.1 * x + torch.relu(self.gnn1(x, edge_index, edge_attr))",
        "x = 0.1 * x + torch.relu(self.gnn2[0](x, edge_index, edge_attr))",
        "x = 0.1 * x + torch.relu(self.gnn2[1](x, edge_index, edge_attr))",
    ]
    assert "x = x + torch.relu(self.gnn1(self.norms[0](x)" in fixes.change("pre-norm-residual", THREE)
    assert "no identity here" in fixes.change("residual", [facts(in_channels=(7, 7))])


def test_a_list_of_layers_is_one_loop_and_an_unknown_activation_is_defined():
    layers = [facts(f"convs.{number}", activation=None) for number in range(6)]
    assert fixes.change("pre-norm-residual", layers).splitlines() == [
        "# in __init__",
        "self.norms = nn.ModuleList([nn.LayerNorm(16) for _ in range(6)])",
        "act = torch.relu  # or the activation that stands between your layers",
        "for conv, norm in zip(self.convs, self.norms):",
        "    x = x + act(conv(norm(x), edge_index, edge_attr))",
    ]
    other = [*layers, facts("convs.6", activation=None, in_channels=(7, 7))]
    assert "self.convs[6]" in fixes.change("residual", other)


@pytest.mark.parametrize("name", FIXES)
def test_every_change_defines_what_it_calls(name):
    text = fixes.change(name, [facts("conv", activation=None)])
    assert "math." not in text
    assert ("act = " in text) == ("+ act(" in text)


@pytest.mark.parametrize("fix", ["aggregation", "mean-aggregation-root", "norm-after-sum"])
def test_a_layer_of_pyg_is_changed_where_the_model_makes_and_calls_it(fix):
    layers = [LayerFacts(f"aggs.{i}", "GINConv", i, False, (32, 32), 32, aggregation="add") for i in range(2)]
    text = fixes.change(fix, layers)
    assert ("GINConv(mlp, aggr='mean')  # aggs.0, where your model makes it" in text) == (fix != "norm-after-sum")
    assert ("self.aggs[0](x, edge_index)" in text) == (fix != "aggregation")
    assert "super()" not in text
    assert "self.propagate" not in text
    ast.parse(text)


def test_classes_of_pyg_that_sum_take_a_reduction():
    for kind in OF_PYG:
        arguments = inspect.signature(getattr(torch_geometric.nn, kind).__init__).parameters
        assert {"aggr", "kwargs"} & set(arguments), kind


def test_names_of_lists_stay():
    layers = [facts("convs.0"), facts("convs.1")]
    assert attribute_names(layers) == {"convs.0": "self.convs[0]", "convs.1": "self.convs[1]"}
    assert attribute_names([facts("net.conv")]) == {"net.conv": "self.conv"}
    (hostile,) = attribute_names([facts(STRANGE)]).values()
    assert eval(hostile, {"self": type("Any", (), {STRANGE.rpartition(".")[2]: 7})()}) == 7


STRANGE = "c;import os;os.system('id')\n;x"


@pytest.mark.parametrize("name", FIXES)
def test_names_that_a_file_holds_never_become_code(name):
    layers = [
        facts(STRANGE, activation=STRANGE),
        dataclasses.replace(facts("c.class"), kind=STRANGE, in_channels=None),
    ]
    operation = {"operation": STRANGE, "file": STRANGE, "code": STRANGE, "line": STRANGE, "kind": STRANGE}
    places = (PLACE_NORMALISED_AWAY, PLACE_LOST_DIGITS, LOSS_MARKED_TARGETS, OPTIMIZER_LOSS_RISE, OPTIMIZER_GROUP_RATE)
    detail = {"mark": STRANGE, "optimizer": STRANGE, "group": STRANGE, "names": [STRANGE], "calms": True}
    values = tuple(Signal(place, 1.0, STRANGE, detail=detail) for place in places)
    scores = tuple(Signal("score.max_abs", 128.0, layer.name, 0) for layer in layers)
    for events in ((), (Event(0, "non-finite", detail={"operation": operation}),)):
        signals = Signals("model", tuple(layers), (*values, *scores, Signal("degree.median", 10.0)), events=events)
        nodes = list(ast.walk(ast.parse(fixes.change(name, layers, signals))))
        assert not any(isinstance(node, ast.Name) and node.id == "os" for node in nodes)
        assert not any(alias.name == "os" for node in nodes if isinstance(node, ast.Import) for alias in node.names)


@pytest.mark.parametrize("name", FIXES)
@pytest.mark.parametrize("layers", [THREE, [], [LayerFacts("conv", "TransformerConv", 0, True)]])
def test_every_change_is_python_for_any_layers(name, layers):
    text = fixes.change(name, layers)
    assert text
    ast.parse(text)


def test_qk_clip_prints_and_applies_the_same_factors():
    signals = Signals(
        "model",
        (facts("conv", heads=2, out_channels=4),),
        (
            Signal("score.max_abs", 128.75, "conv", 0),
            Signal("score.max_abs", 1.0, "conv", 1),
            Signal("degree.median", 10.0),
        ),
    )
    # τ at an in-degree of 10 is 3·√(2 ln 10) = 6.4379; γ = 0.0500 for the first head, the second is left alone.
    assert fixes.change("qk-clip", signals.layers, signals).splitlines() == [
        "# once, on the weights as they are; not at every step",
        "model.conv.lin_query.weight.data[0:4] *= 0.05",
        "model.conv.lin_query.bias.data[0:4] *= 0.05",
    ]
    model = nn.ModuleDict({"conv": TransformerConv(3, 4, heads=2)})
    changed = fixes.apply(model, "qk-clip", signals=signals)
    old, new = model["conv"].lin_query, changed["conv"].lin_query
    assert torch.allclose(new.weight[:4], old.weight[:4] * 0.0500032, rtol=1e-3)
    assert torch.equal(new.weight[4:], old.weight[4:])
    assert torch.allclose(new.bias[:4], old.bias[:4] * 0.0500032, rtol=1e-3)


def test_scaling_the_query_rows_scales_every_score_of_the_head(monkeypatch):
    from gnnstab.nn import StableTransformerConv, stable_transformer_conv

    seen = []
    softmax = stable_transformer_conv.softmax
    monkeypatch.setattr(
        stable_transformer_conv, "softmax", lambda s, *a, **k: (seen.append(s.detach()), softmax(s, *a, **k))[1]
    )
    model = nn.ModuleDict({"conv": StableTransformerConv(3, 4, heads=2, edge_dim=2)})
    arguments = torch.randn(5, 3), torch.tensor([[0, 1, 2], [3, 3, 4]]), torch.randn(3, 2)
    model["conv"](*arguments)
    fixes.apply(model, "qk-clip", scores={"conv": [64.379, 1.0]}, degree=10)["conv"](*arguments)
    assert torch.allclose(seen[1][:, 0], seen[0][:, 0] * 0.1, rtol=1e-3)
    assert torch.allclose(seen[1][:, 1], seen[0][:, 1])


def test_diff_of_the_users_file():
    text = fixes.diff(Actor(), "aggregation")
    assert "-        super().__init__(aggr=aggr)\n+        super().__init__(aggr='mean')\n" in text
    assert fixes.diff(Actor(), "dropout") is None  # TransformerConv(16, 16, **options): the keyword may be in there
    text = fixes.diff(Plain(), "dropout")
    assert "-        self.conv = TransformerConv(4, 4, heads=2)\n" in text
    assert "+        self.conv = TransformerConv(4, 4, heads=2, dropout=0.1)\n" in text
    assert "dropout=0.1" in fixes.diff(Named(), "dropout")
    assert "-        self.conv = TransformerConv(4, 4, dropout=0.0)" in fixes.diff(Named(), "dropout")
    capped = fixes.diff(Plain(), "score-cap")
    assert "+from gnnstab.nn import StableTransformerConv\n" in capped
    assert "StableTransformerConv(4, 4, heads=2, score_cap=3.0)" in capped
    assert fixes.diff(Plain(), "residual") is None
    assert fixes.diff(TransformerConv(2, 2), "dropout") is None


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = TransformerConv(4, 4, heads=2)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = TransformerConv(4, 4, dropout=0.0)


def test_export_writes_only_weight_edits_to_new_files(tmp_path):
    model = nn.ModuleDict({"conv": TransformerConv(3, 4, heads=2)})
    state = {k: v.clone() for k, v in model.state_dict().items()}
    options = {"scores": {"conv": [64.379, 1.0]}, "degree": 10}
    path = fixes.export(model, "qk-clip", tmp_path / "repaired.pt", **options)
    other = fixes.export(state, "qk-clip", tmp_path / "other.pt", **options)
    one, two = torch.load(path, weights_only=True), torch.load(other, weights_only=True)
    assert all(torch.equal(one[k], two[k]) for k in state)
    assert torch.allclose(one["conv.lin_query.weight"][:4], state["conv.lin_query.weight"][:4] * 0.1, rtol=1e-3)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    with pytest.raises(UsageError, match="exists"):
        fixes.export(model, "qk-clip", path, **options)
    with pytest.raises(FixError, match="only qk-clip"):
        fixes.export(model, "beta", tmp_path / "x.pt")
    with pytest.raises(FixError, match="other layer names"):
        fixes.export(state, "qk-clip", tmp_path / "y.pt", scores={"other": [1.0]}, degree=10)


def test_the_learning_rate_goes_down_to_what_was_tried():
    fix = fixes.find("lower-lr")
    detail = {"optimizer": "AdamW", "lr": 0.3, "calm_lr": 0.1 / 3}
    signals = Signals("model", (), values=(Signal("optimizer.loss_rise", 5.0, detail=detail),))
    assert fix.training_options(current=0.3, signals=signals)["lr"] == pytest.approx(0.1 / 3)
    loop = "for group in optimizer.param_groups:  # right after it is made\n    group"
    assert fix.change([], signals) == f'{loop}["lr"] = 0.0333  # in place of 0.3', "momentum, decay and betas stay"
    apart = Signals("model", (), values=(Signal("optimizer.loss_rise", 5.0, detail={**detail, "apart": True}),))
    assert fix.change([], apart) == f'{loop}["lr"] *= 0.11', "each group keeps its share"
    assert fixes.change("adam-eps", []) == f'{loop}["eps"] = 1e-08'
    detail = {"optimizer": "Adam", "lr": 0.3, "calm_lr": float("nan")}
    none_calm = Signals("model", (), values=(Signal("optimizer.loss_rise", 5.0, detail=detail),))
    ratio = Signals("model", (), values=(Signal("optimizer.lr_to_rms", 0.6, "conv"),))
    own = Signals("trace", (), context={"optimizer": "SGD"})
    rungs = ("= 0.1\n# else = 0.0333, = 0.0111", "/= 3\n# else /= 9, /= 27")
    for not_tried, said in ((none_calm, 0), (ratio, 1), (None, 1), (own, 1)):
        assert fix.training_options(current=0.3, signals=not_tried)["lr"] == pytest.approx(0.1)
        assert fix.change([], not_tried).startswith(f'{loop}["lr"] {rungs[said]}, …')
    assert fix.training_options(lr=1e-4, signals=signals)["lr"] == 1e-4


def test_layers_of_one_list_are_written_as_a_loop() -> None:
    blocks = [(f"self.convs[{i}]", [f"self.convs[{i}].lin_key.reset_parameters()"]) for i in (1, 2, 3)]
    assert looped(blocks) == ["for layer in self.convs[1:4]:", "    layer.lin_key.reset_parameters()"]
    for apart in (blocks[::2], [("self.blocks[0].conv", ["self.blocks[0].conv.reset_parameters()"])], blocks[:1]):
        assert looped(apart) == [line for _, lines in apart for line in lines]


@pytest.mark.parametrize("name", FIXES)
@pytest.mark.parametrize("layers", [[facts()], [facts(f"encoder.blocks.{i}.attention") for i in range(12)]], ids=len)
def test_no_comment_makes_a_line_of_code_wide(name, layers):
    for line in fixes.change(name, layers).splitlines():
        assert "#" not in line or len(line) <= WIDTH


def test_a_wide_comment_goes_above_its_line_and_marks_inside_of_texts_stay():
    said = "the reason " * 8
    assert with_narrow_comments(f"    x = f(x)  # {said}").splitlines() == [
        *(f"    # {line}" for line in textwrap.wrap(said, WIDTH - 6)), "    x = f(x)",
    ]  # fmt: skip
    for kept in ("x = 1  # short", f"x = 'a  # {said}'", f"x = {'y + ' * 30}y", f"#     {said}".rstrip()):
        assert with_narrow_comments(kept) == kept


@pytest.mark.parametrize(("sound", "offered"), [(60, True), (3, False)])
def test_a_limit_of_the_gradient_comes_from_steps_that_were_not_lost(sound, offered):
    steps = np.arange(80)
    lost = steps >= sound
    series = (
        Series("loss", None, None, steps, np.where(lost, np.where(steps % 2, np.nan, 1e9), 1.2)),
        Series("gradient.norm", None, None, steps, np.where(lost, 1e13, 0.5)),
    )
    fix, signals = FIXES["gradient-clipping"], Signals("trace", (BARE,), series=series)
    assert fix.helps(signals) is offered
    assert fix.helps(Signals("checkpoint", (BARE,))), "no run was seen: the norms are the reader's"
    assert fix.training_options(signals=signals) == ({"clip": 0.5} if offered else {"clip_percentile": 90.0})
    assert ("model.parameters(), 0.5)" in fix.change([BARE], signals)) is offered
