"""Generators that a program keeps outside of its model: no replay draws from them, and no public function does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gnnstab
import noise
from gnnstab.errors import GnnstabError
from gnnstab.testing import assert_stable
from side_by_side import Net, Run, graph, unnoticed

X, EDGES = graph()
Y = torch.randn(len(X), 1, generator=torch.Generator().manual_seed(5))


class Drawers:
    """Places outside of the model at which a program keeps its generator; none is an attribute or a global of the forward."""

    @staticmethod
    def by_module() -> float:
        return float(noise.RNG.random())

    @staticmethod
    def by_import() -> float:
        from noise import RNG

        return float(RNG.random())

    @staticmethod
    def by_object() -> float:
        return float(noise.STATE.rng.normal())

    @staticmethod
    def by_name() -> float:
        return float(getattr(noise, "PYTHON").random())  # noqa: B009  # The name in a string is what is tested.

    @staticmethod
    def by_slots() -> float:
        return float(noise.SLOTS.rng.random())

    @staticmethod
    def by_cache() -> float:
        return float(noise.made().random())


class Drawing(Net):
    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return super().forward(x * (1 + 0.1 * self.draw()), edge_index)


WAYS = [Drawers.by_module, Drawers.by_import, Drawers.by_object, Drawers.by_name, Drawers.by_slots, Drawers.by_cache]


@pytest.mark.parametrize("draw", WAYS)
def test_generators_that_a_program_keeps_elsewhere(draw: Callable[[], float]) -> None:
    def loop(run: Run) -> None:
        noise.reset()
        model = Drawing(draw)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        with run.watching(model, optimizer=optimizer, loss=lambda output: (output - Y).square().mean()):
            for _ in range(6):
                optimizer.zero_grad()
                (model(X, EDGES) - Y).square().mean().backward()
                optimizer.step()
        run.keep(*model.parameters(), torch.tensor(noise.drawn()))

    unnoticed(loop)


@pytest.mark.parametrize("draw", WAYS)
@pytest.mark.parametrize(
    "call",
    [
        lambda model, batch: gnnstab.diagnose(model, batch=batch),
        gnnstab.attention,
        lambda model, batch: gnnstab.verify(model, "dropout", batch=batch, seeds=1, steps=1),
        assert_stable,
    ],
    ids=["diagnose", "attention", "verify", "assert_stable"],
)
def test_public_functions_leave_those_generators(call: Callable[..., Any], draw: Callable[[], float]) -> None:
    noise.reset()
    left = noise.drawn()
    noise.reset()
    with pytest.raises(GnnstabError, match="copy shares"):
        call(Drawing(draw), (X, EDGES))
    assert noise.drawn() == left
