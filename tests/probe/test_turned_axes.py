"""Attention over the rows of the batch in place of what each row holds, and programs that look like it and are right."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gnnstab
from gnnstab.probe.optimizer._turned_axes import turned_axes
from gnnstab.records import Diagnosis

ROWS, STOPS, WIDTH = 40, 6, 16


def journeys() -> dict[str, Tensor]:
    """The delay of each of the stops of a journey, and which of them it changes at: the answer is the delay there."""
    g = torch.Generator().manual_seed(5)
    delay = torch.randn(ROWS, STOPS, generator=g)
    at = torch.randint(1, STOPS, (ROWS,), generator=g)
    marked = F.one_hot(at, STOPS).float()
    return {"x": torch.stack([delay, marked], -1), "y": (delay * marked).sum(1)}


class Journey(nn.Module):
    """Attention over the stops, or over the journeys, and the state of the first stop."""

    def __init__(self, first: bool, turned: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Linear(2, WIDTH), nn.Linear(WIDTH, 1)
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=first)
        self.mix = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))
        self.turned = turned

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        h = h + self.mix(h)
        given = h.transpose(0, 1) if self.turned else h
        seen = self.attend(given, given, given, need_weights=False)[0]
        h = h + (seen.transpose(0, 1) if self.turned else seen)
        return self.leave(h[:, 0] + self.mix(h[:, 0])).squeeze(-1)


def asked(model: nn.Module) -> Diagnosis:
    def loss(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return F.smooth_l1_loss(output, batch["y"])

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return gnnstab.diagnose(model, batch=journeys(), loss=loss, optimizer=optimizer)


def test_attention_over_the_axis_of_the_batch_is_turned_round() -> None:
    diagnosis = asked(Journey(first=False, turned=False))
    (cause,) = diagnosis.root_causes()
    (finding,) = [f for f in diagnosis.findings if f.code == "GS609"]
    assert cause.cause == finding.cause == "normalization-misuse"
    assert f"the {ROWS} rows of the batch" in finding.message and "batch_first=False (line" in finding.message
    assert "test_turned_axes.py" in finding.message
    assert "batch_first=True" in str(cause.fixes[0].change)


def test_batch_first_of_what_has_its_rows_behind_is_suspected_too() -> None:
    model = Journey(first=True, turned=True)
    (suspect,) = turned_axes(model, lambda: model(journeys()["x"]))
    assert suspect.names == ("attend",) and "batch_first=False" in suspect.words
    suspect.undo(model)
    assert not model.attend.batch_first


@pytest.mark.parametrize("first", [False, True])
def test_attention_over_what_each_row_holds_is_right(first: bool) -> None:
    assert not asked(Journey(first, turned=not first)).root_causes()
