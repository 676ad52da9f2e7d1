"""Dense attention with a mask that multiplies, and a loss behind two softmaxes; each beside programs that are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.utils import softmax

import gnnstab
from gnnstab.records import Diagnosis, Finding
from side_by_side import brief_trials
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


def over_queries(scores: Tensor, near: Tensor) -> Tensor:
    """Some are given the attention of many."""
    return scores.mul(4).masked_fill(near == 0, -torch.inf).softmax(-2)


def to_speakers(scores: Tensor) -> Tensor:
    """Everybody listens to two speakers and to himself; all scores are small."""
    open_ = torch.eye(scores.shape[-1])
    open_[:, :2] = 1.0
    return scores.div(20).masked_fill(open_ == 0, -torch.inf)


def over_listeners(scores: Tensor, near: Tensor) -> Tensor:
    """No sum is much above 1; those of the speakers are far below it."""
    return to_speakers(scores).softmax(-2)


def over_speakers(scores: Tensor, near: Tensor) -> Tensor:
    return to_speakers(scores).softmax(-1)


def over_rooms(scores: Tensor, near: Tensor) -> Tensor:
    return F.dropout((scores / 2).softmax(0), 0.1)


def divided_too_late(scores: Tensor, near: Tensor) -> Tensor:
    return scores.masked_fill(near == 0, -torch.inf).softmax(-1) / 4


def softened(scores: Tensor, near: Tensor) -> Tensor:
    closed = near == 0
    weights = F.dropout(scores.masked_fill(closed, -torch.inf).softmax(-1), 0.1)
    return weights.masked_fill(closed, -torch.inf).softmax(-1)


def sharpened(scores: Tensor, near: Tensor) -> Tensor:
    """Weights times a number are scores again."""
    closed = near == 0
    return scores.masked_fill(closed, -torch.inf).softmax(-1).mul(20).masked_fill(closed, -torch.inf).softmax(-1)


def averaged(scores: Tensor, near: Tensor) -> Tensor:
    """As over the heads, of which there are as many as rooms."""
    return scores.div(2).masked_fill(near == 0, -torch.inf).softmax(-1) / len(near)


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
    return F.cross_entropy(output.view(-1, 12), data.y)


def asked(model: nn.Module) -> Diagnosis:
    return gnnstab.diagnose(model, batch=room(), loss=loss)


def watched(model: nn.Module) -> Diagnosis:
    with brief_trials():  # `asked` takes whole ones.
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
        set_to_minus_inf, multiplied_again_and_divided, limited, over_speakers, limited_alone, lowered_enough, biased_by_distance, averaged, sharpened,
    ])  # fmt: skip
def test_a_mask_that_leaves_nothing_is_not(face: Callable[[nn.Module], Diagnosis], weigh: Weigh) -> None:
    assert misused(face, weigh, nn.Identity()) == []


@FACES
def test_a_second_softmax_in_the_loss_is_named(face: Callable[[nn.Module], Diagnosis]) -> None:
    diagnosis = face(Rooms(set_to_minus_inf, nn.Softmax(-1)))
    (finding,) = (f for f in diagnosis.findings if f.code == "GS305")
    assert "log_softmax of the result of a softmax" in finding.message
    (root,) = diagnosis.root_causes()
    assert root.cause == "normalization-misuse" and "F.cross_entropy(scores, y)" in root.fixes[0].change
    assert misused(face, set_to_minus_inf, nn.LogSoftmax(-1)) == [], "a log_softmax of a log_softmax is the same"


class Shops(nn.Module):
    """Shops listen to their customers; ``grouped``: (source, target, relation) → group of each edge in the softmax."""

    def __init__(self, grouped: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.score, self.leave = nn.Linear(5, 16), nn.Linear(16, 1), nn.Linear(16, 12)
        self.grouped = grouped

    def forward(self, data: Data) -> Tensor:
        states, (source, target) = self.enter(data.x), data.edge_index
        scores = F.leaky_relu(self.score(states[source] + states[target]))
        weights = softmax(scores, self.grouped(source, target, data.kind))
        return self.leave(states + torch.zeros_like(states).index_add(0, target, weights * states[source]))


def over_all_edges(scores: Tensor, target: Tensor) -> Tensor:
    return scores.softmax(0)


def over_heads(scores: Tensor, target: Tensor) -> Tensor:
    return scores.softmax(1)


def softened_over_edges(scores: Tensor, target: Tensor) -> Tensor:
    return softmax(softmax(scores, target), target)


def shrunk_afterwards(scores: Tensor, target: Tensor) -> Tensor:
    return softmax(scores, target) / 8**0.5


class Heads(nn.Module):
    """Heads that shops listen with, and a softmax that chooses between ``ways`` of leaving."""

    def __init__(self, weigh: Weigh, heads: int = 2, ways: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.score, self.leave = nn.Linear(5, 16), nn.Linear(16, heads), nn.Linear(16, 12)
        self.weigh, self.heads, self.way = weigh, heads, nn.Linear(16, ways) if ways else None

    def forward(self, data: Data) -> Tensor:
        states, (source, target) = self.enter(data.x), data.edge_index
        weights = self.weigh(F.leaky_relu(self.score(states[source] + states[target])), target)
        messages = (states[source].view(-1, self.heads, 16 // self.heads) * weights[..., None]).flatten(1)
        states = states + torch.zeros_like(states).index_add(0, target, messages)
        return self.leave(states if self.way is None else states * self.way(states).softmax(1).amax(1, keepdim=True))


@pytest.mark.parametrize("weigh", [over_all_edges, over_heads, shrunk_afterwards, softened_over_edges, softmax])
def test_weights_of_messages_that_do_not_sum_to_one_or_are_squeezed_are_named(weigh: Weigh) -> None:
    for found in (
        gnnstab.diagnose(Heads(weigh), batch=shops(), loss=loss),
        trained(Heads(weigh), shops(), loss, steps=6),
    ):
        told = [f for f in found.findings if f.code == "GS305"]
        assert [f.cause for f in told] == ["normalization-misuse"] * (weigh is not softmax)
        fix = {shrunk_afterwards: "belongs to the scores", softened_over_edges: "Take one softmax"}.get(
            weigh, "softmax(scores, index)"
        )
        assert all(f.layer == "score" and fix in f.message for f in told)
        assert weigh is not softened_over_edges or "weights = softmax(scores, index)" in str(found)


@pytest.mark.parametrize(
    ("weigh", "ways", "roots"),
    [
        (over_heads, 0, ["normalization-misuse"]),
        (over_heads, 1, ["normalization-misuse"]),
        (softmax, 1, ["normalization-misuse"]),
        (softmax, 2, []),
    ],
)
def test_scores_whose_softmax_runs_over_their_one_head_have_no_gradient_because_of_it(
    weigh: Weigh, ways: int, roots: list[str]
) -> None:
    model = Heads(weigh, heads=1, ways=ways)
    for found in (gnnstab.diagnose(model, batch=shops(), loss=loss), trained(model, shops(), loss, steps=6)):
        assert [cause.cause for cause in found.root_causes() if cause.cause != "sum-aggregation"] == roots


def shops() -> Data:
    g = torch.Generator().manual_seed(3)
    source, target = torch.arange(60).repeat(2), torch.randint(0, 4, (120,), generator=g)
    edges, kind = torch.stack([torch.cat([source, target]), torch.cat([target, source])]), torch.arange(240) % 2
    return Data(x=torch.randn(60, 5, generator=g), edge_index=edges, kind=kind, y=torch.randint(0, 12, (60,)))


@pytest.mark.parametrize(
    ("weigh", "words"),
    [
        (over_queries, "dim=-1"),
        (over_listeners, "dim=-1"),
        (over_rooms, "dim=-1"),
        (divided_too_late, "belongs to the scores"),
        (softened, "e times the weight"),
    ],
)
@FACES
def test_weights_that_do_not_sum_to_one_or_are_squeezed_are_named(
    face: Callable[[nn.Module], Diagnosis], weigh: Weigh, words: str
) -> None:
    (finding,) = misused(face, weigh, nn.Identity())
    assert (finding.cause, finding.layer) == ("normalization-misuse", "ask")
    assert words in finding.message


@pytest.mark.parametrize(
    ("grouped", "named"),
    [
        (lambda source, target, kind: source, True),
        (lambda source, target, kind: target, False),
        (lambda source, target, kind: 2 * target + kind, False),
        (lambda source, target, kind: torch.zeros_like(source), False),
    ],
)
def test_a_softmax_over_other_edges_than_the_sum_is_named(
    grouped: Callable[[Tensor, Tensor, Tensor], Tensor], named: bool
) -> None:
    torch.manual_seed(0)
    model, data = Shops(grouped), shops()
    for found in (gnnstab.diagnose(model, batch=data, loss=loss), trained(model, data, loss, steps=6)):
        told = [f for f in found.findings if f.code == "GS305"]
        assert [f.cause for f in told] == ["normalization-misuse"] * named
        assert all("edge_index[1]" in f.message for f in told)
        assert ("softmax(scores, edge_index[1])" in str(found)) == named


class Split(nn.Module):
    """Two heads of attention; ``torn``: at which end the axes of heads and nodes change places by a view."""

    def __init__(self, torn: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.ask, self.leave, self.torn = nn.Linear(5, 16), nn.Linear(16, 16), nn.Linear(16, 12), torn

    def forward(self, data: Data) -> Tensor:
        states = self.enter(data.x)
        sets, nodes, _ = states.shape
        asked = self.ask(states)
        heads = asked.view(sets, nodes, 2, 8).transpose(1, 2)
        heads = asked.view(sets, 2, nodes, 8) if self.torn == "split" else heads
        found = (heads @ heads.mT / 8**0.5).softmax(-1) @ heads
        found = found if self.torn == "joined" else found.transpose(1, 2)
        return self.leave(states + found.reshape(sets, nodes, 16))


@pytest.mark.parametrize(("torn", "layer"), [("split", "ask"), ("joined", "ask"), ("", "")])
@FACES
def test_a_view_that_moves_the_axis_of_the_nodes_is_named(
    face: Callable[[nn.Module], Diagnosis], torn: str, layer: str
) -> None:
    told = [f for f in face(Split(torn)).findings if f.code == "GS305"]
    assert [f.layer for f in told] == [layer] * bool(torn)
    assert all("20 nodes without a transpose" in f.message for f in told)
