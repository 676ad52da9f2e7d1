"""A table of embeddings that multiplies the output as well: as a map, entries of 1 have a gain of √d."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.records import Diagnosis
from test_places import loud
from trained import trained

WORDS, WIDTH, NODES = 400, 128, 300


class Tied(nn.Module):
    """Attention over words that are looked up, and scores of all words from the same table."""

    def __init__(self, deviation: float = 1.0, *, head: bool = False, divided: bool = False) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(WORDS, WIDTH), nn.LayerNorm(WIDTH)
        nn.init.normal_(self.words.weight, std=deviation)
        self.conv = TransformerConv(WIDTH, WIDTH // 4, heads=4)
        self.factor = WIDTH**-0.5 if divided else 1.0
        self.head = nn.Linear(WIDTH, WORDS) if head else None
        if self.head is not None:
            self.head.weight = self.words.weight

    def forward(self, batch: Data) -> Tensor:
        h = self.words(batch.word)
        h = self.factor * self.norm(h + self.conv(h, batch.edge_index))
        return self.head(h) if self.head is not None else h @ self.words.weight.T


def text() -> Data:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        word, following = torch.randint(0, WORDS, (NODES,)), torch.randperm(WORDS)
        return Data(word=word, edge_index=torch.randint(0, NODES, (2, 4 * NODES)), y=following[word], num_nodes=NODES)


def loss(output: Tensor, batch: Data) -> Tensor:
    return F.cross_entropy(output, batch.y)


def asked(model: nn.Module, lr: float) -> Diagnosis:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return gnnstab.diagnose(model, batch=text(), loss=loss, optimizer=optimizer)


def watched(model: nn.Module, lr: float) -> Diagnosis:
    return trained(model, text(), loss, steps=40, lr=lr)


@pytest.mark.parametrize("face", [asked, watched])
@pytest.mark.parametrize(
    ("made", "lr", "told"),
    [
        (lambda: Tied(), 1e-3, True),
        (lambda: Tied(head=True), 1e-3, True),
        (lambda: Tied(WIDTH**-0.5), 1e-3, False),
        (lambda: Tied(divided=True), 1e-3, False),
        (lambda: Tied(), 1e-2, False),  # It comes down from there in a few steps.
    ],
    ids=["product", "linear", "drawn for the output", "divided", "learns all the same"],
)
def test_a_table_that_makes_the_output_too_large_is_told_where_the_loss_stays_there(
    face: Callable[[nn.Module, float], Diagnosis], made: Callable[[], nn.Module], lr: float, told: bool
) -> None:
    torch.manual_seed(0)
    found = face(made(), lr)
    assert [f.layer for f in loud(found, "GS201")] == (["words"] if told else [])
    assert [cause.cause for cause in found.root_causes()] == (["unsuitable-init"] if told else [])
