"""Results that a model computes and throws away, beside programs that call things for what they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnstab.probe.places._dead_lines import RETURNED, unread
from gnnstab.records import Diagnosis, Finding
from side_by_side import brief_trials, without_trials
from test_places import look, loud
from trained import trained

SETS, WORDS, WIDTH = 12, 9, 16


def sentences() -> dict[str, Tensor]:
    """Words of four kinds; what is asked for follows from their place."""
    g = torch.Generator().manual_seed(4)
    kinds = torch.randint(0, 4, (SETS, WORDS), generator=g)
    return {
        "ids": kinds,
        "closed": torch.rand(SETS, WORDS, WORDS, generator=g) < 0.3,
        "y": torch.arange(WORDS) / 4 - kinds,
    }


def loss(output: Tensor, batch: Any) -> Tensor:
    return F.mse_loss(output, batch["y"])


class Reader(nn.Module):
    """Reads words by attention of its own; ``say`` is one line of its forward."""

    def __init__(self, say: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(4, WIDTH), nn.Parameter(torch.randn(WORDS, WIDTH))
        self.ask, self.leave = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.square, self.seen = Square(), list[Tensor]()
        self.say = say

    def forward(self, batch: Any) -> Tensor:
        return self.leave(self.heard(self.say(self, self.words(batch["ids"])), batch["closed"])).squeeze(-1)

    def heard(self, h: Tensor, closed: Tensor) -> Tensor:
        scores = self.ask(h) @ h.mT / WIDTH**0.5
        return h + scores.softmax(-1) @ h


class Square(nn.Module):
    """Without a parameter."""

    def forward(self, h: Tensor) -> Tensor:
        return h * h.abs()


def placed(model: Any, h: Tensor) -> Tensor:
    return h + model.places


def placed_for_nothing(model: Any, h: Tensor) -> Tensor:
    h.add(model.places.detach())
    return h


def squared_for_nothing(model: Any, h: Tensor) -> Tensor:
    model.square(h)
    return h


def told(diagnosis: Diagnosis) -> list[Finding]:
    return loud(diagnosis, "GS705")


FACES = pytest.mark.parametrize("run", [False, True], ids=["diagnose", "monitor"])


def face(model: nn.Module, run: bool) -> Diagnosis:
    if not run:
        return look(model, sentences(), loss=loss)
    with brief_trials(2), without_trials():
        return trained(model, sentences(), loss)


@FACES
def test_places_that_are_added_and_not_kept(run: bool) -> None:
    (found,) = told(face(Reader(placed_for_nothing), run))
    assert found.cause == "indistinguishable-nodes"
    assert "`h.add(model.places.detach())`" in found.message and "test_places_dropped.py" in found.message
    assert "of 108 rows 4 differ, and 35 would" in found.message
    assert told(face(Reader(placed), run)) == []


@FACES
def test_a_module_that_is_called_for_nothing(run: bool) -> None:
    (found,) = told(face(Reader(squared_for_nothing), run))
    assert found.layer == "square" and "what square returns" in found.message


class Masked(Reader):
    def heard(self, h: Tensor, closed: Tensor) -> Tensor:
        scores = self.ask(h) @ h.mT / WIDTH**0.5
        scores.masked_fill(closed, -1e9)
        return h + scores.softmax(-1) @ h


class MaskedInPlace(Reader):
    def heard(self, h: Tensor, closed: Tensor) -> Tensor:
        scores = self.ask(h) @ h.mT / WIDTH**0.5
        scores.masked_fill_(closed, -1e9)
        return h + scores.softmax(-1) @ h


@FACES
def test_a_mask_that_is_not_kept(run: bool) -> None:
    (found,) = told(face(Masked(placed), run))
    assert found.cause == "masking" and "masked_fill" in found.message
    assert told(face(MaskedInPlace(placed), run)) == []


def noted(model: Any, h: Tensor) -> Tensor:
    model.seen.append(h.detach() * 2)
    size = h.norm()
    if model.training and float(size) < 0:
        raise ValueError
    return h + model.places


def unpacked(model: Any, h: Tensor) -> Tensor:
    h, _order = (h + model.places).sort(dim=-1)
    _ = h * 2
    return h


class Counter(nn.Module):
    """Called for what it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        self.mean.copy_(h.detach().mean())
        return h * self.mean


class Counted(Reader):
    def __init__(self) -> None:
        super().__init__(placed)
        self.counter = Counter()

    def heard(self, h: Tensor, closed: Tensor) -> Tensor:
        self.counter(h)
        return super().heard(h, closed)


def catch(module: Any, args: Any, output: Tensor) -> None:
    module.caught = output


class Listened(Reader):
    """What a part of the square returns is caught by a hook."""

    def __init__(self) -> None:
        super().__init__(placed)
        self.body = nn.Sequential(Square(), nn.Tanh())
        self.body[0].register_forward_hook(catch)

    def heard(self, h: Tensor, closed: Tensor) -> Tensor:
        self.body(h)
        return super().heard(h, closed) + self.body[0].caught


@pytest.mark.parametrize("make", [lambda: Reader(noted), lambda: Reader(unpacked), Counted, Listened])
def test_what_is_called_for_what_it_does(make: Callable[[], nn.Module]) -> None:
    assert [f for f in look(make(), sentences(), loss=loss).findings if f.code == "GS705"] == []


def names_in(body: str) -> set[str]:
    """What the values are called that nothing reads in a function of ``x``, ``f`` and ``g`` with this body."""
    made: dict[str, Any] = {}
    exec("def made(x, f, g):\n    " + body.replace("\n", "\n    "), made)
    return set(unread(made["made"].__code__).values())


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("a = f(x)\na = g(x)\nreturn a + x", {"a", RETURNED}),
        ("a = f(x)\nreturn x", {"a"}),
        ("f(x)\nx + g\nreturn x", {""}),
        ("f.append(g(x))\nx.add_(g)\nprint(g(x))\nreturn x", set()),
        ("a, b = f(x)\n_ = g(x)\nreturn b", set()),
        ("a = f(x)\nif g:\n    return a\nreturn x", set()),
        ("for one in x:\n    a = f(one)\nreturn a", set()),
        ("a = f(x)\nwhile x:\n    x = a - x\n    a = f(x)\nreturn x", set()),
        ("a = f(x)\nreturn lambda: a", set()),
        ("a = f(x)\nreturn locals()", {RETURNED}),
    ],
)
def test_the_names_that_nothing_reads(body: str, found: set[str]) -> None:
    assert names_in(body) == found
