"""The same training loop with and without a monitor, and what must not differ between the two."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.errors import GnnstabWarning
from gnnstab.monitor._ending import Ending
from gnnstab.probe.optimizer.optimizer_steps import Bench

WIDTH = 8


class Net(nn.Module):
    """Two attention layers with dropout, so that the random state matters, and a linear read-out."""

    def __init__(self, width: int = WIDTH, dropout: float = 0.1) -> None:
        super().__init__()
        self.first = TransformerConv(width, width, heads=2, concat=False, dropout=dropout)
        self.second = TransformerConv(width, width, heads=2, concat=False, beta=True)
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.out(self.second(torch.relu(self.first(x, edge_index)), edge_index))
        return out


def graph(seed: int = 0, nodes: int = 6, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    """Gaussian features (nodes, width) on a complete graph with self-loops."""
    generator = torch.Generator().manual_seed(seed)
    every = torch.arange(nodes)
    return torch.randn(nodes, width, generator=generator), torch.cartesian_prod(every, every).t().contiguous()


@dataclass
class Run:
    """One run of a loop; the loop asks it for the monitor and hands it everything that must be the same."""

    monitored: bool
    options: dict[str, Any]
    kept: list[Tensor | None] = field(default_factory=list)
    monitor: gnnstab.Monitor | None = None
    left: list[str] = field(default_factory=list)
    """Modules with hooks after the monitor has gone."""

    started: bool = False
    """Set by a loop when its monitor is there and the training begins."""
    warned: list[str] = field(default_factory=list)

    def keep(self, *tensors: Tensor | None) -> None:
        """Remember these tensors as they are now."""
        self.kept += [None if t is None else t.detach().clone() for t in tensors]

    def keep_gradients(self, model: nn.Module) -> None:
        """Remember all gradients of the model."""
        self.keep(*(p.grad for p in model.parameters()))

    @contextlib.contextmanager
    def watching(self, model: nn.Module, **options: Any) -> Iterator[gnnstab.Monitor | None]:
        """A monitor around the block, in the monitored run only."""
        if not self.monitored:
            yield None
            return
        self.monitor = gnnstab.Monitor(model, **{**self.options, **options})
        with self.monitor:
            yield self.monitor
        self.left = hooks_of(model)


Loop = Callable[[Run], None]


def run(loop: Loop, this: Run) -> Run:
    """Run the loop from a fixed random state."""
    torch.manual_seed(20261123)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop(this)
    this.warned = [str(w.message) for w in caught if issubclass(w.category, GnnstabWarning)]
    this.keep(torch.get_rng_state())
    return this


@contextlib.contextmanager
def brief_trials(most: int = 2) -> Iterator[None]:
    """Each trial on a copy takes no more than so many steps: for runs of whose trials nothing but their traces in the training is asked."""
    whole = Bench._run

    def few(bench: Bench, model: Any, optimizer: Any, steps: int, *rest: Any) -> Any:
        return whole(bench, model, optimizer, min(steps, most), *rest)

    with patch.object(Bench, "_run", few):
        yield


@contextlib.contextmanager
def without_trials() -> Iterator[None]:
    """Nothing is trained on copies when a run has ended: for runs of which only what was recorded is asked."""
    with (
        patch.object(Ending, "_try_steps", lambda *args: None),
        patch.object(Ending, "_try_rates", lambda *args: False),
    ):
        yield


def unnoticed(loop: Loop, **options: Any) -> Run:
    """Run the loop alone and monitored; everything that it keeps must be the same, bit for bit."""
    plain = run(loop, Run(False, {}))
    with brief_trials():
        watched = run(loop, Run(True, {"schedule": 3, **options}))
    assert watched.left == [], "the monitor left hooks behind"
    assert len(plain.kept) == len(watched.kept) > 1
    for number, (one, other) in enumerate(zip(plain.kept, watched.kept, strict=True)):
        assert identical(one, other), f"tensor {number} of {len(plain.kept)} differs"
    assert watched.monitor is not None
    return watched


def identical(one: Tensor | None, other: Tensor | None) -> bool:
    """Same dtype, shape and bits."""
    if one is None or other is None:
        return one is other
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.contiguous().view(torch.uint8).equal(other.contiguous().view(torch.uint8))
        if one.dim()
        else one.dtype == other.dtype and identical(one.reshape(1), other.reshape(1))
    )


def hooks_of(model: nn.Module) -> list[str]:
    """Names of modules with hooks or with an attribute of an instance that stands before a method of its class."""
    found = []
    for name, module in model.named_modules():
        hooked = any(
            vars(module).get(kind)
            for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        )
        scripted = isinstance(module, torch.jit.ScriptModule)  # It keeps its methods so.
        if hooked or (not scripted and any(callable(getattr(type(module), key, None)) for key in vars(module))):
            found.append(name or type(module).__name__)
    return found


def codes(monitor: gnnstab.Monitor, least: str = "warning") -> list[str]:
    """Codes of the findings at or above a severity."""
    order = ("info", "warning", "error")
    return [f.code for f in monitor.diagnose().findings if order.index(f.severity) >= order.index(least)]
