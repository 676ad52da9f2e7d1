"""What heads for an end of its number format is warned about before it gets there; what stops on the way is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch_geometric.nn import GATv2Conv

from gnnstab import Monitor
from gnnstab.records.rises import Nearing
from gnnstab.torch_private import FUNCTION

EDGES = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])
Change = Callable[[Tensor, int], Tensor]


class Changed(nn.Module):
    """An attention layer behind something of the step's number; its own sizes do not grow."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.enter, self.conv = nn.Linear(4, 8), GATv2Conv(8, 2)
        self.change, self.calls = change, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = self.change(self.enter(x), self.calls)
        out: Tensor = self.conv(nn.functional.layer_norm(h.float(), (8,)), EDGES)
        return out


def squares(out: Tensor, step: int) -> Tensor:
    return out.float().square().mean()


def warned(
    change: Change, steps: int, *, half: bool = False, scaled: float = 1.0, loss_of: Change = squares
) -> tuple[int | None, int | None, nn.Module]:
    """The first step in which the end of a format was warned about, the first with a loss or a gradient that is not finite, and the model."""
    torch.manual_seed(0)
    model, x = Changed(change), torch.randn(6, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    said: list[int] = []
    lost: int | None = None
    step = 0
    with Monitor(
        model,
        optimizer=optimizer,
        on_finding=lambda f: said.append(step) if f.signal == "precision.steps_left" else None,
    ):
        for step in range(steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16, enabled=half):
                loss = loss_of(model(x), model.calls)
            (loss * scaled**step).backward()
            finite = all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
            if lost is None and not (finite and math.isfinite(loss.item())):
                lost = step
            optimizer.step()
    return min(said, default=None), lost, model


def exponent(size: Callable[[int], float]) -> Change:
    return lambda h, step: h + (size(step) * h / h.detach().max()).exp().log1p()


def gain(size: Callable[[int], float]) -> Change:
    return lambda h, step: h.to(torch.float16) * size(step)


def length(eps: float) -> Change:
    def change(h: Tensor, step: int) -> Tensor:
        h = h * 0.4**step
        return h / (h.square().sum(-1, keepdim=True) + eps).sqrt()

    return change


BROKEN = {
    "an exponent rises": (exponent(lambda step: 0.9 * step), 105, False),
    "an exponent multiplies": (exponent(lambda step: 1.05**step), 110, False),
    "a gain in fp16": (gain(lambda step: 1.1**step), 125, True),
    "a length without an eps": (length(0.0), 70, False),
}
HEALTHY = {
    "an exponent that stops at 50": (exponent(lambda step: min(0.9 * step, 50.0)), 110, False),
    "an exponent that ever slows down": (exponent(lambda step: 14 * math.log(step)), 110, False),
    "a gain in fp16 that stops": (gain(lambda step: min(1.1**step, 500.0)), 110, True),
    "a length with an eps": (length(1e-12), 70, False),
}


WRITTEN = [torch.tensor([math.exp(0.9 * step)]) for step in range(98)]


def handed_out(h: Tensor, step: int) -> Tensor:
    torch.empty(1, out=WRITTEN[step])  # Memory with numbers in it that nobody reads.
    return h


HEALTHY["memory that is only handed out"] = (handed_out, 97, False)


@pytest.mark.parametrize("case", BROKEN)
def test_what_heads_for_an_end_is_warned_about_five_steps_before(case: str) -> None:
    change, steps, half = BROKEN[case]
    first, lost, _ = warned(change, steps, half=half)
    assert lost is not None
    assert first is not None
    assert lost - 25 <= first <= lost - 5


@pytest.mark.parametrize("case", HEALTHY)
def test_what_stops_on_the_way_is_not(case: str) -> None:
    change, steps, half = HEALTHY[case]
    first, lost, _ = warned(change, steps, half=half)
    assert first is lost is None


def certainty(eps: float) -> Change:
    """A cross entropy by hand, of outputs that grow by an even amount per step."""

    def loss(out: Tensor, step: int) -> Tensor:
        p = torch.sigmoid(0.2 * step + 0.01 * out)
        return -torch.log(1 - p + eps if eps else 1 - p).mean()

    return loss


def likelihood(most: float) -> Change:
    return lambda out, step: (out.square() * math.exp(-9) * torch.tensor(min(1.3 * step, most)).exp()).mean().log1p()


@pytest.mark.parametrize(
    ("loss", "twin", "steps"),
    [(certainty(0.0), certainty(1e-6), 100), (likelihood(math.inf), likelihood(50.0), 90)],
    ids=["the logarithm of a difference", "an exponential"],
)
def test_a_loss_that_heads_for_an_end_is_warned_about_too(loss: Change, twin: Change, steps: int) -> None:
    first, lost, _ = warned(lambda h, step: h, steps, loss_of=loss)
    assert lost is not None
    assert first is not None
    assert lost - 25 <= first <= lost - 5
    assert warned(lambda h, step: h, steps, loss_of=twin)[:2] == (None, None)


def test_a_difference_of_two_small_tensors_has_no_end_at_the_rounding_of_one() -> None:
    """Both become smaller, and so does their difference, which stays as exact as they are."""

    def loss(out: Tensor, step: int) -> Tensor:
        size = torch.tensor(math.exp(-0.2 * min(step, 90)))
        return out.square().mean() - 1e-3 * torch.log(2 * size - size)

    assert warned(lambda h, step: h, 100, loss_of=loss)[:2] == (None, None)


def test_what_rises_slowly_is_warned_about_however_often_it_was_looked_at() -> None:
    first, lost, _ = warned(exponent(lambda step: 10 + 0.4 * step), 200)
    assert lost is not None
    assert first is not None
    assert lost - 25 <= first <= lost - 5


def test_gradients_in_fp16_under_a_loss_scale_that_grows() -> None:
    """A forward shows nothing of it."""
    change = gain(lambda step: 1.0)
    first, lost, _ = warned(change, 130, half=True, scaled=1.15)
    assert lost is not None
    assert first is not None
    assert lost - 30 <= first <= lost - 5
    assert warned(change, 130, half=True)[:2] == (None, None)


def test_training_is_the_same_bit_for_bit() -> None:
    change = BROKEN["an exponent rises"][0]
    model = warned(change, 60)[2]
    torch.manual_seed(0)
    twin, x = Changed(change), torch.randn(6, 4)
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        twin(x).float().square().mean().backward()
        optimizer.step()
    assert twin.calls == model.calls == 60
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True))


def test_no_mode_is_left_behind_where_a_forward_fails() -> None:
    def fail(h: Tensor, step: int) -> Tensor:
        if step == 9:
            raise ValueError("of the user's")
        return h

    model, x = Changed(fail), torch.randn(6, 4)
    optimizer = torch.optim.Adam(model.parameters())
    with Monitor(model, optimizer=optimizer, on_finding="ignore"):
        for step in range(20):
            optimizer.zero_grad()
            try:
                model(x).square().mean().backward()
            except ValueError:
                assert step == 8
            optimizer.step()
            assert FUNCTION.stack() == []


def test_no_mode_is_left_behind_where_steps_end_within_a_backward() -> None:
    model, x = Changed(lambda h, step: h), torch.randn(6, 4)
    optimizer = torch.optim.Adam(model.parameters())
    with Monitor(model, optimizer=optimizer, on_finding="ignore"):
        model.enter.weight.register_post_accumulate_grad_hook(lambda parameter: optimizer.step())
        for step in range(22):
            optimizer.zero_grad()
            assert step == 20 or FUNCTION.stack() == []
            model(x).square().mean().backward()
    assert FUNCTION.stack() == []


def test_nothing_is_followed_under_a_mode_of_the_users() -> None:
    class Own(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    with Own():
        first, lost, _ = warned(BROKEN["an exponent rises"][0], 105)
        assert len(FUNCTION.stack()) == 1
    assert lost is not None
    assert first is None or first >= lost


def test_steps_left() -> None:
    def left(*sizes: float) -> float:
        looks = tuple((10 * i, size) for i, size in enumerate(sizes))
        return Nearing(10 * len(sizes), "exp", "", "float32", False, 88.0, looks).steps_left(0.6, 0.25, 0.75)

    assert left(20, 40, 60, 80) == pytest.approx(4.0)
    assert left(20, 60, 80) == math.inf, "three looks are too few"
    assert left(20, 60, 75, 80) == math.inf, "it slows down"
    assert left(20, 60, 50, 80) == math.inf, "it falls back"
    assert left(70, 72, 74, 80) == math.inf, "it has not come far"
    assert left(10, 20, 30, 40) == math.inf, "it is far away"
