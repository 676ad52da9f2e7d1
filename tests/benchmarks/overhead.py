"""What the monitor costs: ratio of a monitored to an unmonitored training step, next to its peers.

    python tests/benchmarks/overhead.py [--quick] [--threads 1] [--only small,many] [--variants light,budget] [--memory]

All variants train copies of one network on the same batch and take turns within one process, block by block, so that
what else the machine does reaches all of them alike. Printed are the median over the rounds of the ratio to the
unmonitored block beside it, and the ratio of the fastest blocks, which a busy machine disturbs least. The trace goes to
disk. Goals for the light tier at every step: 1.10 / 1.05 / 1.02 for a small graph / many small graphs / a large graph;
for the default schedule and a budget of 0.02: 1.02. Those two are timed after the 100 steps that they begin with, and
the ratio of the sums is what they promise: most steps are left out, a few are recorded. Peers that are not installed
are left out, and named.

Instructions, which no other process disturbs, are the difference of two runs of different length:

    perf stat -e instructions:u python tests/benchmarks/overhead.py --alone "light, every step" 500
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, HeteroConv, TransformerConv

import gnnstab
from gnnstab.probe.buffering.stats_buffer import StatsBuffer

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
    layer: type[nn.Module] = TransformerConv


SIZES = {
    "small": Size(32, 256, 16, 3, 10, 60, {"out_channels": 16, "heads": 3, "concat": False}),
    "gat": Size(32, 256, 16, 3, 10, 60, {"out_channels": 16, "heads": 3, "concat": False}, GATConv),
    "many": Size(128 * 14, 128 * 14 * 6, 16, 3, 3, 40, {"out_channels": 16, "heads": 3, "concat": False}),
    "large": Size(5000, 50_000, 256, 3, 1, 8, {"out_channels": 64, "heads": 4}),
    "deep": Size(256, 2048, 32, 32, 1, 30, {"out_channels": 32, "heads": 1}),
    "hetero": Size(64, 512, 16, 2, 5, 40, {"out_channels": 16, "heads": 2, "concat": False}),
}

SETTLED = 130
"""Steps before anything is timed: more than the default schedule records in any case."""


class Net(nn.Module):
    """Layers of attention with edge features and a ReLU after each."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.convs = nn.ModuleList([size.layer(size.width, edge_dim=1, **size.options) for _ in range(size.layers)])

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x, edge_index, edge_attr).relu()
        return x


RELATIONS = (("a", "to", "b"), ("b", "to", "a"), ("a", "with", "a"))


class HeteroNet(nn.Module):
    """Two layers of one TransformerConv per relation between two kinds of nodes."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            HeteroConv({r: TransformerConv(size.width, edge_dim=1, **size.options) for r in RELATIONS})
            for _ in range(size.layers)
        )

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        nodes = {"a": x, "b": x}
        edges, values = dict.fromkeys(RELATIONS, edge_index), dict.fromkeys(RELATIONS, edge_attr)
        for layer in self.layers:
            nodes = {kind: h.relu() for kind, h in layer(nodes, edges, edge_attr_dict=values).items()}
        return torch.cat([nodes["a"], nodes["b"]])


@contextmanager
def wandb_watch(model: nn.Module, folder: Path) -> Iterator[None]:
    """``wandb.watch`` of gradients and parameters every 100 steps, its default, in an offline run that logs every step."""
    import wandb

    with wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True)) as run:
        run.watch(model, log="all")
        yield
        run.unwatch(model)


@contextmanager
def underflow_overflow(model: nn.Module) -> Iterator[None]:
    """Hugging Face's DebugUnderflowOverflow: extremes of every input, output and weight of every module."""
    from transformers.debug_utils import DebugUnderflowOverflow

    DebugUnderflowOverflow(model)
    yield


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
    "left out, every step": monitored(budget=1e-9),
    "full, every step": monitored(schedule=1),
    "naive hooks": lambda model, optimizer, path: naive_hooks(model),
    "detect_anomaly": lambda model, optimizer, path: nullcontext(),
    "wandb.watch": lambda model, optimizer, path: wandb_watch(model, path.parent),
    "DebugUnderflowOverflow": lambda model, optimizer, path: underflow_overflow(model),
}

ADAPTING = ("default schedule", "budget 0.02", "left out, every step")
"""Variants that record more at first than later on."""

EXTRAS = {"wandb.watch": "wandb", "DebugUnderflowOverflow": "transformers"}
"""Variants that need a package which is no part of the project's own extras for tests."""


class Runner:
    """One variant with a network of its own."""

    def __init__(self, name: str, size: Size, folder: Path, stack: ExitStack, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self._anomaly = name == "detect_anomaly"
        self._size = size
        self._model = (HeteroNet(size) if size is SIZES["hetero"] else Net(size)).to(device)
        self._wait: Callable[[], object] = torch.cuda.synchronize if device == "cuda" else lambda: None
        host = (
            torch.randn(size.nodes, size.width),
            torch.randint(0, size.nodes, (2, size.edges)),
            torch.rand(size.edges, 1),
        )
        self._batch = tuple(tensor.to(device) for tensor in host)
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=1e-4)
        stack.enter_context(VARIANTS[name](self._model, self._optimizer, folder / f"{name.replace(' ', '-')}.gnnstab"))

    def step(self) -> None:
        """One step of training."""
        self._optimizer.zero_grad()
        self._model(*self._batch).square().mean().backward()
        self._optimizer.step()

    def block(self) -> float:
        """Seconds per step of one block; a device is waited for before and after it, not within."""
        self._wait()
        begin = time.perf_counter()
        with torch.autograd.set_detect_anomaly(self._anomaly, check_nan=True):
            for _ in range(self._size.block):
                self.step()
        self._wait()
        return (time.perf_counter() - begin) / self._size.block


@dataclass(frozen=True)
class Figures:
    """What one variant took; ratios are to the unmonitored blocks of the same rounds."""

    fastest: float
    """Seconds per step of the fastest block."""

    median: float
    low: float
    high: float
    """Median and quartiles of the ratios."""

    fastest_ratio: float
    sums: float
    """Ratio of all time spent."""


def measure(size: Size, rounds: int, variants: list[str], device: str = "cpu") -> dict[str, Figures]:
    """Variant → figures."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        runners = {name: Runner(name, size, Path(folder), stack, device) for name in variants}
        for name, runner in runners.items():
            for _ in range(SETTLED if name in ADAPTING else 3):
                runner.step()
        names = list(runners)
        for turn in range(rounds):
            # The order changes from round to round: nobody always runs after the most expensive one.
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                times[name].append(runners[name].block())
    plain = times["unmonitored"]
    return {name: _figures(own, plain) for name, own in times.items()}


def alone(size: Size, variant: str, steps: int) -> None:
    """Nothing but steps of one variant, for a counter that looks from outside."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        runner = Runner(variant, size, Path(folder), stack)
        for _ in range(steps):
            runner.step()


def _figures(own: list[float], plain: list[float]) -> Figures:
    ratios = [o / p for o, p in zip(own, plain, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Figures(min(own), middle, low, high, min(own) / min(plain), sum(own) / sum(plain))


def memory(size: Size) -> tuple[int, int, int]:
    """Bytes of: activations that autograd keeps for the backward, the monitor's buffers, the monitor in a step.

    The buffers are all tensors and arrays that a recorder holds for good; the last number is what Python's own
    allocations of a whole recorded step peak at, beyond those of an unmonitored one.
    """
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        plain = Runner("unmonitored", size, Path(folder), stack)
        watched = Runner("light, every step", size, Path(folder), stack)
        for runner in (plain, watched):
            for _ in range(3):
                runner.step()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            plain.step()
        peaks = [_python_peak(runner) for runner in (plain, watched)]
    stage = StatsBuffer(lambda slot, reason: None)
    return sum(saved.values()), stage.nbytes, peaks[1] - peaks[0]


def _python_peak(runner: Runner) -> int:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        runner.step()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the rounds, and only the first two sizes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help=f"sizes, comma-separated: {', '.join(SIZES)}")
    parser.add_argument(
        "--variants", default="", help="parts of the names of variants, comma-separated; all when omitted"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--memory", action="store_true", help="print memory instead of time")
    parser.add_argument(
        "--alone", nargs=2, metavar=("VARIANT", "STEPS"), help="only run these steps, to be counted by perf stat"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.alone:
        alone(SIZES[arguments.only or "small"], arguments.alone[0], int(arguments.alone[1]))
        return
    chosen = arguments.only.split(",") if arguments.only else list(SIZES)[: 2 if arguments.quick else None]
    variants = _chosen([part for part in arguments.variants.split(",") if part])
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {arguments.device}")
    for label in chosen:
        size = SIZES[label]
        rounds = max(3, size.rounds // 4) if arguments.quick else size.rounds
        print(
            f"\n{label}: {size.nodes} nodes, {size.edges} edges, {size.layers} layers; {rounds} rounds of {size.block} steps"
        )
        if arguments.memory:
            kept, buffers, peak = memory(size)
            print(f"  kept for the backward {kept:,} B; the recorder's buffers {buffers:,} B; in a step {peak:,} B")
            continue
        print(f"  {'variant':<24}{'ms/step':>9}{'median ratio':>14}{'quartiles':>16}{'fastest':>9}{'sums':>8}")
        for name, f in measure(size, rounds, variants, arguments.device).items():
            quartiles = f"{f.low:.3f}–{f.high:.3f}"
            print(
                f"  {name:<24}{1e3 * f.fastest:>9.2f}{f.median:>14.3f}{quartiles:>16}{f.fastest_ratio:>9.3f}{f.sums:>8.3f}",
                flush=True,
            )


def _chosen(parts: list[str]) -> list[str]:
    """Variants whose name holds one of the parts, the unmonitored ones always."""
    wanted = [n for n in VARIANTS if not parts or "unmonitored" in n or any(part in n for part in parts)]
    missing = [name for name in wanted if name in EXTRAS and find_spec(EXTRAS[name]) is None]
    for name in missing:
        print(f"{name}: left out, {EXTRAS[name]} is not installed")
    return [name for name in wanted if name not in missing]


if __name__ == "__main__":
    main()
