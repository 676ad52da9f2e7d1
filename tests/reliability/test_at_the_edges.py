"""What no training step shows: evaluations, the weights that the last update leaves, outputs and batches of the user's own classes."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import gnnstab
from side_by_side import Net, codes, graph

X, EDGES = graph()
Y = torch.ones(len(X), 1)


class Normalised(Net):
    """A BatchNorm behind the layers, whose variance no training forward reads."""

    def __init__(self, variance: float = 1.0) -> None:
        super().__init__()
        self.norm, self.variance = nn.BatchNorm1d(1), variance

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.norm.running_var.fill_(self.variance)  # type: ignore[union-attr,operator]
        out: Tensor = self.norm(super().forward(x, edge_index))
        return out


class Padded(Net):
    """Answers with NaN for a node that the loss leaves out."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out = super().forward(x, edge_index)
        return torch.cat([out, torch.full_like(out[:1], torch.nan)])


Between = Callable[[int, nn.Module, torch.optim.Optimizer, gnnstab.Monitor], None]


def trained(model: nn.Module, between: Between, **options: Any) -> gnnstab.Monitor:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore", **options) as monitor:
        for step in range(8):
            optimizer.zero_grad()
            mse_loss(model.train()(X, EDGES)[: len(Y)], Y).backward()
            optimizer.step()
            between(step, model, optimizer, monitor)
    return monitor


def evaluates(step: int, model: nn.Module, optimizer: torch.optim.Optimizer, monitor: gnnstab.Monitor) -> None:
    with torch.no_grad():
        model.eval()(X, EDGES)


def evaluates_at_last(step: int, model: nn.Module, *others: Any) -> None:
    if step == 7:
        model.eval()(X, EDGES)


def validates(loss: float) -> Between:
    return lambda step, model, optimizer, monitor: monitor.validation(loss)


def overshoots(rate: float) -> Between:
    def between(step: int, model: nn.Module, optimizer: torch.optim.Optimizer, monitor: gnnstab.Monitor) -> None:
        if step == 6:
            optimizer.param_groups[0]["lr"] = rate

    return between


@pytest.mark.parametrize(
    ("model", "between", "said"),
    [
        (lambda: Normalised(-1.0), evaluates, "batch_norm"),
        (lambda: Normalised(-1.0), evaluates_at_last, "batch_norm"),
        (Net, lambda step, model, *others: model.eval()(X * torch.nan, EDGES), "`x` holds NaN"),
        (Net, validates(float("nan")), "the validation loss is nan"),
        (Net, overshoots(float("inf")), "the weights went non-finite in an update"),
    ],
)
def test_a_non_finite_value_that_no_training_step_shows(
    model: Callable[[], nn.Module], between: Between, said: str
) -> None:
    found = trained(model(), between).diagnose()
    assert [said in f.message for f in found.findings if f.code == "GS502"] == [True]


@pytest.mark.parametrize(
    ("model", "between"),
    [(Normalised, evaluates), (Padded, evaluates), (Net, validates(0.5)), (Net, overshoots(1e-3))],
)
def test_their_healthy_twins(model: Callable[[], nn.Module], between: Between) -> None:
    assert "GS502" not in codes(trained(model(), between))


@dataclass
class Answer:
    y: Tensor


class Answering(Net):
    def forward(self, x: Tensor, edge_index: Tensor) -> Answer:  # type: ignore[override]
        return Answer(super().forward(x, edge_index))


class Attributes(dict[str, Any]):
    __getattr__ = dict.__getitem__


class Ordered(OrderedDict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        return self[name]


class User(UserDict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        if name == "data":
            raise AttributeError(name)
        return self.data[name]


class OfBatches(Net):
    def forward(self, batch: Any) -> Tensor:  # type: ignore[override]
        return super().forward(batch.x, batch.edges)


def overflowing(model: nn.Module, forward: Callable[[], Tensor], **options: Any) -> str:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore", **options) as monitor:
        for step in range(6):
            if step == 4:
                model.out.weight.data.fill_(3e38)  # type: ignore[union-attr,operator]
                model.out.bias.data.fill_(3e38)  # type: ignore[union-attr,operator]
                model.second.lin_skip.bias.data.fill_(10.0)  # type: ignore[union-attr,operator]
            optimizer.zero_grad()
            mse_loss(forward(), Y).backward()
            optimizer.step()
    return next(f.message for f in monitor.diagnose().findings if f.code == "GS502")


def test_an_output_in_a_dataclass_is_the_models_output() -> None:
    model = Answering()
    assert overflowing(model, lambda: model(X, EDGES).y).startswith("`addmm` of operands up to")


@pytest.mark.parametrize("kind", [Attributes, Ordered, User])
def test_a_batch_of_an_own_class_is_one_on_copies_too(kind: Callable[..., Any]) -> None:
    model, batch = OfBatches(), kind(x=X, edges=EDGES)
    message = overflowing(model, lambda: model(batch), loss=lambda output, _: mse_loss(output, Y))
    assert message.startswith("`addmm` of operands up to")


@pytest.mark.parametrize(("eps", "told"), [(0.0, ["GS502"]), (1e-6, [])])
def test_a_backward_that_anomaly_mode_ends(eps: float, told: list[str]) -> None:
    """A root of zero, times zero: its gradient is NaN, and the exception leaves the run before any gradient is seen."""
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    monitor = gnnstab.Monitor(model, optimizer=optimizer)
    with suppress(RuntimeError), monitor, torch.autograd.set_detect_anomaly(True):
        for step in range(4):
            optimizer.zero_grad()
            output = model(X, EDGES)
            loss = mse_loss(output, Y)
            if step == 3:
                loss = loss + ((output * 0).sum() + eps).sqrt()
            loss.backward()
            optimizer.step()
    assert codes(monitor, "error") == told


@pytest.mark.parametrize("number", [torch.nan, 1.0])
@pytest.mark.parametrize("what", ["loss", "step", "validation"])
def test_a_loss_that_is_given_after_the_block(what: str, number: float) -> None:
    """It is said that nothing keeps it; one that is not finite is an error of the report, and no number of the trace changes."""
    monitor = trained(Net(), lambda step, model, optimizer, monitor: monitor.loss(0.5))
    with pytest.warns(gnnstab.errors.GnnstabWarning, match="after the monitor's block had ended") as caught:
        getattr(monitor, what)(number)
    assert len(caught) == 1
    getattr(monitor, what)(number)  # A second warning would be an error.
    found = monitor.diagnose()
    told = [f.message for f in found.findings if f.code == "GS502"]
    assert ["after the run" in text for text in told] == ([] if number == 1.0 else [True])
    with monitor.trace as trace:
        assert {row.loss for row in trace.steps()} == {0.5}
