"""The drop-in layer against TransformerConv, and against formulas written out."""

import copy
import math

import pytest
import torch
from torch_geometric.nn import TransformerConv

from gnnstab.errors import FixError
from gnnstab.nn import StableTransformerConv
from gnnstab.nn import stable_transformer_conv as module

CONFIGURATIONS = [
    {},
    {"heads": 3, "concat": False, "edge_dim": 1},
    {"heads": 2, "beta": True},
    {"heads": 2, "edge_dim": 4, "bias": False, "root_weight": False},
    {"heads": 2, "beta": True, "concat": False, "edge_dim": 4},
]


def graph(nodes=12, edges=60, width=8, edge_dim=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(nodes, width, generator=generator, dtype=dtype)
    edge_index = torch.randint(0, nodes, (2, edges), generator=generator)
    edge_attr = torch.randn(edges, edge_dim, generator=generator, dtype=dtype) if edge_dim else None
    return x, edge_index, edge_attr


def seen_scores(monkeypatch):
    """The scores exactly as the layer hands them to softmax."""
    seen = []
    softmax = module.softmax

    def tap(score, *args, **kwargs):
        seen.append(score.detach())
        return softmax(score, *args, **kwargs)

    monkeypatch.setattr(module, "softmax", tap)
    return seen


@pytest.mark.parametrize("options", CONFIGURATIONS)
@pytest.mark.parametrize("training", [True, False])
def test_with_options_off_it_is_transformer_conv_bit_for_bit(options, training):
    plain = TransformerConv(8, 6, dropout=0.3, **options).train(training)
    stable = StableTransformerConv(8, 6, dropout=0.3, **options).train(training)
    stable.load_state_dict(plain.state_dict())
    arguments = graph(edge_dim=options.get("edge_dim"))
    results = []
    for conv in (plain, stable):
        torch.manual_seed(7)
        out = conv(*arguments)
        out.square().sum().backward()
        results.append((out, {n: p.grad for n, p in conv.named_parameters()}))
    assert torch.equal(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        other = results[1][1][name]
        assert (gradient is None and other is None) or torch.equal(gradient, other), name


def test_bipartite_and_attention_weights_agree_too():
    plain = TransformerConv((8, 5), 6, heads=2)
    stable = StableTransformerConv((8, 5), 6, heads=2)
    stable.load_state_dict(plain.state_dict())
    x = (torch.randn(10, 8), torch.randn(4, 5))
    edge_index = torch.tensor([[0, 3, 9, 5, 2], [0, 0, 3, 1, 1]])
    out, (_, alpha) = plain(x, edge_index, return_attention_weights=True)
    other, (_, beta) = stable(x, edge_index, return_attention_weights=True)
    assert torch.equal(out, other)
    assert torch.equal(alpha, beta)


@pytest.mark.parametrize("by_degree", [True, False])
@pytest.mark.parametrize("shape", ["soft", "hard"])
def test_scores_stay_within_the_cap_of_their_target(monkeypatch, by_degree, shape):
    conv = StableTransformerConv(8, 6, heads=2, score_cap=1.5, cap_by_degree=by_degree, cap_shape=shape)
    with torch.no_grad():
        conv.lin_query.weight *= 100
    x, edge_index, _ = graph()
    seen = seen_scores(monkeypatch)
    conv(x, edge_index)
    degree = torch.bincount(edge_index[1], minlength=12)[edge_index[1]].clamp(min=2)
    limit = 1.5 * (2 * degree.float().log()).sqrt() if by_degree else torch.full((60,), 1.5)
    assert (seen[0].abs() <= limit.view(-1, 1) * (1 + 1e-6)).all()
    assert (seen[0].abs() > 0.9 * limit.view(-1, 1)).any()


def test_a_common_offset_of_the_scores_does_not_reach_the_cap(monkeypatch):
    """A key bias shifts all scores of a target alike; an uncentred cap would make attention uniform."""
    conv = StableTransformerConv(8, 6, score_cap=50.0)
    x, edge_index, _ = graph()
    _, (_, before) = conv(x, edge_index, return_attention_weights=True)
    with torch.no_grad():
        conv.lin_key.bias += 1000.0
    _, (_, after) = conv(x, edge_index, return_attention_weights=True)
    assert torch.allclose(before, after, atol=1e-3)


def test_qk_norm_bounds_the_scores_whatever_the_input(monkeypatch):
    conv = StableTransformerConv(8, 16, heads=2, qk_norm=True, edge_dim=2)
    x, edge_index, edge_attr = graph(edge_dim=2)
    seen = seen_scores(monkeypatch)
    conv(1e4 * x, edge_index, 1e4 * edge_attr)
    assert seen[0].abs().max() <= math.sqrt(16) * (1 + 1e-5)


def test_qk_norm_loads_a_plain_state_dict_and_its_own():
    plain = TransformerConv(8, 6, heads=2)
    normed = StableTransformerConv(8, 6, heads=2, qk_norm=True)
    assert not normed.load_state_dict(plain.state_dict()).missing_keys
    assert torch.equal(normed.lin_query.weight, plain.lin_query.weight)
    with torch.no_grad():
        normed.norm_query.weight.fill_(0.5)
    again = StableTransformerConv(8, 6, heads=2, qk_norm=True)
    again.load_state_dict(normed.state_dict())
    assert torch.equal(again.norm_query.weight, normed.norm_query.weight)


def test_fp32_attention_survives_products_beyond_the_range_of_fp16():
    conv = StableTransformerConv(8, 16, heads=2)
    with torch.no_grad():
        for linear in (conv.lin_query, conv.lin_key):
            linear.weight.normal_(std=100.0)
    x, edge_index, _ = graph()
    with torch.autocast("cpu", dtype=torch.float16):
        assert not conv(x, edge_index).isfinite().all()
        StableTransformerConv.convert_(conv, fp32_attention=True)
        assert conv(x, edge_index).isfinite().all()


def test_fp32_attention_keeps_the_dtype_of_a_model_in_half_precision():
    conv = StableTransformerConv(8, 16, heads=2, fp32_attention=True).to(torch.bfloat16)
    x, edge_index, _ = graph(dtype=torch.bfloat16)
    assert conv(x, edge_index).dtype == torch.bfloat16


def test_conversion_keeps_the_instance_and_everything_on_it():
    conv = TransformerConv(8, 6, heads=2).double().eval()
    weight = conv.lin_query.weight
    conv.lin_skip.weight.requires_grad_(False)
    changed = StableTransformerConv.convert_(conv, score_cap=3.0)
    assert changed is conv
    assert changed.lin_query.weight is weight
    assert not changed.training
    assert not changed.lin_skip.weight.requires_grad
    assert StableTransformerConv.convert_(changed, qk_norm=True).score_cap == 3.0
    assert changed.norm_query.weight.dtype == torch.float64
    assert copy.deepcopy(changed)(torch.randn(3, 8, dtype=torch.float64), torch.tensor([[0, 1], [1, 2]])).shape == (
        3,
        12,
    )


def test_bad_options_are_refused():
    class Own(TransformerConv):
        pass

    with pytest.raises(FixError, match="derive it from"):
        StableTransformerConv.convert_(Own(4, 4), qk_norm=True)
    with pytest.raises(FixError, match="positive"):
        StableTransformerConv(4, 4, score_cap=0.0)
    with pytest.raises(FixError, match="cap_shape"):
        StableTransformerConv(4, 4, cap_shape="round")
    with pytest.raises(FixError, match="out_channels"):
        StableTransformerConv(4, 1, qk_norm=True)
    with pytest.raises(FixError, match="unknown option"):
        StableTransformerConv.convert_(TransformerConv(4, 4), clip=3)


@pytest.mark.parametrize("options", [{"score_cap": 3.0}, {"qk_norm": True}, {"fp32_attention": True}])
def test_compiled_without_a_graph_break(options):
    conv = StableTransformerConv(8, 6, heads=2, **options)
    x, edge_index, _ = graph()
    compiled = torch.compile(conv, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x, edge_index), conv(x, edge_index), atol=1e-6)


def test_an_empty_graph_and_lone_nodes_are_no_special_case():
    conv = StableTransformerConv(8, 6, score_cap=3.0, qk_norm=True)
    none = torch.empty(2, 0, dtype=torch.long)
    assert torch.equal(conv(torch.ones(4, 8), none), conv.lin_skip(torch.ones(4, 8)))
