"""A number among the targets that is a mark, told from targets that hold two numbers by nature."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gnnstab.probe.replaying.marks import mark_among, marked_targets


def recovered(targets: Tensor, dtype: torch.dtype) -> list[float]:
    output = torch.randn(len(targets), generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
    loss = (output - targets.to(dtype)).square().mean()
    (gradient,) = torch.autograd.grad(loss, output)
    return [one.value for one in marked_targets(output, gradient, float(loss.detach()), 0, "train")]


def two_numbers(low: float, high: float, rows: int = 100, lows: int = 40) -> Tensor:
    return torch.where(torch.arange(rows) % rows < lows, low, high)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lows", [3, 40, 97])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (5.0, 7.0), (-999.0, 0.1)])
def test_targets_of_two_numbers_hold_no_mark(low: float, high: float, lows: int, dtype: torch.dtype) -> None:
    assert recovered(two_numbers(low, high, lows=lows), dtype) == []
    assert mark_among(two_numbers(low, high, lows=lows).to(dtype)) is None


@pytest.mark.parametrize("mark", [-999.0, -9999.0, 1e5])
@pytest.mark.parametrize("offset", [0.0, 3.0, -20.0])
def test_a_number_far_from_others_that_differ_is_one(mark: float, offset: float) -> None:
    values = torch.randn(100, generator=torch.Generator().manual_seed(0)) + offset
    values[torch.arange(100) % 8 == 0] = mark
    (distance,) = recovered(values, torch.float32)
    assert distance == pytest.approx(abs(mark - offset), rel=0.2)
