"""What 16 bits round to one number: named where the same steps in float32 learn, with its line."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import gnnstab
from gnnstab.records import Diagnosis

CATCHES, NETS, WIDTH = 32, 8, 12


def catches() -> dict[str, Tensor]:
    """Nets of a catch, one of which is marked: the answer is what it holds."""
    g = torch.Generator().manual_seed(2)
    held = torch.randn(CATCHES, NETS, generator=g)
    marked = torch.nn.functional.one_hot(torch.randint(0, NETS, (CATCHES,), generator=g), NETS).float()
    return {"x": torch.stack([held, 4 * marked - 2], -1), "y": (held * marked).sum(1)}


def from_one(score: Tensor) -> Tensor:
    return torch.expm1(score) + 1


def from_zero(score: Tensor) -> Tensor:
    return torch.exp(score)


class Weighted(nn.Module):
    """A mean over nets by weights that ``weigh`` makes of scores around -8."""

    def __init__(self, weigh: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score, self.value, self.leave = nn.Linear(2, 1), nn.Linear(2, WIDTH), nn.Linear(WIDTH, 1)
        self.weigh = weigh

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weigh(self.score(x) - 8)
        mean = (weights * self.value(x)).sum(1) / (weights.sum(1) + 1e-9)
        return self.leave(mean).squeeze(-1).float()


def asked(weigh: Callable[[Tensor], Tensor], precision: str = "bf16") -> Diagnosis:
    model = Weighted(weigh)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)

    def loss(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return (output - batch["y"]).square().mean()

    return gnnstab.diagnose(model, batch=catches(), loss=loss, optimizer=optimizer, precision=precision)


def test_a_difference_from_one_that_16_bits_cannot_hold_is_named_with_its_line() -> None:
    diagnosis = asked(from_one)
    (cause,) = diagnosis.root_causes()
    (finding,) = [f for f in diagnosis.findings if f.code == "GS609"]
    assert cause.cause == finding.cause == "precision"
    assert "expm1 gives -1 in every entry (line" in finding.message and "test_in_float32.py" in finding.message
    assert "enabled=False" in str(cause.fixes[0].change)


def test_what_is_written_without_that_difference_or_computed_in_float32_learns() -> None:
    assert not asked(from_zero).root_causes()
    assert not asked(from_one, "fp32").root_causes()
