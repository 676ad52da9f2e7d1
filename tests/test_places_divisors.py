"""Linear attention whose normaliser passes through 0, over edges and over all pairs, and the same with positive weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gnnstab
from test_places import WIDTH, data, loss
from trained import trained


class Linear(nn.Module):
    """Weights φ(q)·φ(k), divided by their sum; ``edges``: over neighbours in place of all nodes."""

    def __init__(self, phi: Any, edges: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 1)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.phi, self.edges = phi, edges

    def forward(self, batch: Any) -> Tensor:
        h = self.enter(batch.x)
        q, k, v = self.phi(self.query(h)), self.phi(self.key(h)), self.value(h)
        if not self.edges:
            return self.leave(q @ (k.T @ v) / (q @ k.sum(0))[:, None]).squeeze(-1)
        source, target = batch.edge_index
        weights = (q[target] * k[source]).sum(-1, keepdim=True)
        below = torch.zeros(len(h), 1).index_add(0, target, weights)
        return self.leave(torch.zeros_like(h).index_add(0, target, weights * v[source]) / (below + 1e-6)).squeeze(-1)


def _positive(x: Tensor) -> Tensor:
    return F.elu(x) + 1


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("edges", [False, True], ids=["pairs", "edges"])
@pytest.mark.parametrize("run", [False, True], ids=["diagnose", "monitor"])
def test_a_normaliser_of_both_signs_is_named_and_a_positive_one_is_not(edges: bool, run: bool) -> None:
    def found(phi: Any) -> Any:
        model = Linear(phi, edges)
        if run:
            return trained(model, data(), loss, steps=6)
        return gnnstab.diagnose(model, batch=data(), loss=loss)

    broken = [f for f in found(F.elu).findings if f.code == "GS305"]
    assert [f.cause for f in broken] == ["normalization-misuse"]
    assert "takes both signs" in broken[0].message
    assert "GS305" not in {f.code for f in found(_positive).findings}
