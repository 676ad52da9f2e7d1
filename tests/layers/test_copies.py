"""Copies of PyG's attention layers in somebody's own code, with less in them than in the original: seen and judged as the original is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.utils import add_self_loops, softmax

import gnnstab

NODES, WIDTH = 40, 24


class TransformerConv(MessagePassing):
    """Heads are always joined, and nothing says so."""

    def __init__(self, heads: int) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.heads, self.out_channels = heads, WIDTH // heads
        self.lin_query, self.lin_key, self.lin_value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.lin_skip = nn.Linear(WIDTH, WIDTH)

    def sharpen(self, factor: float) -> None:
        """Make the scores larger."""
        self.lin_query.weight.data *= factor

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Message and skip."""
        query, key, value = (
            f(x).view(-1, self.heads, self.out_channels) for f in (self.lin_query, self.lin_key, self.lin_value)
        )
        out: Tensor = self.propagate(edge_index, query=query, key=key, value=value)
        return out.flatten(1) + self.lin_skip(x)

    def message(self, query_i: Tensor, key_j: Tensor, value_j: Tensor, index: Tensor, size_i: int) -> Tensor:
        """Attention times value."""
        alpha = (query_i * key_j).sum(-1) / math.sqrt(self.out_channels)
        return value_j * softmax(alpha, index, num_nodes=size_i).unsqueeze(-1)


class GATv2Conv(MessagePassing):
    """Scores are made in ``message``, as in early releases of PyG."""

    def __init__(self, heads: int) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.heads, self.out_channels, self.negative_slope = heads, WIDTH // heads, 0.2
        self.lin_l, self.lin_r = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.att = nn.Parameter(torch.randn(1, heads, self.out_channels) * 0.3)

    def sharpen(self, factor: float) -> None:
        """Make the scores larger."""
        self.att.data *= factor

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """With a loop at every node."""
        left, right = (f(x).view(-1, self.heads, self.out_channels) for f in (self.lin_l, self.lin_r))
        edge_index, _ = add_self_loops(edge_index, num_nodes=len(x))
        return self._propagated(edge_index, left, right)

    def _propagated(self, edge_index: Tensor, left: Tensor, right: Tensor) -> Tensor:
        out: Tensor = self.propagate(edge_index, x=(left, right))
        return out.flatten(1)

    def message(self, x_j: Tensor, x_i: Tensor, index: Tensor, size_i: int) -> Tensor:
        """Attention times value."""
        alpha = (F.leaky_relu(x_i + x_j, self.negative_slope) * self.att).sum(-1)
        return x_j * softmax(alpha, index, num_nodes=size_i).unsqueeze(-1)


class LoopsUnsaid(GATv2Conv):
    """Scores are made in ``edge_update``; no switch says whether loops are added."""

    def _propagated(self, edge_index: Tensor, left: Tensor, right: Tensor) -> Tensor:
        alpha = self.edge_updater(edge_index, x=(left, right))
        out: Tensor = self.propagate(edge_index, x=(left, right), alpha=alpha)
        return out.flatten(1)

    def edge_update(self, x_j: Tensor, x_i: Tensor, index: Tensor, size_i: int) -> Tensor:
        """The attention."""
        alpha = (F.leaky_relu(x_i + x_j, self.negative_slope) * self.att).sum(-1)
        return softmax(alpha, index, num_nodes=size_i)

    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:  # type: ignore[override]
        """Attention times value."""
        return x_j * alpha.unsqueeze(-1)


class Net(nn.Module):
    """One layer between two maps."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.first, self.conv, self.last = nn.Linear(6, WIDTH), conv, nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """With a residual."""
        h = self.first(x)
        return self.last(h + self.conv(h, edge_index)).squeeze(-1)  # type: ignore[no-any-return]


def _judged(kind: Any, heads: int, factor: float) -> Any:
    torch.manual_seed(3)
    conv = kind(heads)
    conv.sharpen(factor)
    source = torch.randint(NODES, (NODES * 6,))
    target = torch.arange(NODES * 6) % NODES
    edges = torch.stack([source, (target + (source == target)) % NODES])
    return gnnstab.diagnose(Net(conv), batch=(torch.randn(NODES, 6), edges))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("kind", [TransformerConv, GATv2Conv, LoopsUnsaid])
def test_a_copy_that_lacks_parts_is_seen_and_only_a_sharp_one_is_named(kind: Any, heads: int) -> None:
    healthy, sharp = _judged(kind, heads, 1.0), _judged(kind, heads, 100.0)
    assert not [f for f in healthy.findings if f.severity != "info"]
    assert {rule.status for rule in healthy.rules if rule.code == "GS301"} == {"passed"}
    assert "GS301" in {f.code for f in sharp.findings if f.severity != "info"}
    assert not {f.code for f in (*healthy.findings, *sharp.findings)} & {"GS901", "GS902"}


class Multiplied(TransformerConv):
    """Products are multiplied where the original divides them, or made of something else."""

    factor, distances = 10.0 * WIDTH, False

    def message(self, query_i: Tensor, key_j: Tensor, value_j: Tensor, index: Tensor, size_i: int) -> Tensor:
        """Attention times value."""
        alpha = (query_i * key_j).sum(-1) / math.sqrt(self.out_channels) * self.factor
        alpha = alpha - (query_i - key_j).square().sum(-1) if self.distances else alpha
        return value_j * softmax(alpha, index, num_nodes=size_i).unsqueeze(-1)


class Divided(Multiplied):
    """As the original."""

    factor = 1.0


class OfDistances(Multiplied):
    """No products alone."""

    distances = True


def test_what_a_copy_multiplies_the_scores_with_is_measured_and_undone() -> None:
    said = _judged(Multiplied, 1, 1.0)
    (scale,) = [s.value for s in said.signals if s.name == "score.product_scale"]
    assert math.isclose(scale, Multiplied.factor, rel_tol=1e-3)
    assert [(c.cause, c.how) for c in said.root_causes()] == [("attention-explosion", "undone")]
    assert "Dividing the scores of conv down to q·k/√d" in said.root_causes()[0].reason
    right = _judged(Divided, 1, 1.0)
    assert [round(s.value, 4) for s in right.signals if s.name == "score.product_scale"] == [1.0]
    assert not [f for f in right.findings if f.severity != "info"]


def test_scores_that_are_no_multiple_of_the_original_s_have_no_scale() -> None:
    said = _judged(OfDistances, 1, 1.0)
    assert not [s for s in said.signals if s.name == "score.product_scale" and math.isfinite(s.value)]
