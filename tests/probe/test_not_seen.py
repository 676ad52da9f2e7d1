"""What a look at a model and its batches cannot see is named or refused; what one batch, the training mode or a second output hides is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

import gnnstab
from gnnstab.errors import NothingEvaluable, UsageError
from gnnstab.probe.batches.chosen import MOST_RUN, chosen
from gnnstab.report.summary import not_covered, state
from gnnstab.verification._arms import ArmResult
from gnnstab.verification._judging import Pairs, by_training
from gnnstab.verification.ladder import run_ladder
from gnnstab.verification.replay import replay
from models.stacks import Stack, random_batch

NAN = float("nan")


def graph(size: float = 1.0, labels: float | None = None) -> Data:
    """Of 16 nodes, with features of this RMS."""
    torch.manual_seed(3)
    made = Data(**random_batch(16, 4, 8))
    made.x = made.x * size
    if labels is not None:
        made.y = torch.randn(16, 8) * labels
    return made


def judged(batch: Any, model: nn.Module | None = None, **options: Any) -> tuple[str, set[str], str]:
    """The verdict, what fires at warning or above, and what was not seen."""
    torch.manual_seed(0)
    found = gnnstab.diagnose(Stack(1, 8, residual=1.0) if model is None else model, batch=batch, **options)
    return state(found), {f.code for f in found.at_least("warning")}, "; ".join(not_covered(found))


def mse(output: Tensor, batch: Data) -> Tensor:
    return (output - batch.y).square().mean()


LOSSES: dict[str, tuple[Callable[[Tensor, Any], Tensor], bool]] = {
    "mse": (mse, True),
    "a constant": (lambda output, batch: torch.tensor(1.0), False),
    "of the labels": (lambda output, batch: batch.y.square().mean(), False),
    "of the features": (lambda output, batch: batch.x.square().mean(), False),
    "detached": (lambda output, batch: mse(output.detach(), batch), False),
    "without gradients": (torch.no_grad()(mse), False),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_that_depends_on_no_parameter(kind: str) -> None:
    loss, sound = LOSSES[kind]
    verdict, codes, _ = judged(graph(labels=1.0), loss=loss)
    assert (verdict == "stable", "GS604" in codes) == (sound, not sound)


def test_a_loss_that_is_met_is_no_fault() -> None:
    """As of a margin that every answer keeps: gradients of 0, about which nothing is known."""
    verdict, codes, unseen = judged(graph(labels=1.0), loss=lambda output, batch: (output.abs() - 1e3).relu().mean())
    assert (verdict, codes) == ("nothing-found", set())
    assert "gradients" in unseen


class Without(Stack):
    """No output of it has a history."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x, edge_index)


def test_a_forward_without_gradients_may_be_meant_for_use_alone() -> None:
    verdict, codes, unseen = judged(graph(), Without(1, 8, residual=1.0))
    assert (verdict, codes) == ("nothing-found", set())
    assert "gradients" in unseen
    assert judged(graph(labels=1.0), Without(1, 8, residual=1.0), loss=mse)[1] == {"GS604"}


@pytest.mark.parametrize("place", [0, 1, 5])
@pytest.mark.parametrize(("size", "labels", "code"), [(1e6, 1.0, "GS406"), (1.0, 1e30, "GS406"), (1.0, 1.0, None)])
def test_the_batch_that_deviates_is_looked_at_wherever_it_stands(
    place: int, size: float, labels: float, code: str | None
) -> None:
    batches = [graph(labels=1.0) for _ in range(6)]
    batches[place] = graph(size, labels)
    verdict, codes, unseen = judged(batches)
    assert (verdict == "stable", code in codes) == (code is None, code is not None)
    assert ("means over the batches" in unseen) == (size > 1 and place > 0)


@pytest.mark.parametrize("form", ["Data", "tuple"])
def test_labels_of_a_later_batch_that_are_nan(form: str) -> None:
    batches: list[Any] = [graph(labels=1.0) for _ in range(3)]
    batches[2].y[1, 1] = NAN
    if form == "tuple":
        batches = [(Data(x=b.x, edge_index=b.edge_index), b.y) for b in batches]
    verdict, _, unseen = judged(batches)
    assert verdict == "nothing-found"
    assert "what a loss makes of NaN in the targets" in unseen


class Kinds(Stack):
    """What stands beside its answer, or in its place, in training mode or always."""

    def __init__(self, kind: str) -> None:
        super().__init__(1, 8, residual=1.0)
        self.kind, self.norm = kind, nn.BatchNorm1d(8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        out = super().forward(x, edge_index)
        if self.kind == "training" and self.training:
            return (out - out) / (out - out)
        if self.kind == "second":
            return out, torch.log(-out.abs() - 1)
        if self.kind == "written":
            return out, torch.full_like(out, NAN)
        return self.norm(out) if self.kind == "norm" else out


@pytest.mark.parametrize(
    ("kind", "told"), [("training", True), ("second", True), ("written", False), ("norm", False), ("plain", False)]
)
def test_what_the_loss_of_an_evaluation_does_not_show(kind: str, told: bool) -> None:
    def loss(output: Any, batch: Data) -> Tensor:
        return mse(output[0] if isinstance(output, tuple) else output, batch)

    torch.manual_seed(0)
    found = gnnstab.diagnose(Kinds(kind), batch=graph(labels=1.0), loss=loss)
    fires = [f for f in found.at_least("warning") if f.code == "GS502"]
    assert bool(fires) is told
    assert any("in training mode alone" in f.message for f in fires) is (kind == "training")


@pytest.mark.parametrize("nodes", [16, 1])
def test_a_training_mode_that_cannot_run_is_named(nodes: int) -> None:
    class Normed(Stack):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.norm(super().forward(x, edge_index))

    made = Normed(1, 8, residual=1.0)
    made.norm = nn.BatchNorm1d(8)
    made.norm.num_batches_tracked += 1  # It has seen a batch, and goes by its running statistics.
    batch = Data(x=torch.randn(nodes, 8), edge_index=torch.zeros(2, 3, dtype=torch.long))
    assert ("the training mode" in judged(batch, made)[2]) is (nodes == 1)


@pytest.mark.parametrize(("rate", "told"), [(0.0, True), (1e-3, False)])
def test_a_rate_of_zero_says_nothing_of_updates(rate: float, told: bool) -> None:
    model = Stack(1, 8, residual=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    assert ("the learning rate is 0" in judged(graph(labels=1.0), model, loss=mse, optimizer=optimizer)[2]) is told


def test_a_long_list_is_run_in_part_and_says_so() -> None:
    one, far = graph(), graph(100.0)
    calls = [(((), {"x": b.x, "edge_index": b.edge_index}), b) for b in [one] * 3000 + [far]]
    run, closest, unseen = chosen(calls)
    assert (len(run), closest) == (MOST_RUN, MOST_RUN - 1)
    assert run[closest][1] is far
    assert any(f"{3001 - MOST_RUN} of 3001 batches" in said for said in unseen)
    assert chosen(calls[:3]).unseen == []


def test_a_ladder_and_a_verdict_over_a_loss_that_stands() -> None:
    model, batches = Stack(1, 8), [graph(labels=1.0) for _ in range(2)]
    options: dict[str, Any] = {"batch": batches, "seeds": 1, "steps": 2, "rungs": [("a", ["residual"])], "sizes": (7,)}
    with pytest.raises(NothingEvaluable, match="the loss stays at 0 in every training"):
        run_ladder(model, loss=lambda output, batch: mse(output, batch) * 0, **options)
    with pytest.raises(UsageError, match="depends on no trainable parameter"):
        run_ladder(model, loss=lambda output, batch: torch.tensor(1.0), **options)
    assert len(run_ladder(model, loss=mse, **options).rungs) == 2
    for end, verdict in ((1.0, "inconclusive"), (0.5, "confirmed")):
        arms = tuple(ArmResult(start=1.0, final=end) for _ in range(3))
        assert by_training(Pairs(arms, arms))[0] == verdict


class Answer(Stack):
    """Answers in another form."""

    form: Callable[[Tensor], Any] = staticmethod(lambda out: out)

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        return type(self).form(super().forward(x, edge_index))


class Slots:
    """Holds a tensor where nobody looks."""

    __slots__ = ("hidden",)

    def __init__(self, out: Tensor) -> None:
        self.hidden = json.dumps(out.tolist())


def test_a_replay_of_an_output_that_it_cannot_read() -> None:
    batch = random_batch(16, 4, 8)
    for form, event in (
        (lambda out: out, False),
        (lambda out: out.argmax(-1), False),
        (lambda out: torch.complex(out, out), False),
        (lambda out: torch.complex(out, out / 0), True),
    ):
        model = type("Made", (Answer,), {"form": staticmethod(form)})(1, 8)
        assert (replay(model, kwargs=batch).event is not None) is event
    with pytest.raises(NothingEvaluable, match="Slots in which no tensor is found"):
        replay(type("Made", (Answer,), {"form": staticmethod(Slots)})(1, 8), kwargs=batch)
