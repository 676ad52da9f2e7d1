"""Every kind of TransformerConv is recovered from names and shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.nn import (
    GATConv,
    GATv2Conv,
    HeteroConv,
    HypergraphConv,
    ResGatedGraphConv,
    SAGEConv,
    TransformerConv,
)

from gnnstab.checkpoint import load, recover
from gnnstab.errors import UsageError
from stored import stored

Save = Callable[..., Path]


def _wrapped(*layers: nn.Module) -> nn.Module:
    return nn.ModuleDict({"convs": nn.ModuleList(layers)})


@pytest.mark.parametrize("edge_dim", [None, 1, 5])
@pytest.mark.parametrize("beta", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("channels", [6, (6, 9)])
def test_averaged_heads_are_fully_decided(edge_dim: int | None, beta: bool, bias: bool, channels: Any) -> None:
    conv = TransformerConv(channels, 4, heads=3, concat=False, beta=beta, edge_dim=edge_dim, bias=bias)
    (layer,) = recover(stored(_wrapped(conv))).layers
    assert (layer.name, layer.kind, layer.position, layer.attention) == ("convs.0", "TransformerConv", 0, True)
    assert (layer.heads, layer.concat, layer.out_channels) == (3, False, 4)
    assert layer.in_channels == (channels if isinstance(channels, tuple) else (6, 6))
    assert (layer.get("beta"), layer.edge_dim, layer.bias) == (beta, edge_dim or 0, bias)
    assert layer.get("root_weight") is (True if beta else None)
    assert layer.dropout is layer.identity_path is layer.norm_before is None


@pytest.mark.parametrize("beta", [False, True])
def test_concatenated_heads_need_the_option(beta: bool) -> None:
    checkpoint = stored(_wrapped(TransformerConv(6, 4, heads=3, beta=beta)))
    facts = recover(checkpoint)
    assert (facts.layers[0].heads, facts.layers[0].concat, facts.layers[0].out_channels) == (None, None, None)
    heads = next(u for u in facts.undecided if u.what == "heads")
    assert (heads.option, heads.layers) == ("--heads N", ("convs.0",))
    assert {s.head for s in facts.values if s.name.startswith("logit.")} == {None}
    assert any(line.startswith("heads=unknown: 1, 2, 3, 4, 6, 12 tried") for line in facts.assumptions)
    given = recover(checkpoint, heads=3)
    assert (given.layers[0].heads, given.layers[0].concat, given.layers[0].out_channels) == (3, True, 4)
    assert "heads=3: given" in given.assumptions
    assert not [u for u in given.undecided if u.what == "heads"]


@pytest.mark.parametrize("name", ["args.num_heads", "hparams.n_heads", "config.model.heads"])
def test_heads_in_the_settings_are_a_stated_assumption(name: str) -> None:
    checkpoint = stored(TransformerConv(6, 4, heads=3), settings={name: 3})
    facts = recover(checkpoint)
    assert (facts.layers[0].heads, facts.layers[0].concat, facts.layers[0].out_channels) == (3, True, 4)
    assert f"heads=3: assumed from the file's setting {name}" in facts.assumptions
    assert recover(checkpoint, heads=2).layers[0].heads == 2, "what the user says counts more"


@pytest.mark.parametrize(
    "settings", [{"args.headset": 3}, {"args.heads": 5}, {"a.heads": 3, "b.heads": 2}, {"a.heads": True}]
)
def test_settings_that_do_not_say_it_leave_it_open(settings: dict[str, Any]) -> None:
    facts = recover(stored(TransformerConv(6, 4, heads=3), settings=settings))
    assert facts.layers[0].heads is None
    assert next(u for u in facts.undecided if u.what == "heads").layers == ("",)


@pytest.mark.parametrize(
    ("concat", "given", "message"),
    [
        (True, {"heads": 5}, r"heads=5 does not divide the 12 channels of convs.0; possible: 1, 2, 3, 4, 6, 12"),
        (False, {"heads": 2}, r"heads=2 contradicts the file: convs.0 has 3"),
        (False, {"concat": True}, "concat=True contradicts"),
        (True, {"concat": False, "heads": 2}, "contradict"),
        (True, {"activation": "swish"}, "unknown activation 'swish'"),
    ],
)
def test_what_the_file_contradicts_or_nobody_knows(concat: bool, given: dict[str, Any], message: str) -> None:
    checkpoint = stored(_wrapped(TransformerConv(6, 4, heads=3, concat=concat)))
    with pytest.raises(UsageError, match=message):
        recover(checkpoint, **given)
    assert recover(checkpoint, heads=3).layers[0].heads == 3


def test_given_heads_serve_the_layers_that_leave_them_open() -> None:
    layers = TransformerConv(6, 4, heads=2), TransformerConv(8, 5, heads=6, concat=False)
    facts = recover(stored(_wrapped(*layers)), heads=2)
    assert [(layer.heads, layer.concat) for layer in facts.layers] == [(2, True), (6, False)]


def test_concat_false_decides_a_single_head() -> None:
    assert recover(stored(TransformerConv(6, 4, heads=1)), concat=False).layers[0].heads == 1


def test_hetero_names_and_order_of_appearance() -> None:
    relation = lambda: TransformerConv((6, 6), 4, heads=2, concat=False)  # noqa: E731
    conv = HeteroConv({("user", "rates", "item"): relation(), ("item", "rev_rates", "user"): relation()})
    names = [layer.name for layer in recover(stored(nn.ModuleDict({"b": conv, "a": relation()}))).layers]
    assert names == ["b.convs.<user___rates___item>", "b.convs.<item___rev_rates___user>", "a"]


def test_a_single_layer_without_any_prefix() -> None:
    (layer,) = recover(stored(TransformerConv(6, 4, heads=2, concat=False))).layers
    assert layer.name == ""


def test_other_layers_are_counted_not_judged() -> None:
    net = nn.ModuleDict(
        {
            "gat": GATConv(8, 8),
            "gat2": GATv2Conv(8, 8, heads=2),
            "hyper": HypergraphConv(8, 8, use_attention=True),
            "gated": ResGatedGraphConv(8, 8),
            "mha": nn.MultiheadAttention(8, 2),
            "mixed": nn.MultiheadAttention(8, 2, kdim=6, vdim=6),
            "conv": TransformerConv(8, 8, heads=2, concat=False),
            "lin": nn.Linear(8, 8),
        }
    )
    facts = recover(stored(net))
    assert [(layer.name, layer.kind, layer.heads) for layer in facts.layers] == [
        ("gat", "GATConv", 1),
        ("gat2", "GATv2Conv", 2),
        ("mha", "MultiheadAttention", None),
        ("mixed", "MultiheadAttention", None),
        ("conv", "TransformerConv", 2),
    ]
    kinds = {blind.layer: blind.reason for blind in facts.unjudged}
    assert set(kinds) == {"hyper", "gated"}
    assert "HypergraphConv" in kinds["hyper"]
    assert "ResGatedGraphConv" in kinds["gated"]
    assert all("--model" in reason for reason in kinds.values())
    assert facts.linear_layers >= 1


def test_no_lin_skip_is_no_transformer_conv() -> None:
    tensors = {name: t for name, t in TransformerConv(6, 4).state_dict().items() if "skip" not in name}
    facts = recover(stored(tensors))
    assert facts.layers == ()
    assert "no lin_skip" in facts.unjudged[0].reason


LACKING = [
    *((TransformerConv(6, 4, heads=2), f"lin_{name}.weight") for name in ("key", "query", "value")),
    *((GATConv(6, 4), name) for name in ("att_src", "att_dst")),
    *((GATv2Conv(6, 4), f"lin_{name}.weight") for name in "lr"),
    *((nn.MultiheadAttention(8, 2), name) for name in ("in_proj_weight", "out_proj.weight")),
    *((nn.MultiheadAttention(8, 2, kdim=6), name) for name in ("q_proj_weight", "v_proj_weight", "out_proj.weight")),
]


@pytest.mark.parametrize(("layer", "name"), LACKING)
def test_a_layer_that_lacks_a_tensor_is_told_beside_others(layer: nn.Module, name: str) -> None:
    whole = {"a." + key: tensor for key, tensor in TransformerConv(6, 6).state_dict().items()}
    facts = recover(stored(whole | {f"b.{key}": tensor for key, tensor in layer.state_dict().items() if key != name}))
    assert [found.name for found in facts.layers] == ["a"]
    assert [(b.layer, b.is_other_attention, f"lacks {name}" in b.reason) for b in facts.unjudged] == [("b", True, True)]


def test_layers_that_share_some_names_lack_nothing() -> None:
    net = {"sage": SAGEConv((6, 6), 4), "lin": nn.ModuleDict({"out_proj": nn.Linear(3, 3), "lin_key": nn.Linear(3, 3)})}
    assert recover(stored(nn.ModuleDict(net))).unjudged == ()


@pytest.mark.parametrize(
    ("name", "shape", "blamed"),
    [
        ("lin_key.weight", (12, 7), "lin_value"),
        ("lin_query.weight", (11, 6), "lin_query"),
        ("lin_value.weight", (12,), "lin_value"),
        ("lin_skip.weight", (5, 6), "lin_beta"),
        ("lin_edge.weight", (11, 2), "lin_edge"),
        ("lin_beta.weight", (1, 13), "lin_beta"),
        ("lin_key.bias", (11,), "lin_key"),
        ("lin_skip.weight", (0, 6), "lin_skip"),
    ],
)
def test_shapes_that_do_not_fit_together(name: str, shape: tuple[int, ...], blamed: str) -> None:
    tensors = dict(TransformerConv(6, 4, heads=3, concat=False, edge_dim=2, beta=True).state_dict())
    tensors[name] = torch.zeros(shape)
    facts = recover(stored(tensors))
    assert facts.layers == ()
    assert f"{blamed}." in facts.unjudged[0].reason


def test_a_shared_layer_counts_once(saved: Save) -> None:
    shared = TransformerConv(6, 6, heads=2, concat=False)
    facts = recover(load(saved(nn.ModuleDict({"a": shared, "b": shared}).state_dict())))
    assert [layer.name for layer in facts.layers] == ["a"]
    assert "b is a under another name" in facts.notes


def test_clones_with_equal_weights_are_layers_of_their_own(saved: Save) -> None:
    import copy

    layer = TransformerConv(6, 6, heads=2, concat=False)
    facts = recover(load(saved(nn.ModuleList([layer, copy.deepcopy(layer)]).state_dict())))
    assert len(facts.layers) == 2
    assert any("second name" in note for note in facts.notes)


def test_layers_saved_before_their_first_forward(saved: Save) -> None:
    facts = recover(load(saved(nn.ModuleDict({"a": TransformerConv(-1, 4, heads=2)}).state_dict())))
    assert facts.layers == ()
    assert "a.lin_key.weight" in facts.uninitialised
    assert "uninitialised" in facts.unjudged[0].reason
