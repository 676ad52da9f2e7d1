"""Dense attention with a mask that multiplies, and a loss behind two softmaxes; each beside programs that are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data

import gnnstab
from gnnstab.records import Diagnosis, Finding
from trained import trained

Weigh = Callable[[Tensor, Tensor], Tensor]
Score = Callable[[Tensor], Tensor]


def multiplied(scores: Tensor, near: Tensor) -> Tensor:
    return (scores * near / 2).softmax(-1)


def set_to_minus_inf(scores: Tensor, near: Tensor) -> Tensor:
    return (scores / 2).masked_fill(near == 0, -torch.inf).softmax(-1)


def zero_where_closed(scores: Tensor, near: Tensor) -> Tensor:
    return torch.where(near > 0, scores, 0.0).div(2).softmax(-1) * near


def taken_away_later(scores: Tensor, near: Tensor) -> Tensor:
    return scores.div(2).softmax(-1) * near


def lowered(scores: Tensor, near: Tensor) -> Tensor:
    return (scores / 2 - 2 * (1 - near)).softmax(-1)


def lowered_enough(scores: Tensor, near: Tensor) -> Tensor:
    return (scores / 2 + 1e9 * (near - 1)).softmax(-1)


def biased_by_distance(scores: Tensor, near: Tensor) -> Tensor:
    return (scores / 2 - (near.cumsum(-1) - 1).abs()).softmax(-1)


def lifted(scores: Tensor, near: Tensor) -> Tensor:
    return scores.masked_fill(near == 0, 1e4).softmax(-1)


def limited(scores: Tensor, near: Tensor) -> Tensor:
    """No mask: a clamp by another name, in front of the mask."""
    top = scores.detach().flatten().quantile(0.9)
    return torch.where(scores < top, scores, top).masked_fill(near == 0, -torch.inf).softmax(-1)


def limited_alone(scores: Tensor, near: Tensor) -> Tensor:
    top = float(scores.detach().flatten().quantile(0.9))
    return torch.where(scores < top, scores, top).softmax(-1)


def multiplied_again_and_divided(scores: Tensor, near: Tensor) -> Tensor:
    weights = (scores * near / 2).softmax(-1) * near
    return weights / weights.sum(-1, keepdim=True)


class Rooms(nn.Module):
    """Visitors of one room listen to those who stand near."""

    def __init__(self, weigh: Weigh, score: Score) -> None:
        super().__init__()
        self.enter, self.ask, self.answer, self.leave = (
            nn.Linear(5, 16),
            nn.Linear(16, 16),
            nn.Linear(16, 16),
            nn.Linear(16, 12),
        )
        self.weigh, self.score = weigh, score

    def forward(self, data: Data) -> Tensor:
        states = self.enter(data.x)
        weights = self.weigh(self.ask(states) @ self.answer(states).mT, data.near)
        return self.score(self.leave(states + weights @ states))


def room() -> Data:
    g = torch.Generator().manual_seed(2)
    near = (torch.rand(3, 20, 20, generator=g) < 0.1).float()
    near[:, range(20), range(20)] = 1.0
    return Data(x=torch.randn(3, 20, 5, generator=g), near=near, y=torch.randint(0, 12, (60,), generator=g))


def loss(output: Tensor, data: Any) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), data.y)


def asked(model: nn.Module) -> Diagnosis:
    return gnnstab.diagnose(model, batch=room(), loss=loss)


def watched(model: nn.Module) -> Diagnosis:
    return trained(model, room(), loss, steps=6)


def misused(face: Callable[[nn.Module], Diagnosis], weigh: Weigh, score: Score) -> list[Finding]:
    torch.manual_seed(0)
    return [f for f in face(Rooms(weigh, score)).findings if f.code == "GS305"]


FACES = pytest.mark.parametrize("face", [asked, watched])


@FACES
@pytest.mark.parametrize(
    ("weigh", "words", "left"),
    # 18 of 20 neighbours are closed, and at first all scores are small.
    [
        (multiplied, "exp(0) is 1", (0.7, 0.95)),
        (zero_where_closed, "a constant", (0.7, 0.95)),
        (lifted, "a constant", (0.99, 1.01)),
        (lowered, "lowers by 2 alone", (0.4, 0.7)),
        (taken_away_later, "after the softmax", (0.7, 0.95)),
    ],
)
def test_a_mask_that_leaves_weight_is_named(
    face: Callable[[nn.Module], Diagnosis], weigh: Weigh, words: str, left: tuple[float, float]
) -> None:
    (finding,) = misused(face, weigh, nn.Identity())
    severity = "warning" if weigh is lowered else "error"
    assert (finding.cause, finding.layer, finding.severity) == ("masking", "ask", severity)
    assert "masked_fill" in finding.message and words in finding.message
    assert left[0] < finding.value < left[1]


@FACES
@pytest.mark.parametrize("weigh", [
        set_to_minus_inf, multiplied_again_and_divided, limited, limited_alone, lowered_enough, biased_by_distance,
    ])  # fmt: skip
def test_a_mask_that_leaves_nothing_is_not(face: Callable[[nn.Module], Diagnosis], weigh: Weigh) -> None:
    assert misused(face, weigh, nn.Identity()) == []


@FACES
def test_a_second_softmax_in_the_loss_is_named(face: Callable[[nn.Module], Diagnosis]) -> None:
    (finding,) = misused(face, set_to_minus_inf, nn.Softmax(-1))
    assert "log_softmax of the result of a softmax" in finding.message
    assert misused(face, set_to_minus_inf, nn.LogSoftmax(-1)) == [], "a log_softmax of a log_softmax is the same"
