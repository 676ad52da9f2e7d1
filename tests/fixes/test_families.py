"""What is advised fits the kind of attention: nobody is told of queries and keys that the layer does not have."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.nn import GATConv, GATv2Conv, SuperGATConv

import gnnstab
from gnnstab.fixes.recommendation import recommend
from gnnstab.layers import LAYERS, layer_of
from gnnstab.records import Cause, LayerFacts, Signal, Signals

WORDS = ("query", "queries", "lin_key", "TransformerConv")


@pytest.mark.parametrize(
    "kind", [layer for layer in LAYERS if layer.score_words != "query and key weights"], ids=lambda k: k.kind
)
def test_every_advice_for_attention_that_explodes_can_be_followed(kind) -> None:  # type: ignore[no-untyped-def]
    facts = LayerFacts.of("conv", kind.kind, 0, heads=2, out_channels=4, in_channels=(4, 4), dropout=0.0)
    values = (
        Signal("score.max_abs", 90.0, "conv", 0),
        Signal("score.max_abs", 9.0, "conv", 1),
        Signal("degree.median", 6.0),
    )
    (cause,) = recommend(
        [Cause("attention-explosion", "root-cause", "measured")], [], Signals("model", (facts,), values=values)
    )
    for fix in cause.fixes:
        assert not [word for word in WORDS if word in fix.change], fix
    assert ("qk-clip" in {fix.fix for fix in cause.fixes}) == kind.applies("scale_scores")


class Net(nn.Module):
    """One layer."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(x, edge_index)
        return out


@pytest.mark.parametrize("kind", [GATConv, GATv2Conv, SuperGATConv])
def test_a_saturated_layer_is_not_told_of_queries_and_keys(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = Net(kind(8, 8, heads=2))
    layer = layer_of(net.conv)
    assert layer is not None
    with torch.no_grad():
        layer.scale_scores(net.conv, [300.0, 300.0])
    found = gnnstab.diagnose(net, batch=(torch.randn(60, 8), torch.randint(0, 60, (2, 600))))
    told = [f.message for f in found.findings if f.code in ("GS301", "GS302")]
    assert told
    assert not [(word, text) for word in WORDS for text in told if word in text]
