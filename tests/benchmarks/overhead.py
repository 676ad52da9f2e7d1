"""What the monitor costs: ratio of a monitored to an unmonitored training step, next to its peers.

    python tests/benchmarks/overhead.py [--quick] [--threads 1] [--only small,many]

All variants train copies of one network on the same batch and take turns within one process, block by block, so that
what else the machine does reaches all of them alike. Printed are the median over the rounds of the ratio to the
unmonitored block beside it, and the ratio of the fastest blocks, which a busy machine disturbs least. The trace goes to
disk. Goals for the light tier at every step: 1.10 / 1.05 / 1.02 for a small graph / many small graphs / a large graph.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

import gnnstab

NEVER = 1_000_000_000
"""A full-tier interval that no benchmark reaches: after the first step only the light tier runs."""


@dataclass(frozen=True)
class Size:
    """One network on one batch."""

    nodes: int
    edges: int
    width: int
    layers: int
    block: int
    """Steps timed together."""

    rounds: int
    options: dict[str, Any]


SIZES = {
    "small": Size(32, 256, 16, 3, 10, 60, {"out_channels": 16, "heads": 3, "concat": False}),
    "many": Size(128 * 14, 128 * 14 * 6, 16, 3, 3, 40, {"out_channels": 16, "heads": 3, "concat": False}),
    "large": Size(5000, 50_000, 256, 3, 1, 8, {"out_channels": 64, "heads": 4}),
    "deep": Size(256, 2048, 32, 32, 1, 30, {"out_channels": 32, "heads": 1}),
}


class Net(nn.Module):
    """TransformerConvs with edge features and a ReLU after each."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [TransformerConv(size.width, edge_dim=1, **size.options) for _ in range(size.layers)]
        )

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x, edge_index, edge_attr).relu()
        return x


@contextmanager
def naive_hooks(model: nn.Module) -> Iterator[None]:
    """What people write: six statistics of every output, each fetched with ``.item()``."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        values = output.detach()
        for number in (values.abs().max(), values.norm(), values.mean(), values.std()):
            number.item()
        bool(values.isnan().any()), bool(values.isinf().any())

    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, TransformerConv)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


Around = Callable[[nn.Module, torch.optim.Optimizer, Path], AbstractContextManager[Any]]


def monitored(**options: Any) -> Around:
    """The monitor with these options, its trace on disk."""

    def around(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> AbstractContextManager[Any]:
        return gnnstab.Monitor(model, optimizer=optimizer, trace=path, **options)

    return around


VARIANTS: dict[str, Around] = {
    "unmonitored": lambda model, optimizer, path: nullcontext(),
    "unmonitored again": lambda model, optimizer, path: nullcontext(),
    "light, every step": monitored(schedule=NEVER),
    "default schedule": monitored(),
    "budget 0.02": monitored(budget=0.02),
    "full, every step": monitored(schedule=1),
    "naive hooks": lambda model, optimizer, path: naive_hooks(model),
    "detect_anomaly": lambda model, optimizer, path: nullcontext(),
}


class Runner:
    """One variant with a network of its own."""

    def __init__(self, name: str, size: Size, folder: Path, stack: ExitStack) -> None:
        torch.manual_seed(0)
        self._anomaly = name == "detect_anomaly"
        self._size = size
        self._model = Net(size)
        self._batch = (
            torch.randn(size.nodes, size.width),
            torch.randint(0, size.nodes, (2, size.edges)),
            torch.rand(size.edges, 1),
        )
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=1e-4)
        stack.enter_context(VARIANTS[name](self._model, self._optimizer, folder / f"{name.replace(' ', '-')}.gnnstab"))

    def block(self) -> float:
        """Seconds per step of one block."""
        begin = time.perf_counter()
        with torch.autograd.set_detect_anomaly(self._anomaly, check_nan=True):
            for _ in range(self._size.block):
                self._optimizer.zero_grad()
                self._model(*self._batch).square().mean().backward()
                self._optimizer.step()
        return (time.perf_counter() - begin) / self._size.block


def measure(size: Size, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Variant → seconds per step of its fastest block, median ratio, ratio of the fastest blocks."""
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        runners = {name: Runner(name, size, Path(folder), stack) for name in VARIANTS}
        for runner in runners.values():
            runner.block()
        names = list(runners)
        for turn in range(rounds):
            # The order changes from round to round: nobody always runs after the most expensive one.
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                times[name].append(runners[name].block())
    plain = times["unmonitored"]
    return {
        name: (min(own), statistics.median(o / p for o, p in zip(own, plain, strict=True)), min(own) / min(plain))
        for name, own in times.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the rounds, and only the first two sizes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help=f"sizes, comma-separated: {', '.join(SIZES)}")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chosen = arguments.only.split(",") if arguments.only else list(SIZES)[: 2 if arguments.quick else None]
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), CPU")
    for label in chosen:
        size = SIZES[label]
        rounds = max(3, size.rounds // 4) if arguments.quick else size.rounds
        print(
            f"\n{label}: {size.nodes} nodes, {size.edges} edges, {size.layers} layers; {rounds} rounds of {size.block} steps"
        )
        print(f"  {'variant':<20}{'ms/step':>10}{'median ratio':>15}{'fastest ratio':>15}")
        for name, (fastest, median, ratio) in measure(size, rounds).items():
            print(f"  {name:<20}{1e3 * fastest:>10.2f}{median:>15.3f}{ratio:>15.3f}")


if __name__ == "__main__":
    main()
