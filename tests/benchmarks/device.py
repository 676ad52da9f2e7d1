"""What the monitor does on a CUDA device: the marked tests, synchronisations, and what a step costs. Under five minutes.

    pip install -e . --no-deps                   # the package itself, beside the torch of the machine
    python tests/benchmarks/device.py            # on a machine with a CUDA device
    python tests/benchmarks/device.py --device cpu --quick   # its parts, where there is none

Printed are the outcome of ``pytest -m gpu``, the number of times that a step waits for the device (by the debug mode of
torch, unmonitored and monitored side by side), the ratios of `overhead.py` for three sizes of graph, and those of a
forward that was captured as a CUDA graph and is replayed under the monitor.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from overhead import SIZES, VARIANTS, Net, Runner, measure

SHOWN = ["unmonitored", "unmonitored again", "light, every step", "default schedule", "full, every step"]
SETTLED = 8
"""Steps before synchronisations are counted: the first ones allocate, and the first is one of the full tier."""


def synchronisations(variant: str, device: str, steps: int = 20) -> int:
    """How often ``steps`` steps of one variant wait for the device, as torch's debug mode warns of it."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        runner = Runner(variant, SIZES["small"], Path(folder), stack, device)
        for _ in range(SETTLED):
            runner.step()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            for _ in range(steps):
                runner.step()
            torch.cuda.set_sync_debug_mode("default")
        return sum("called a synchronizing" in str(warning.message) for warning in caught)


def captured(blocks: int, replays: int = 200) -> tuple[float, str]:
    """Ratio of a replayed graph's forward under the light tier to the same unmonitored, and what the monitor says of it."""
    times: dict[str, list[float]] = {"unmonitored": [], "light, every step": []}
    reasons: set[str] = set()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        replay: dict[str, Callable[[], None]] = {}
        for name in times:
            model = Net(SIZES["small"]).cuda().eval()
            optimizer = torch.optim.Adam(model.parameters())
            size = SIZES["small"]
            batch = (
                torch.randn(size.nodes, size.width, device="cuda"),
                torch.randint(0, size.nodes, (2, size.edges), device="cuda"),
                torch.rand(size.edges, 1, device="cuda"),
            )
            monitor = stack.enter_context(VARIANTS[name](model, optimizer, Path(folder) / f"{len(replay)}.gnnstab"))
            with torch.no_grad():
                side = torch.cuda.Stream()
                with torch.cuda.stream(side):
                    for _ in range(3):
                        model(*batch)
                torch.cuda.current_stream().wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                with warnings.catch_warnings(), torch.cuda.graph(graph):
                    warnings.simplefilter("ignore")
                    model(*batch)
            replay[name] = graph.replay
            if monitor is not None:
                reasons.update(blind.reason for blind in monitor.coverage.blind)
        for turn in range(blocks):
            for name in sorted(times, reverse=bool(turn % 2)):
                torch.cuda.synchronize()
                begin = time.perf_counter()
                for _ in range(replays):
                    replay[name]()
                torch.cuda.synchronize()
                times[name].append(time.perf_counter() - begin)
    plain, light = (min(own) for own in times.values())
    return light / plain, "; ".join(sorted(reasons))


def main() -> int:
    """Run the tests, measure and print; the exit code is that of the tests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="few rounds, for a look at whether it runs")
    arguments = parser.parse_args()
    on_card = arguments.device == "cuda"
    if on_card and not torch.cuda.is_available():
        parser.error("no CUDA device is at hand; --device cpu runs the parts that need none")
    torch.set_num_threads(1)
    card = torch.cuda.get_device_name() if on_card else "CPU"
    print(f"{card}, torch {torch.__version__}, {datetime.date.today()}", flush=True)
    code = 0
    if on_card:
        tests = Path(__file__).resolve().parent.parent
        # Only their files: others may import what is not installed beside the driver.
        marked = [str(file) for file in sorted(tests.rglob("test_*.py")) if "mark.gpu" in file.read_text()]
        code = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", *marked]).returncode
        for name in SHOWN[:1] + SHOWN[2:4]:
            print(f"synchronisations in 20 steps, {name}: {synchronisations(name, 'cuda')}", flush=True)
    print("\n| size | light, every step | default schedule | full, every step | unmonitored twice |")
    print("| --- | --- | --- | --- | --- |")
    for label in ("small", "many", "large"):
        size = SIZES[label]
        rounds = 3 if arguments.quick else max(10, size.rounds // 3)
        found = measure(size, rounds, SHOWN, arguments.device)
        ratios = [f"{found[name].median:.2f} ({found[name].fastest_ratio:.2f})" for name in [*SHOWN[2:], SHOWN[1]]]
        print(f"| {label} ({1e3 * found['unmonitored'].fastest:.2f} ms) | {' | '.join(ratios)} |", flush=True)
    if on_card:
        ratio, reasons = captured(3 if arguments.quick else 20)
        print(f"\ncaptured graph, replayed under the light tier: {ratio:.3f} of unmonitored; not seen: {reasons}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
