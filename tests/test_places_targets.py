"""What the rows of a set are told apart by, and what their answers are compared with: broken programs and their repaired twins."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data

import gnnstab
from gnnstab.records import Diagnosis
from test_places import WIDTH, Net, data, look, loud, seeded
from test_places_gradient import one
from test_places_norms import FACES
from trained import take_step, trained


class Seats(nn.Module):
    """Players that share what they see and are told apart by their seat."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.seen, self.seat = nn.Linear(6, WIDTH), nn.Embedding(8, WIDTH)
        self.attend, self.leave = nn.MultiheadAttention(WIDTH, 2, batch_first=True), nn.Linear(WIDTH, 3)

    def forward(self, table: Tensor, seats: Tensor) -> Tensor:
        h = self.seen(table)[:, None] + self.seat(seats)
        return self.leave(h + F.elu(self.attend(h, h, h, need_weights=False)[0]))


@FACES
def test_rows_that_only_ids_tell_apart(face: Callable[..., Diagnosis]) -> None:
    table, seats = torch.randn(12, 6, generator=seeded(1)), torch.arange(8).repeat(12, 1)

    def role(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), (seats % 3).flatten())

    finding = one(face(Seats(), (table, torch.zeros_like(seats)), role), "GS704")
    assert finding.cause == "indistinguishable-nodes" and "already in the input" in finding.message
    assert loud(face(Seats(), (table, seats), role)) == []


def run(bad: float, loss: Callable[[Tensor, Tensor], Tensor]) -> Diagnosis:
    """A run whose monitor is given the value of the loss when the step is over, and no function."""
    torch.manual_seed(6)
    attend, leave = nn.MultiheadAttention(WIDTH, 2, batch_first=True), nn.Linear(WIDTH, 1)

    class Ratings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.leave = attend, leave

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(x + self.attend(x, x, x, need_weights=False)[0]).squeeze(-1)

    model, x = Ratings(), torch.randn(6, 5, WIDTH, generator=seeded(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for step in range(6):
            y = x[..., 0].clone()
            y[2, 3] = bad if step == 3 else 0.0
            take_step(optimizer, loss(model(x), y), monitor)
    return monitor.diagnose()


@pytest.mark.parametrize("loss", [F.mse_loss, F.smooth_l1_loss, F.l1_loss], ids=["squares", "smooth", "absolute"])
def test_a_loss_that_is_finite_for_finite_numbers_shows_bad_targets(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    diagnosis = run(math.nan, loss)
    assert [c.cause for c in diagnosis.root_causes()] == ["non-finite-data"]
    assert "the targets hold NaN or Inf" in str(diagnosis) and "data.y" in str(diagnosis)
    assert loud(run(0.5, loss)) == []


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, y: F.mse_loss((o - o).sqrt(), y),
        lambda o, y: (o - y).square().mean(),
        lambda o, y: F.l1_loss((o - o).log(), y),
    ],
    ids=["a root", "by hand", "a logarithm"],
)
def test_an_operation_before_the_loss_acquits_the_targets(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The derivative of a root at zero is none: what came back says nothing of the targets. Nor does what no name tells."""
    assert "non-finite-data" not in [c.cause for c in run(math.nan, loss).root_causes()]


@pytest.mark.parametrize(("scale", "roots"), [(9000.0, ["feature-scale"]), (20.0, [])])
def test_targets_that_a_squared_error_alone_shows(scale: float, roots: list[str]) -> None:
    batch = data()
    targets = batch.y * scale
    del batch.y
    diagnosis = trained(Net(), batch, lambda output, _: F.mse_loss(output, targets))
    assert [c.cause for c in diagnosis.root_causes()] == roots
    assert [f.code for f in loud(diagnosis)] == ["GS406"] * len(roots)


SPREAD, MEAN = 9.5e4, 4.1e5


@FACES
def test_a_loss_that_is_divided_still_compares_raw_targets(face: Callable[..., Diagnosis]) -> None:
    batch = data()
    batch.y = MEAN + SPREAD * batch.y
    diagnosis = face(Net(), batch, lambda output, b: F.mse_loss(output, b.y) / b.y.var())
    (cause,) = diagnosis.root_causes()
    assert cause.cause == "feature-scale" and [fix.fix for fix in cause.fixes] == ["target-standardisation"]
    assert "train_y.std(0)" in cause.fixes[0].change
    assert loud(face(Net(), batch, lambda output, b: F.mse_loss(output, (b.y - MEAN) / SPREAD))) == []


@pytest.mark.parametrize("error", [F.mse_loss, F.l1_loss])
def test_a_run_that_is_spent_on_growing_to_the_scale_of_its_targets(error: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The output has the size of the targets at the end, and tells them not apart."""
    diagnosis = _grown(Net(), error, 0.02)
    assert [c.cause for c in diagnosis.root_causes()] == ["feature-scale"]
    assert ["at its end the output leaves" in f.message for f in loud(diagnosis)] == [True]


def test_an_output_that_began_at_large_targets_is_not_blamed_for_their_size() -> None:
    model = Net()
    with torch.no_grad():
        model.out.bias.fill_(4000.0)
    assert not loud(_grown(model, F.mse_loss, 1e-3), "GS406")


def _grown(model: Net, error: Callable[[Tensor, Tensor], Tensor], lr: float) -> Diagnosis:
    """A run of batches of which the first has the smallest targets."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for step in range(60):
            batch = data()
            batch.y = 4000.0 + (300.0 + (step > 0)) * batch.y
            take_step(optimizer, error(model(batch), batch.y), monitor)
    return monitor.diagnose()


class Bounded(Net):
    """The output passes a function last, is scaled, and may be scaled by what is learned."""

    def __init__(self, end: Callable[[Tensor], Tensor], learned: bool) -> None:
        super().__init__()
        self.end = end
        self.size = nn.Parameter(torch.ones(())) if learned else 1.0

    def forward(self, batch: Data) -> Tensor:
        return self.size * self.end(super().forward(batch))


@FACES
@pytest.mark.parametrize(
    ("end", "measure", "size", "learned", "told"),
    [
        (torch.tanh, F.l1_loss, 30.0, False, True),
        (torch.sigmoid, F.mse_loss, 30.0, False, True),
        (lambda h: 5 - 3 * h.sigmoid(), F.l1_loss, 30.0, False, True),
        (torch.tanh, F.l1_loss, 1.0, False, False),
        (lambda h: 60 * h.tanh() - 2, F.mse_loss, 30.0, False, False),
        (torch.tanh, F.mse_loss, 30.0, True, False),
        (lambda h: h, F.l1_loss, 30.0, False, False),
    ],
    ids=["tanh", "sigmoid", "shifted", "targets within", "wide enough", "a learned size", "no function"],
)
def test_targets_out_of_the_range_of_the_last_operation(
    face: Callable[..., Diagnosis], end: Any, measure: Any, size: float, learned: bool, told: bool
) -> None:
    batch = data()
    batch.y = size * batch.y
    diagnosis = face(Bounded(end, learned), batch, lambda output, given: measure(output, given.y))
    found = [f.message for f in loud(diagnosis, "GS406")]
    assert ["out of its range" in message for message in found] == [True] * told
    assert [c.cause for c in diagnosis.root_causes()] == ["feature-scale"] * told


class Column(Net):
    """Gives a column, (N, 1)."""

    def forward(self, batch: Data) -> Tensor:
        return super().forward(batch)[:, None]


Error = Callable[[Tensor, Tensor], Tensor]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    ("error", "part"),
    [
        (F.mse_loss, slice(None)),
        (F.l1_loss, slice(None)),
        (F.smooth_l1_loss, slice(None)),
        (F.mse_loss, slice(0, 40)),
        (F.smooth_l1_loss, slice(0, 40)),
    ],
)
def test_a_loss_of_all_pairs_of_outputs_and_targets(error: Error, part: slice) -> None:
    def spread(output: Tensor, batch: Data) -> Tensor:
        return error(output[part], batch.y[part])

    def own(output: Tensor, batch: Data) -> Tensor:
        return error(output.squeeze(-1)[part], batch.y[part])

    far = data()
    far.y = far.y + 100
    assert not loud(look(Column(), far, loss=own), "GS408"), "all targets lie on one side of what a fresh model answers"
    (told,) = loud(look(Column(), data(), loss=spread))
    assert told.code == "GS408" and "squeeze(-1)" in told.message and told.layer == "y"
    assert loud(look(Column(), data(), loss=own)) == []


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.usefixtures("brief")
def test_a_run_whose_loss_is_of_all_pairs() -> None:
    def spread(output: Tensor, batch: Data) -> Tensor:
        return F.mse_loss(output, batch.y)

    assert [f.code for f in loud(trained(Column(), data(), spread, steps=20))] == ["GS408"]
