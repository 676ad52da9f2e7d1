"""A loss that was not handed over is recovered from its value and its gradient, and from nothing that is another loss."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import gnnstab
from gnnstab.errors import UsageError
from gnnstab.probe.replaying.recovered_loss import is_squared_error_of, recovered_loss

N, C = 30, 5
g = torch.Generator().manual_seed(4)
CLASSES = torch.randint(0, C, (N,), generator=g)
REAL = torch.randn(N, C, generator=g)
MASK = torch.rand(N, generator=g) < 0.6
BITS = (REAL > 0).float()
SHARES = torch.softmax(REAL, 1)
WEIGHTS = torch.rand(C, generator=g) + 0.5

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "classes": lambda o: F.cross_entropy(o, CLASSES),
    "classes of some rows": lambda o: F.cross_entropy(o[MASK], CLASSES[MASK]),
    "classes with weights": lambda o: F.cross_entropy(o, CLASSES, weight=WEIGHTS),
    "classes, summed": lambda o: F.cross_entropy(o, CLASSES, reduction="sum"),
    "smoothed classes": lambda o: F.cross_entropy(o, CLASSES, label_smoothing=0.2),
    "shares of classes": lambda o: F.cross_entropy(o, SHARES),
    "bits": lambda o: F.binary_cross_entropy_with_logits(o, BITS),
    "numbers": lambda o: F.mse_loss(o, REAL),
    "numbers of some rows": lambda o: F.mse_loss(o[MASK], REAL[MASK]),
    "numbers, summed per row": lambda o: (o - REAL).square().sum(1).mean(),
    "numbers in a far larger unit": lambda o: 1e-10 * F.mse_loss(o, REAL),
    "half of squares": lambda o: 0.5 * (o - REAL).square().sum(),
}

OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "absolute": lambda o: (o - REAL).abs().mean(),
    "smoothed classes, summed": lambda o: F.cross_entropy(o, CLASSES, label_smoothing=0.2, reduction="sum"),
    "with a penalty": lambda o: F.mse_loss(o, REAL) + 0.1 * o.square().mean(),
    "of a power": lambda o: (o - REAL).pow(4).mean(),
    "a policy": lambda o: -(F.log_softmax(o, 1).gather(1, CLASSES[:, None]).squeeze(1) * REAL[:, 0]).mean(),
}


def asked(loss: Callable[[Tensor], Tensor], scale: float) -> tuple[Tensor, Tensor, float]:
    output = (scale * torch.randn(N, C, generator=torch.Generator().manual_seed(7))).requires_grad_()
    value = loss(output)
    value.backward()
    assert output.grad is not None
    return output.detach(), output.grad, float(value.detach())


LINEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "absolute": lambda o: F.l1_loss(o, REAL),
    "absolute, of some rows": lambda o: F.l1_loss(o[MASK], REAL[MASK], reduction="sum"),
    "absolute beyond a tenth": lambda o: F.smooth_l1_loss(o, REAL, beta=0.1),
    "Huber's, summed": lambda o: F.huber_loss(o, REAL, delta=0.2, reduction="sum"),
}


@pytest.mark.parametrize("name", LINEAR)
def test_an_absolute_error_is_recovered_where_the_batch_holds_its_targets(name: str) -> None:
    output, gradient, value = asked(LINEAR[name], 1.0)
    found = recovered_loss(output, gradient, value, [torch.arange(N), REAL + 0.1, REAL])
    assert found is not None
    for shift in (0.0, 0.5, -2.0):
        moved = output + shift * torch.randn(N, C, generator=torch.Generator().manual_seed(8))
        torch.testing.assert_close(found(moved, None), LINEAR[name](moved), rtol=1e-3, atol=0)
    assert recovered_loss(output, gradient, value, [REAL + 0.1, -REAL]) is None


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_recovered_with_its_targets(name: str, scale: float) -> None:
    found = recovered_loss(*asked(LOSSES[name], scale))
    assert found is not None
    for other in (torch.zeros(N, C), torch.randn(N, C)):
        assert math.isclose(float(found(other, None)), float(LOSSES[name](other)), rel_tol=2e-2)


def test_of_a_model_that_returns_more_it_reads_what_the_gradient_came_to() -> None:
    found = recovered_loss(*asked(LOSSES["numbers"], 1.0))
    assert found is not None
    output = torch.randn(N, C)
    value, learned = float(found(output, None)), (output.clone().requires_grad_() * 1.0)
    for result in ((output, torch.randn(N, 2)), {"out": output}, (torch.randn(N, C), learned)):
        assert float(found(result, None).detach()) == value


def test_answers_of_another_number_of_rows_are_refused() -> None:
    found = recovered_loss(*asked(LOSSES["numbers"], 1.0))
    assert found is not None
    for result in (torch.zeros(N - 1, C), {"out": torch.zeros(N + 1, C)}):
        with pytest.raises(UsageError, match=f"reads answers of shape .{N}, {C}."):
            found(result, None)


@pytest.mark.parametrize("name", OTHERS)
def test_another_loss_is_none(name: str) -> None:
    assert recovered_loss(*asked(OTHERS[name], 1.0)) is None


@pytest.mark.parametrize(("name", "known"), [("classes", True), ("bits", True), ("classes, summed", False)])
def test_rows_that_are_right_to_the_last_bit_are_read_where_the_loss_is_the_mean_of_all(name: str, known: bool) -> None:
    answers = BITS if name == "bits" else F.one_hot(CLASSES, C)
    output = REAL.clone()
    output[:20] = 200 * answers[:20] - 100.0
    value = LOSSES[name](output.requires_grad_())
    (gradient,) = torch.autograd.grad(value, output)
    assert not gradient[:20].any()
    found = recovered_loss(output, gradient, value.item())
    assert found is not None
    zeros = torch.zeros(N, C)
    assert math.isclose(float(found(zeros, None)), float(LOSSES[name](zeros)), rel_tol=1e-4) is known


def test_what_is_not_finite_or_has_no_gradient_is_none() -> None:
    assert recovered_loss(torch.zeros(3, 2), torch.zeros(3, 2), 1.0) is None
    assert recovered_loss(torch.zeros(3, 2), torch.full((3, 2), math.nan), 1.0) is None
    assert recovered_loss(torch.zeros(3, 2), torch.ones(3, 2), math.nan) is None


def test_classes_of_the_members_of_sets_are_recovered() -> None:
    output = REAL.view(6, 5, C).clone().requires_grad_()
    value = F.cross_entropy(output.flatten(0, 1), CLASSES)
    value.backward()  # type: ignore[no-untyped-call]
    found = recovered_loss(output, output.grad, float(value.detach()))  # type: ignore[arg-type]
    other = torch.randn(6, 5, C)
    assert found is not None
    assert math.isclose(float(found(other, None)), float(F.cross_entropy(other.flatten(0, 1), CLASSES)), rel_tol=2e-2)


@pytest.mark.parametrize(("loss", "raw"), [
    (lambda o, y: F.mse_loss(o, y), True),
    (lambda o, y: 1e-9 * (o - y).square().sum(), True),
    (lambda o, y: F.mse_loss(o, y / 1e4), False),
    (lambda o, y: F.mse_loss(o, (y - y.mean()) / y.std()), False),
    (lambda o, y: (o - y).abs().mean(), False),
])  # fmt: skip
def test_a_squared_error_of_targets_as_they_are_is_told_by_any_factor(
    loss: Callable[[Tensor, Tensor], Tensor], raw: bool
) -> None:
    targets, output = 1e4 * REAL, (0.3 * REAL.flip(0)).requires_grad_()
    value = loss(output, targets)
    (gradient,) = torch.autograd.grad(value, output)
    assert is_squared_error_of(targets, output, gradient, value.item()) is raw
    assert not is_squared_error_of(targets[1:], output, gradient, value.item())


@pytest.mark.parametrize("rows", [slice(None), MASK])
def test_of_hubers_loss_value_and_gradient_are_recovered(rows: Tensor | slice) -> None:
    output, gradient, value = asked(lambda o: F.smooth_l1_loss(o[rows], REAL[rows]), 0.5)
    found = recovered_loss(output, gradient, value)
    assert found is not None
    again = output.clone().requires_grad_()
    found(again, None).backward()
    assert again.grad is not None
    torch.testing.assert_close(again.grad, gradient)
    assert math.isclose(float(found(output, None)), value, rel_tol=1e-4)


def test_under_a_scaler_the_scale_is_taken_out_so_that_steps_are_tried() -> None:
    """At a rate at which nothing moves; what 16 bits leave of the gradients agrees with the loss to their rounding."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(C, 16), torch.nn.Tanh(), torch.nn.Linear(16, C))
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1e-8), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with gnnstab.Monitor(model, optimizer=optimizer, scaler=scaler, on_finding="ignore") as monitor:
        for _ in range(45):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = F.binary_cross_entropy_with_logits(model(REAL), BITS)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            monitor.loss(loss)
    assert "GS608" in {f.code for f in monitor.diagnose().findings if f.severity == "warning"}
