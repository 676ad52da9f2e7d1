"""Ids and scaled values that fall together where they are cast to whole numbers and looked up, beside those that stay apart, in both faces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gnnstab
from digits import asked, lost, watched

ROWS = 96
Read = Callable[["Shelf", Tensor], Tensor]


class Shelf(nn.Module):
    """A table looked up by the first column of what it is given, and a weight on the second."""

    def __init__(self, read: Read, rows: int = 10_000) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read = read
        self.table, self.other, self.leave = nn.Embedding(rows, 8), nn.Linear(1, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.relu(self.read(self, x) + self.other(x[:, 1:].float())))


def ids(shelf: Shelf, x: Tensor) -> Tensor:
    return shelf.table(x[:, 0].long())


def ids_by_float(shelf: Shelf, x: Tensor) -> Tensor:
    return shelf.table(x.float()[:, 0].to(torch.long).clamp(0, 9_999))


def ids_of_all_columns(shelf: Shelf, x: Tensor) -> Tensor:
    return shelf.table(x.long()[:, 0])


def rows_of_a_weight(shelf: Shelf, x: Tensor) -> Tensor:
    return shelf.table.weight[x[:, 0].long()]


def codes(shelf: Shelf, x: Tensor) -> Tensor:
    return F.one_hot(x[:, 0].long(), 10_000).float() @ shelf.table.weight


def truncated(shelf: Shelf, x: Tensor) -> Tensor:
    return x[:, :1].long().float() * shelf.table.weight[0]


def bins(shelf: Shelf, x: Tensor) -> Tensor:
    return shelf.table((x[:, 0] * 8).long())


def floored_bins(shelf: Shelf, x: Tensor) -> Tensor:
    return shelf.table((x[:, 0] / x[:, 0].max() * 8).floor().long())


def between_two_rows(shelf: Shelf, x: Tensor) -> Tensor:
    low = x[:, 0].long()
    share = (x[:, 0] - low).unsqueeze(1)
    return shelf.table(low) * (1 - share) + shelf.table(low + 1) * share


def hours_of_seconds(shelf: Shelf, x: Tensor) -> Tensor:
    return shelf.table(x[:, 0].long() // 600)


def without_the_column(shelf: Shelf, x: Tensor) -> Tensor:
    return shelf.table.weight[:1]


def batch(column: Tensor, kept: torch.dtype = torch.float32) -> Tensor:
    other = torch.randn(ROWS, generator=torch.Generator().manual_seed(1))
    return torch.stack([column.double(), other.double()], 1).to(kept)


def kinds(number: int = 12) -> Tensor:
    return torch.arange(ROWS) % number


def min_max(number: int = 12) -> Tensor:
    return batch(kinds(number) / (number - 1))


def standard() -> Tensor:
    numbers = kinds().double()
    return batch((numbers - numbers.mean()) / numbers.std())


def accounts(first: int, kept: torch.dtype) -> Tensor:
    return batch(first + torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)), kept)


@pytest.mark.parametrize("face", [asked, watched])
@pytest.mark.parametrize(
    ("read", "x", "words"),
    [
        (ids, min_max(), "of 12 distinct ones 2 are left. Nodes that differ in them are looked up alike"),
        (ids_by_float, min_max(4), "of 4 distinct ones 2 are left"),
        (ids_of_all_columns, min_max(), "of 12 distinct ones 2 are left"),
        (codes, min_max(), "of 12 distinct ones 2 are left"),
        (rows_of_a_weight, standard(), "of 12 distinct ones 3 are left"),
        (truncated, batch(torch.linspace(0, 0.99, ROWS)), "of 96 distinct ones 1 are left. Nodes that differ in them are one"),
        (bins, min_max(), ""),
        (floored_bins, min_max(), ""),
        (ids, batch(torch.linspace(0, 9, ROWS)), ""),
        (ids, batch(kinds(2)), ""),
        (between_two_rows, min_max(), ""),
        (without_the_column, min_max(), ""),
    ],
)  # fmt: skip
def test_scaled_values_that_a_cast_makes_one(face: Callable[..., Any], read: Read, x: Tensor, words: str) -> None:
    diagnosis = face(Shelf(read), x)
    assert [words in f.message and "test_lost_ids.py" in f.message for f in lost(diagnosis)] == [True] * bool(words)
    roots = [(cause.cause, cause.how) for cause in diagnosis.root_causes()]
    assert (("indistinguishable-nodes", "observed") in roots) == bool(words)


@pytest.mark.parametrize("face", [asked, watched])
@pytest.mark.parametrize(
    ("read", "x", "words"),
    [
        (ids, accounts(9200, torch.float16), "x holds ids in float16, whose neighbouring numbers lie 8 apart"),
        (ids_by_float, accounts(9200, torch.float16), "96 rows hold 13 distinct"),
        (ids_of_all_columns, accounts(600, torch.bfloat16), "x holds ids in bfloat16"),
        (rows_of_a_weight, accounts(600, torch.bfloat16), "lie 4 apart at their size (up to 696)"),
        (codes, accounts(2100, torch.float16), "lie 2 apart"),
        (ids, accounts(9200, torch.float32), ""),
        (ids, accounts(1900, torch.float16), ""),
        (ids, accounts(100, torch.bfloat16), ""),
        (ids, batch(9200 + 8 * torch.arange(ROWS), torch.float16), ""),
        (hours_of_seconds, accounts(9200, torch.float16), ""),
        (without_the_column, accounts(9200, torch.float16), ""),
    ],
)
def test_ids_that_their_format_makes_one(face: Callable[..., Any], read: Read, x: Tensor, words: str) -> None:
    diagnosis = face(Shelf(read), x)
    found = [f for f in lost(diagnosis) if "looked up" in f.message]
    assert [words in f.message for f in found] == [True] * bool(words)
    assert not words or "precision" in [cause.cause for cause in diagnosis.root_causes()]


class Columns(nn.Module):
    """A table looked up by the first column, and a weight on the others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.columns, self.leave = nn.Embedding(3, 8), nn.Linear(5, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.relu(self.table(x[:, 0].long()) + self.columns(x[:, 1:].float())))


def with_columns(values: Tensor, *, whole: bool = True) -> Tensor:
    x = torch.cat([kinds(3).unsqueeze(1).double(), values.expand(ROWS, 5).double()], 1)
    return x.long() if whole else x.float()


UNSET, FRACTIONS = torch.zeros(1, 5), torch.rand(ROWS, 5, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("batches", "steps", "named"),
    [
        ([with_columns(FRACTIONS)], 24, True),
        ([with_columns(FRACTIONS)], 8, False),
        ([with_columns(FRACTIONS, whole=False)], 24, False),
        ([with_columns(UNSET), with_columns(UNSET), with_columns(torch.eye(5)[:1])], 24, False),
    ],
)
def test_columns_that_a_cast_of_the_whole_table_made_zero(batches: list[Tensor], steps: int, named: bool) -> None:
    model = Columns()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for step in range(steps):
            (model(batches[step % len(batches)]) - 1).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    found = lost(monitor.diagnose())
    said = "all 5 columns of x that columns is given are 0 in all 96 rows"
    assert [said in f.message and f.cause == "indistinguishable-nodes" for f in found] == [True] * named
    assert not lost(asked(model, batches[0]))
