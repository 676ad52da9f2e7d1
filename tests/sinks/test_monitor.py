"""Sinks that are given to the monitor see the run that it sees."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.errors import GnnstabWarning
from noting import Notes


def train(sinks: list[Notes], *, break_at: int | None = None, steps: int = 8) -> TransformerConv:
    torch.manual_seed(0)
    conv = TransformerConv(4, 4, heads=1)
    optimizer = torch.optim.Adam(conv.parameters(), lr=1e-3)
    edges = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T
    with gnnstab.Monitor(conv, optimizer=optimizer, on_finding="ignore", schedule=4, sinks=sinks) as monitor:
        for step in range(steps):
            optimizer.zero_grad()
            x = torch.randn(5, 4) * (float("inf") if step == break_at else 1.0)
            loss = conv(x, edges).square().mean()
            loss.backward()
            monitor.loss(loss)  # known before the step ends, so that it streams with it
            optimizer.step()
    return conv


def test_steps_findings_and_the_end() -> None:
    notes = Notes()
    train([notes], break_at=5)
    assert len(notes.values) >= 7
    for values in notes.values.values():
        assert {"lr", "gradient.norm"} <= set(values)
        assert any(name.startswith("score.max_abs") for name in values)
    assert sum("loss" in values for values in notes.values.values()) >= 6
    assert ("on_finding", "GS502") in notes.told
    assert [what for method, what in notes.told if method == "on_end"] == ["trace"]


def test_a_sink_that_fails_disturbs_neither_the_training_nor_the_other_sinks() -> None:
    healthy = Notes()
    with pytest.warns(GnnstabWarning, match="Notes.on_step failed and is left out"):
        watched = train([Notes(broken="on_step"), healthy])
    assert len(healthy.values) >= 7
    assert healthy.told[-1] == ("on_end", "trace")
    alone = train([])
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), alone.parameters(), strict=True))
