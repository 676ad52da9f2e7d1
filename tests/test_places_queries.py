"""Queries of a set that are one and the same, and so get one answer for all; and queries that have, or may learn, rows of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gnnstab
from trained import trained

SETS, KEYS, QUERIES, WIDTH = 12, 10, 4, 16


class Cross(nn.Module):
    """Attention of our own from queries to keys."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.both = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, lines: Tensor, keys: Tensor) -> Tensor:
        k, v = self.both(keys).chunk(2, -1)
        return (self.query(lines) @ k.mT / WIDTH**0.5).softmax(-1) @ v


class Torch(nn.Module):
    """That of torch, whose second axis numbers the sets."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(WIDTH, 2)

    def forward(self, lines: Tensor, keys: Tensor) -> Tensor:
        out: Tensor = self.attend(lines.transpose(0, 1), keys.transpose(0, 1), keys.transpose(0, 1))[0]
        return out.transpose(0, 1)


class Report(nn.Module):
    """One number for each of a few lines of a report on a set of rows, read by queries that are parameters."""

    def __init__(self, cross: Callable[[], nn.Module], own: bool, start: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.cross = nn.Linear(5, WIDTH), cross()
        self.lines = nn.Parameter(start * torch.randn(1, QUERIES if own else 1, WIDTH))
        self.leave = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

    def forward(self, batch: Any) -> Tensor:
        lines = self.lines.expand(SETS, QUERIES, WIDTH)
        out: Tensor = self.leave(lines + self.cross(lines, self.enter(batch["x"]))).squeeze(-1)
        return out


def sets() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(2)
    return {"x": torch.randn(SETS, KEYS, 5, generator=g), "y": torch.randn(SETS, QUERIES, generator=g)}


def told(model: nn.Module, run: bool) -> list[tuple[str, str]]:
    """Causes and messages of GS704."""

    def loss(out: Tensor, batch: Any) -> Tensor:
        return F.mse_loss(out, batch["y"])

    found = trained(model, sets(), loss, steps=6) if run else gnnstab.diagnose(model, batch=sets(), loss=loss)
    return [(f.cause, f.message) for f in found.findings if f.code == "GS704"]


@pytest.mark.parametrize("run", [False, True], ids=["diagnose", "monitor"])
@pytest.mark.parametrize("cross", [Cross, Torch])
def test_one_query_for_all_lines_is_named(cross: Callable[[], nn.Module], run: bool) -> None:
    ((cause, message),) = told(Report(cross, own=False), run)
    assert cause == "indistinguishable-nodes"
    assert f"the {QUERIES} queries of a set that cross" in message


@pytest.mark.parametrize("start", [0.5, 0.0], ids=["drawn", "zeros"])
@pytest.mark.parametrize("cross", [Cross, Torch])
def test_rows_of_their_own_are_no_fault_also_where_they_begin_at_zero(
    cross: Callable[[], nn.Module], start: float
) -> None:
    assert told(Report(cross, own=True, start=start), run=False) == []
