"""A tensor that repeats a few stored entries without end is judged by those, in next to no memory."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from forked import Child
from gnnstab.checkpoint._loading import Checkpoint
from gnnstab.checkpoint._moments import optimizer_signals
from gnnstab.checkpoint._optimizer import Entry, OptimizerState
from gnnstab.checkpoint._scan import Statistics, finite
from gnnstab.checkpoint._tensor_scan import scan_tensors
from gnnstab.checkpoint._training import was_trained
from gnnstab.layers import StoredLayer, layer_named

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit is measured from what the process has")

ROOM = 100 * 2**20
"""Bytes; each of the tensors below has more than twice as many in float64."""

MANY = 30_000_000
"""Entries of 30 or 60 MB, which any file may declare."""


def wide(*values: float, of: torch.dtype = torch.float8_e5m2) -> Tensor:
    return torch.tensor(values).to(of)[:, None].expand(-1, MANY // len(values))


def scanned(tensor: Tensor, name: str = "x") -> Any:
    found = scan_tensors(Checkpoint("x.pt", "torch", 10**6, {"w": torch.ones(2, 2), name: tensor}))
    return found.non_finite.get(name), name in found.unwritten


def moments() -> dict[str, float]:
    moment = wide(4e-4, 0.0, of=torch.bfloat16)
    settings = {"lr": 0.1, "eps": 1e-3, "betas": (0.9, 0.5)}
    optimizer = OptimizerState("o", (Entry({"exp_avg_sq": moment}, 1.0, settings, 0, None),))
    signals = optimizer_signals(optimizer, {0: "w"}, {}, {"w": Statistics(1, 0, 1.0, 0.0, 0.0)})
    return {signal.name: signal.value for signal in signals}


def trained() -> Any:
    tensors = {"lin_key.weight": wide(0.0, 0.0), "lin_key.bias": wide(1.0)[0]}
    return was_trained(
        Checkpoint("x.pt", "torch", 10**6, {}), [StoredLayer(layer_named("TransformerConv"), "g", tensors)], []
    )


CASES: dict[str, tuple[Callable[[], Any], Any]] = {
    "NaN everywhere": (lambda: scanned(wide(math.nan)), (MANY, True)),
    "Inf beside weights": (lambda: scanned(wide(math.inf, 0.5)), (MANY // 2, False)),
    "NaN beside what nobody wrote": (lambda: scanned(wide(math.nan, 1e-40, 1.0, of=torch.bfloat16)), (MANY // 3, True)),
    "a mask": (lambda: scanned(wide(0.0, -math.inf), "attn_mask"), (None, False)),
    "finite": (lambda: finite(wide(1.0, 2.0)), True),
    "not finite": (lambda: finite(wide(1.0, math.inf)), False),
    "a second moment": (
        moments,
        {
            "optimizer.gradient_rms": pytest.approx(0.02, rel=1e-2),
            "optimizer.below_eps_share": 0.5,
            "optimizer.lr_to_rms": pytest.approx(0.1),
            "optimizer.never_updated": 0.0,
        },
    ),
    "a bias that moved": (trained, (True, "g.lin_key.bias left the range of its initialisation")),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_repeated_costs_nothing(name: str) -> None:
    judge, expected = CASES[name]

    def limited() -> Any:
        with open("/proc/self/statm") as stream:
            now = int(stream.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, now + ROOM))
        return judge()

    assert Child(limited).result() == expected
