"""The files that the documentation names, made from the network of the demonstration."""

from __future__ import annotations

import copy
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import MeanAggregation

from gnnstab import demo
from gnnstab.errors import UsageError
from gnnstab.layers import layer_of
from gnnstab.monitor import Monitor
from gnnstab.randomness import keeps_random_state

_HEAD = '''"""The network of the examples: `--model network:actor --loss network:policy_loss`."""

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import MeanAggregation, MessagePassing, TransformerConv


'''
_TAIL = "actor, steady, policy_loss = Swarm, SteadySwarm, loss\n"


class MeanEmbedding(demo.SumEmbedding):
    """The mean over the neighbours in place of their sum, and a term of the node itself."""

    def __init__(self) -> None:
        super().__init__()
        self.aggr_module = MeanAggregation()
        self.lin_root = nn.Linear(6, 16)

    def forward(self, x: Tensor, edge_index: Tensor, e: Tensor) -> Tensor:
        """(N, 6), (2, E), (E, 1) → (N, 16)."""
        return super().forward(x, edge_index, e) + self.lin_root(x)  # type: ignore[no-any-return]


class SteadySwarm(demo.Swarm):
    """The swarm with the change that gnnstab recommends for it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = MeanEmbedding()


def network() -> str:
    """The demonstration's network as a file of its own, which a change can be made in."""
    made = (demo.SumEmbedding, demo.Swarm, MeanEmbedding, SteadySwarm, demo.loss)
    source = "\n\n".join(inspect.getsource(part) for part in made)
    return _HEAD + re.sub(r"  # type: ignore.*", "", source).replace("(demo.", "(") + "\n\n" + _TAIL


FILES = ("network.py", "batch.pt", "fresh.pt", "steady.pt", "actor.pt", "crash.pt", "run.gnnstab")
"""What `write` makes, in this order."""

_SHARPENED, _BROKEN = 3.0, 3000.0
"""× the first layer's query weights: attention saturates on the batch, which the file alone does not show; its products pass the largest half-precision number."""


@keeps_random_state
def write(folder: Path, say: Callable[[str], None]) -> tuple[Path, ...]:
    """Write the files into a folder that exists; ``say`` is told what is done.

    ``fresh.pt`` is an untrained network, in ``actor.pt`` attention saturates on this batch, in ``crash.pt`` the scores overflow in fp16,
    ``run.gnnstab`` is a short healthy run of the network with the recommended change, and ``steady.pt`` holds its weights.

    Raises `UsageError`, before it writes anything, when one of them is there already.
    """
    there = [name for name in FILES if os.path.lexists(folder / name)]
    if there:
        raise UsageError(f"{folder}: {', '.join(there)} is there already and stays as it is; name an empty folder")
    torch.manual_seed(0)
    model, batch = demo.Swarm(), demo.swarm_graphs()
    with (folder / "network.py").open("x", encoding="utf-8") as file:
        file.write(network())
    _save(batch, folder / "batch.pt")
    say("training a few steps under gnnstab.Monitor")
    steady = SteadySwarm()
    _record(steady, batch, folder / "run.gnnstab")
    _save(steady.state_dict(), folder / "steady.pt")
    with torch.no_grad():
        for name, factor in (("fresh.pt", 1.0), ("actor.pt", _SHARPENED), ("crash.pt", _BROKEN)):
            changed = copy.deepcopy(model)
            first: Any = changed.convs[0]
            adapter = layer_of(first)
            assert adapter is not None
            adapter.scale_scores(first, [factor] * first.heads)
            _save(changed.state_dict(), folder / name)
    return tuple(folder / name for name in FILES)


def _save(content: Any, path: Path) -> None:
    """Into a new file; no link is followed."""
    with path.open("xb") as stream:
        torch.save(content, stream)


def _record(model: nn.Module, batch: Data, trace: Path) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Monitor(model, optimizer=optimizer, trace=trace, on_finding="ignore") as monitor:
        for _ in range(20):
            optimizer.zero_grad()
            value = demo.loss(model(batch.x, batch.edge_index, batch.edge_attr), batch)
            value.backward()  # type: ignore[no-untyped-call]
            monitor.loss(value)
            optimizer.step()
