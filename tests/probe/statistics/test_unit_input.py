"""The attention at an input of RMS 1, recomputed without calling the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch_geometric.nn import TransformerConv

from gnnstab.layers import LAYERS, maps
from gnnstab.probe.statistics import attention_measures
from gnnstab.probe.statistics._unit_input import unit_input_attention


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("options", [{}, {"edge_dim": None}, {"bias": False}, {"concat": True, "heads": 2}])
def test_equal_to_the_layer_run_on_its_normalised_input(
    made: Callable[..., Any], scale: float, options: dict[str, Any]
) -> None:
    call, conv = made(scale=scale, **options)
    unit = call.x_source / call.x_source.square().mean().sqrt()
    edges = torch.stack([call.index_source, call.index_target])
    expected = conv(unit, edges, call.edge_attr, return_attention_weights=True)[1][1]
    assert torch.allclose(unit_input_attention(call, LAYERS[0], conv), expected, atol=1e-5)


def test_bipartite_inputs_are_normalised_each_by_its_own(recorded: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    conv = TransformerConv((3, 5), 4, heads=2)
    x = (10 * torch.randn(6, 3), torch.randn(4, 5))
    edges = torch.stack([torch.randint(0, 6, (15,)), torch.randint(0, 4, (15,))])
    unit = tuple(t / t.square().mean().sqrt() for t in x)
    expected = conv(unit, edges, return_attention_weights=True)[1][1]
    assert torch.allclose(unit_input_attention(recorded(conv, x, edges), LAYERS[0], conv), expected, atol=1e-5)


def test_blocks_of_edges_make_no_difference(made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    call, conv = made()
    whole = unit_input_attention(call, LAYERS[0], conv)
    monkeypatch.setattr(maps, "BLOCK", 50)
    assert torch.allclose(unit_input_attention(call, LAYERS[0], conv), whole, atol=1e-6)


def test_a_large_input_is_told_from_sharp_weights(made: Callable[..., Any]) -> None:
    call, conv = made(scale=30.0, edges=200)
    found = attention_measures(call, LAYERS[0], conv)
    assert float(found["attention.entropy"].total) < 0.3
    assert float(found["attention.entropy_unit_input"].total) > 0.9
    assert float(found["attention.one_hot_share_unit_input"].total) == 0


def test_no_hook_fires_and_no_random_number_is_drawn(made: Callable[..., Any]) -> None:
    call, conv = made(dropout=0.5)
    fired: list[nn.Module] = []
    for module in conv.modules():
        module.register_forward_hook(lambda module, *_: fired.append(module))
    before = torch.get_rng_state()
    assert unit_input_attention(call, LAYERS[0], conv) is not None
    assert fired == []
    assert torch.equal(before, torch.get_rng_state())


def test_scores_that_are_not_the_layers_own_formula_are_left_out(made: Callable[..., Any]) -> None:
    class Own(TransformerConv):
        def message(self, query_i, key_j, value_j, edge_attr, index, ptr, size_i):  # type: ignore[no-untyped-def]
            return super().message(query_i, key_j, value_j, edge_attr, index, ptr, size_i)

    class Renamed(TransformerConv):
        pass

    call, conv = made()
    own = Own(5, 4, heads=3, concat=False, edge_dim=2)
    assert not LAYERS[0].own_code(own)
    assert not LAYERS[0].own_code(nn.Linear(2, 2))
    assert LAYERS[0].own_code(Renamed(5, 4))
    measures = attention_measures(call, LAYERS[0], own)
    assert "precision.fp16_headroom" not in measures
    assert all(bool(measures[name].total.isnan()) for name in ("attention.entropy_unit_input", "score.product_scale"))
    # Reading a parametrised weight in train mode advances its power iteration.
    spectral_norm(conv.lin_query)
    kept = {name: buffer.clone() for name, buffer in conv.named_buffers()}
    assert kept
    assert unit_input_attention(call, LAYERS[0], conv) is None
    assert all(torch.equal(buffer, kept[name]) for name, buffer in conv.named_buffers())
    conv.lin_query = nn.Linear(7, 12)
    assert unit_input_attention(call, LAYERS[0], conv) is None


def test_an_input_of_zeros_is_undefined(made: Callable[..., Any]) -> None:
    call, conv = made(scale=0.0)
    assert torch.isnan(unit_input_attention(call, LAYERS[0], conv)).all()
