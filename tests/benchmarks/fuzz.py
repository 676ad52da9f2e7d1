"""Feed damaged files to every reader for as long as you like.

    python tests/benchmarks/fuzz.py [--minutes 5] [--reader NAME]... [--seed N] [--keep DIR] [--log FILE]

Every run is a slice that adds one line to the log, and begins with seeds that no earlier slice of the log has used.

An input is a fault when a reader raises anything else than one clear line, takes longer than ten seconds of processor time
or two minutes of waiting, needs more than three GiB, or takes the interpreter down. Inputs with faults are kept; the exit code is 1 when there was one.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import readers

SECONDS, WAITING = 10, 120
"""Processor time of one input, and the time until it is over; on a busy machine only the first says anything."""

GIBIBYTES = 3
ROUND = 100
"""Inputs of one child process."""

INTERESTING = (
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"\x7f" * 8,
    b"nan",
    b"1e999",
    b"-1",
    b"\n",
    b"]",
    b"{",
    b"R",
    b"b",
    b"u",
)


class TooLong(BaseException):
    """Raised out of a reader by the alarm; no handler of a reader may swallow it."""


def edits(rng: random.Random) -> list[readers.Edit]:
    """A few edits, mostly small ones."""
    found = []
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 8))):
        new = rng.choice(INTERESTING) if rng.random() < 0.4 else rng.randbytes(rng.randint(1, 12))
        found.append((rng.random(), rng.choice(readers.EDITS), new))
    return found


def one(reader: readers.Reader, rng: random.Random, folder: Path, current: Path) -> bool:
    """Make one input, keep it where a crash leaves it, read it."""
    seed = rng.choice(sorted(reader.seeds()))
    content = readers.damaged(reader, seed, rng.randrange(len(reader.damage)), edits(rng), folder.parent)
    current.write_bytes(content)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAITING)
    try:
        return readers.attempt(reader, content, folder)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def round_of(name: str, seed: int, folder: Path, current: Path, tally: Path) -> None:
    """One child: many inputs; every outcome is a line of ``tally``."""
    resource.setrlimit(resource.RLIMIT_DATA, (GIBIBYTES * 2**30,) * 2)
    torch.set_num_threads(1)

    def late(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"more than {SECONDS} s of work or {WAITING} s of waiting")

    signal.signal(signal.SIGPROF, late)
    signal.signal(signal.SIGALRM, late)
    rng, reader = random.Random(seed), readers.READERS[name]
    with tally.open("a") as lines:
        for _ in range(ROUND):
            begun = time.process_time()
            try:
                outcome = "read" if one(reader, rng, folder, current) else "refused"
            except BaseException as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                outcome = (
                    f"fault {type(error).__name__} {Path(place.filename).name}:{place.lineno} {str(error)[:120]!r}"
                )
                kept = current.with_name(f"{seed}-{time.monotonic_ns()}-{reader.name}")
                current.replace(kept)
            print(f"{time.process_time() - begun:.3f} {outcome}", file=lines, flush=True)


def child(name: str, seed: int, kept: Path) -> tuple[list[tuple[float, str]], str]:
    """Run a round in a process of its own; its outcomes, and how it ended when it did not end by itself."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, tally = Path(scratch) / "input", Path(scratch) / "tally"
        folder.mkdir()
        pid = os.fork()
        if pid == 0:
            try:
                round_of(name, seed, folder, kept / "current", tally)
            finally:
                os._exit(0)
        status = os.waitpid(pid, 0)[1]
        lines = tally.read_text().splitlines() if tally.exists() else []
    parts = [line.split(" ", 1) for line in lines]
    ended = ""
    if os.WIFSIGNALED(status):
        ended = f"fault: the interpreter died of signal {os.WTERMSIG(status)}"
        (kept / "current").replace(kept / f"crash-{seed}-{readers.READERS[name].name}")
    return [(float(seconds), outcome) for seconds, outcome in parts], ended


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--reader", action="append", choices=sorted(readers.READERS))
    parser.add_argument(
        "--seed", type=int, help="number of the first round; by default the first that the log has not used"
    )
    parser.add_argument("--log", type=Path, default=Path(__file__).with_name("fuzz-log.jsonl"))
    parser.add_argument("--keep", type=Path, default=Path("fuzz-faults"))
    options = parser.parse_args()
    options.keep.mkdir(exist_ok=True)
    names = options.reader or sorted(readers.READERS)
    tried: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in names}
    slowest = dict.fromkeys(names, 0.0)
    begun = time.monotonic()
    until, seed = begun + 60 * options.minutes, next_seed(options.log) if options.seed is None else options.seed
    while time.monotonic() < until:
        for name in names:
            outcomes, ended = child(name, seed, options.keep)
            tried[name].update(outcome for _, outcome in outcomes)
            if ended:
                tried[name][ended] += 1
            slowest[name] = max([slowest[name], *(seconds for seconds, _ in outcomes)])
            seed += 1
            if time.monotonic() > until:
                break
    (options.keep / "current").unlink(missing_ok=True)
    faults = tell(tried, slowest)
    with options.log.open("a") as log:
        print(json.dumps(line(tried, slowest, faults, seed, time.monotonic() - begun)), file=log)
    slices = [json.loads(text) for text in options.log.read_text().splitlines()]
    print(
        f"the log: {len(slices)} slices, {sum(s['inputs'] for s in slices)} inputs, {sum(s['faults'] for s in slices)} faults"
    )
    return bool(faults)


def next_seed(log: Path) -> int:
    """The first round that no slice of the log has used."""
    return (
        max([json.loads(text)["next_seed"] for text in log.read_text().splitlines()], default=0) if log.exists() else 0
    )


def line(
    tried: dict[str, collections.Counter[str]], slowest: dict[str, float], faults: int, seed: int, seconds: float
) -> dict[str, Any]:
    """One slice, as the log keeps it."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "torch": torch.__version__,
        "minutes": round(seconds / 60, 1),
        "next_seed": seed,
        "inputs": sum(sum(counts.values()) for counts in tried.values()),
        "read": sum(counts["read"] for counts in tried.values()),
        "faults": faults,
        "slowest": round(max(slowest.values()), 2),
        "readers": {name: sum(counts.values()) for name, counts in tried.items()},
    }


def tell(tried: dict[str, collections.Counter[str]], slowest: dict[str, float]) -> int:
    """Print the table; the number of faults."""
    faults = 0
    print(f"{'reader':<16}{'inputs':>9}{'read':>9}{'refused':>9}{'faults':>8}{'slowest s':>11}")
    for name, counts in tried.items():
        bad = {outcome: count for outcome, count in counts.items() if outcome.startswith("fault")}
        faults += sum(bad.values())
        print(
            f"{name:<16}{sum(counts.values()):>9}{counts['read']:>9}{counts['refused']:>9}{sum(bad.values()):>8}"
            f"{slowest[name]:>11.2f}"
        )
        for outcome, count in sorted(bad.items(), key=lambda item: -item[1]):
            print(f"    {count} x {outcome}")
    print(f"{sum(sum(counts.values()) for counts in tried.values())} inputs, {faults} faults")
    return faults


if __name__ == "__main__":
    sys.exit(main())
