"""Rows that fill graphs up to a common size and are counted, beside models that leave them out and those to which they do no harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GATConv, global_add_pool, global_max_pool, global_mean_pool

import gnnstab
from gnnstab.records import Diagnosis, Finding
from trained import trained

WIDTH, SIZE = 24, 40

NODES = (2, 30, 4, 25, 3, 18, 6, 9, 2, 14)

Batch = dict[str, Tensor]


class Voters(nn.Module):
    """What the members of a group say on average, or in all, or at most; ``reads``: those alone that ``present`` tells."""

    def __init__(self, pool: Callable[..., Tensor] = global_mean_pool, reads: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.enter, self.near, self.leave = (
            nn.Linear(6, WIDTH),
            GATConv(WIDTH, WIDTH, add_self_loops=False),
            nn.Linear(WIDTH, 1),
        )
        self.pool, self.reads = pool, reads

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, **others: Tensor) -> Tensor:
        h = torch.tanh(self.enter(x))
        h = h + F.elu(self.near(h, edge_index))
        if self.reads:
            h, batch = h[others["present"]], batch[others["present"]]
        pooled = self.pool(h, batch)
        return self.leave(pooled / 10 if self.pool is global_add_pool else pooled).squeeze(-1)


def groups(told: bool = True, total: bool = False, times: int = 2) -> Batch:
    """Graphs of 2 to 30 nodes, filled up to 40 with rows of zeros; the targets are a mean over nodes, or a sum."""
    g, nodes = torch.Generator().manual_seed(8), NODES * times
    x, present = torch.zeros(len(nodes) * SIZE, 6), torch.zeros(len(nodes) * SIZE, dtype=torch.bool)
    edges, y = [], []
    for first, count in zip(range(0, len(x), SIZE), nodes, strict=True):
        own = torch.randn(count, 6, generator=g) + 1.5 * torch.randn(6, generator=g)
        x[first : first + count], present[first : first + count] = own, True
        edges.append(first + torch.randint(count, (2, 4 * count), generator=g))
        y.append(own[:, 0].sum() / 10 if total else own[:, 0].mean() - own[:, 1].mean())
    graphs = torch.arange(len(nodes)).repeat_interleave(SIZE)
    batch = {"x": x, "edge_index": torch.cat(edges, 1), "batch": graphs, "y": torch.stack(y)}
    return batch | ({"present": present} if told else {})


def loss(output: Tensor, batch: Batch) -> Tensor:
    return F.mse_loss(output, batch["y"])


def look(model: nn.Module, batch: Batch) -> Diagnosis:
    return gnnstab.diagnose(model, batch=batch, loss=loss, optimizer=torch.optim.Adam(model.parameters(), lr=3e-3))


class Called(nn.Module):
    """A model that is given the whole batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return self.model(**batch)


def train(model: nn.Module, batch: Batch) -> Diagnosis:
    return trained(Called(model), batch, loss, steps=12, lr=3e-3, told=loss)


FACES = pytest.mark.parametrize("face", [look, train], ids=["diagnose", "monitor"])


def told(diagnosis: Diagnosis) -> list[Finding]:
    return [f for f in diagnosis.findings if f.signal == "place.filled_difference"]


@FACES
@pytest.mark.parametrize(("mask", "times"), [(True, 2), (False, 2), (True, 1)])
def test_filling_rows_that_a_mean_counts(face: Callable[..., Diagnosis], mask: bool, times: int) -> None:
    diagnosis = face(Voters(), groups(mask, times=times))
    (finding,) = told(diagnosis)
    assert finding.code == "GS408" and finding.severity == "warning", finding
    assert ("present`" in finding.message) is mask and "rows" in finding.message
    assert [cause.cause for cause in diagnosis.root_causes()] == ["masking"]


@FACES
def test_filling_rows_that_nothing_counts(face: Callable[..., Diagnosis]) -> None:
    assert told(face(Voters(reads=True), groups())) == []


@FACES
@pytest.mark.parametrize(
    ("pool", "total"), [(global_add_pool, True), (global_max_pool, False), (global_mean_pool, True)]
)
def test_filling_rows_that_do_no_harm(face: Callable[..., Diagnosis], pool: Any, total: bool) -> None:
    """A sum has a bias for each of them, a maximum a floor, and a mean over one size is a sum."""
    findings = face(Voters(pool), groups(total=total)).findings
    assert [f for f in findings if f.severity in ("warning", "error") and f.code == "GS408"] == []


@pytest.mark.parametrize(
    ("name", "real"), [("present", "present"), ("pad", "~pad"), (None, "(x != 0).any(dim=1)  # rows of zeros fill")]
)
def test_the_change_keeps_the_rows_that_are_real(name: str | None, real: str) -> None:
    """Whichever way round a mask is, and where there is none."""
    batch = groups()
    present = batch.pop("present")
    if name is not None:
        batch[name] = present if name == "present" else ~present
    (cause,) = look(Voters(), batch).root_causes()
    assert any(f"real = {real}" in advice.change and "h[real]" in advice.change for advice in cause.fixes)
