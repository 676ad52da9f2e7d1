"""Normalisation directly beside a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn import GraphNorm, TransformerConv

from gnnstab.probe.measure import measure
from gnnstab.probe.norms import neighbouring_norms
from gnnstab.signals import from_trace

EDGES = torch.tensor([[0, 1, 2, 3, 2, 1], [1, 0, 3, 2, 1, 2]])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(4), GraphNorm(4)
        self.convs = nn.ModuleList(TransformerConv(4, 4) for _ in range(3))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None) -> Tensor:
        x = self.convs[0](self.before(x), edge_index)
        x = self.after(self.convs[1](x.relu(), edge_index=edge_index), batch)
        return self.convs[2](x.relu(), edge_index).relu()


def test_only_the_very_same_tensor_counts() -> None:
    net = Net()
    with neighbouring_norms(net, {f"convs.{i}": conv for i, conv in enumerate(net.convs)}) as found:
        net(torch.randn(4, 4), EDGES)
    assert found == {
        "convs.0": {"before": "LayerNorm", "after": ""},
        "convs.1": {"before": "", "after": "GraphNorm"},
        "convs.2": {"before": "", "after": ""},
    }
    assert not any(module._forward_hooks for module in net.modules())


def test_the_facts_and_the_smallest_graph_reach_the_signals() -> None:
    batch = {"x": torch.randn(4, 4), "edge_index": EDGES, "batch": torch.tensor([0, 0, 0, 1])}
    with measure(Net(), batch) as trace:
        signals = from_trace(trace)
    facts = {layer.name: (layer.norm_before, layer.norm_after) for layer in signals.attention_layers}
    assert facts == {"convs.0": ("LayerNorm", ""), "convs.1": ("", "GraphNorm"), "convs.2": ("", "")}
    assert signals.value("graph.smallest") == 1
