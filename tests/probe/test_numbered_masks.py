"""A causal mask over nodes of a graph, whose numbers say nothing: named by steps without it; and in no twin, nor where nodes come one after the other."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gnnstab

SETS, NODES, WIDTH = 6, 30, 24
HOWS = ("added", "filled", "is_causal")


class Attending(nn.Module):
    """Two layers of attention over linked nodes; ``how`` a mask closes those of higher numbers, as well, if any does."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.enter, self.leave = how, nn.Linear(5, WIDTH), nn.Linear(WIDTH, 1)
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        h = self.enter(batch["x"])
        for layer in self.qkv:
            h = h + self.attend(*layer(h).chunk(3, -1), batch["linked"])
        out: Tensor = self.leave(torch.relu(h)).squeeze(-1)
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor, linked: Tensor) -> Tensor:
        if self.how == "is_causal":
            return F.scaled_dot_product_attention(q, k, linked.to(v) @ v / linked.sum(-1, keepdim=True), is_causal=True)
        score = (q @ k.mT / WIDTH**0.5).masked_fill(~linked, float("-inf"))
        later = torch.ones(NODES, NODES).triu(1)
        if self.how == "added":
            score = score + torch.zeros(NODES, NODES).masked_fill(later.bool(), float("-inf"))
        elif self.how == "filled":
            score = score.masked_fill(later.bool(), float("-inf"))
        return score.softmax(-1) @ v


def sets(one_by_one: bool = False) -> dict[str, Tensor]:
    """Sets of nodes with links both ways, and what a node and those around it add up to; ``one_by_one``: they come in order of a number of theirs."""
    g = torch.Generator().manual_seed(1)
    x, some = torch.randn(SETS, NODES, 5, generator=g), torch.rand(SETS, NODES, NODES, generator=g) < 0.06
    linked = some | some.mT | torch.eye(NODES, dtype=torch.bool)
    if one_by_one:
        x[..., 4] = torch.arange(NODES) / NODES
    mean = (linked.float() @ x[..., :1]).squeeze(-1) / linked.sum(-1)
    return {"x": x, "linked": linked, "y": 2 * mean + 0.3 * x[..., 1]}


def said(how: str, batch: dict[str, Tensor]) -> list[tuple[str, str]]:
    """Causes and messages of GS609."""
    model = Attending(how)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    found = gnnstab.diagnose(model, batch=batch, loss=lambda out, b: F.mse_loss(out, b["y"]), optimizer=optimizer)
    return [(f.cause, f.message) for f in found.findings if f.code == "GS609"]


@pytest.mark.parametrize("how", HOWS[:2])
def test_a_mask_by_the_numbers_of_nodes_is_named(how: str) -> None:
    ((cause, message),) = said(how, sets())
    assert cause == "masking"
    assert "each node see those of a lower number alone" in message


def test_no_such_mask_is_no_fault() -> None:
    assert said("none", sets()) == []


@pytest.mark.parametrize("how", HOWS)
def test_nodes_that_come_one_after_the_other_may_see_what_came_before(how: str) -> None:
    assert said(how, sets(one_by_one=True)) == []
