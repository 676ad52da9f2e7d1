"""Feed damaged files to every reader for as long as you like.

    python tests/benchmarks/fuzz.py [--minutes 5] [--reader NAME]... [--seed N] [--keep DIR] [--log FILE]

Every run is a slice that adds one line to the log, and begins with seeds that no earlier slice of the log has used.

An input is a fault when a reader raises anything else than one clear line, takes longer than ten seconds of processor time
or two minutes of waiting, needs more memory than a small file may, takes the interpreter down, touches a file outside the
folder of the input, leaves one behind, or has code loaded or another program started. Inputs with faults are kept; the exit
code is 1 when there was one.

Inputs are read in rounds, each in a process whose death is noticed. In most rounds the readers make no child of their own,
as on a platform without fork: then their rules alone must hold. Every twentieth round is read as on Linux, with the child; an
input of which only the child knows that it is too much is a fault as well.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import damage
import readers
from gnnstab.errors import GnnstabError
from gnnstab.unpickling import guard
from pages import VICTIM

SECONDS, WAITING = 10, 120
"""Processor time of one input, and the time until it is over; on a busy machine only the first says anything."""

MEMORY = 768 * 2**20
"""Bytes that reading may add to the process."""

ROUND, GUARDED = 300, 20
"""Inputs of one process; every how many-th round readers make children of their own, for a tenth of the inputs."""

HELD = ("more memory than", "to look through", "brings down")
"""Parts of the lines with which the last line of defence answers: no input of a few kilobytes should come so far."""

FORBIDDEN = frozenset(
    [
        "pickle.find_class",
        "os.system",
        "os.exec",
        "os.spawn",
        "os.posix_spawn",
        "subprocess.Popen",
        "socket.connect",
        "socket.bind",
    ]
)
"""Events of Python's audit that reading a file never causes."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

CHANGES = frozenset(
    f"os.{name}"
    for name in [
        "remove",
        "rename",
        "mkdir",
        "rmdir",
        "link",
        "symlink",
        "truncate",
        "chmod",
        "chown",
        "utime",
        "mkfifo",
    ]
)

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


def edits(rng: random.Random) -> list[damage.Edit]:
    """A few edits, mostly small ones."""
    found = []
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 8))):
        new = rng.choice(INTERESTING) if rng.random() < 0.4 else rng.randbytes(rng.randint(1, 12))
        found.append((rng.random(), rng.choice(damage.EDITS), new))
    return found


class Watched:
    """A folder outside which nothing may be changed while an input is read."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.active = f"{folder.resolve()}/", False
        self.victim = folder / VICTIM
        self.victim.write_text("three years of work")
        sys.addaudithook(self._audit)

    def _state(self) -> tuple[set[str], tuple[int, ...]]:
        found = self.victim.stat() if self.victim.exists() else None
        return set(os.listdir(self.folder)), (found.st_size, found.st_mtime_ns) if found else ()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Raises `AssertionError` for whatever was done elsewhere, or left behind."""
        before, self.active = self._state(), True
        try:
            yield
        finally:
            self.active = False
        assert self._state() == before, "a file outside the folder of the input was changed or left behind"

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in FORBIDDEN:
            raise Forbidden(f"{event} {arguments!r:.100}")
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if event in ("os.remove", "os.rmdir") and arguments[1] != -1:
            return  # Within a folder that is open already, as `shutil.rmtree` removes what it has looked at.
        if not writes and event not in CHANGES:
            return
        for path in arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]:
            inside = isinstance(path, int) or os.path.realpath(os.fsdecode(path)).startswith(self.folder)
            if not inside and path != os.devnull:
                raise Forbidden(f"{event} {path!r:.100}")


class Forbidden(BaseException):
    """Raised out of a reader that does what no reader may; no handler may swallow it."""


def one(reader: readers.Reader, rng: random.Random, watched: Watched, current: Path) -> str:
    """Make one input, keep it where a crash leaves it, read it; ``untried`` when it could not be made."""
    folder = Path(watched.folder) / "input"
    seed = rng.choice(sorted(reader.seeds()))
    try:
        content = readers.damaged(reader, seed, rng.randrange(len(reader.damage)), edits(rng), folder.parent)
    except (MemoryError, ValueError):
        return "untried"
    current.write_bytes(content)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAITING)
    try:
        with watched.reading():
            readers.attempt(reader, content, folder)
        return "read"
    except GnnstabError as error:
        if any(part in str(error) for part in HELD):
            raise AssertionError(f"only the last line of defence holds: {error}") from None
        return "refused"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def _limit_memory() -> None:
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY,) * 2)


def round_of(name: str, seed: int, scratch: Path, current: Path, tally: Path) -> None:
    """One process: many inputs; every outcome is a line of ``tally``."""
    _limit_memory()
    torch.set_num_threads(1)
    tempfile.tempdir = str(scratch)
    count = ROUND
    if seed % GUARDED:
        guard.available = lambda: False
    else:
        count //= 10

    def late(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"more than {SECONDS} s of work or {WAITING} s of waiting")

    signal.signal(signal.SIGPROF, late)
    signal.signal(signal.SIGALRM, late)
    rng, reader = random.Random(seed), readers.READERS[name]
    watched = Watched(scratch)
    with tally.open("a") as lines:
        for _ in range(count):
            begun = time.process_time()
            try:
                outcome = one(reader, rng, watched, current)
            except BaseException as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                outcome = (
                    f"fault {type(error).__name__} {Path(place.filename).name}:{place.lineno} {str(error)[:120]!r}"
                )
                current.replace(current.with_name(f"{seed}-{time.monotonic_ns()}-{reader.name}"))
            print(f"{time.process_time() - begun:.3f} {outcome}", file=lines, flush=True)


def child(name: str, seed: int, kept: Path) -> tuple[list[tuple[float, str]], str]:
    """Run a round in a process of its own; its outcomes, and how it ended when it did not end by itself."""
    readers.READERS[name].seeds(), readers.READERS[name].companions()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as outer:
        scratch, current, tally = Path(outer) / "scratch", Path(outer) / "current", Path(outer) / "tally"
        (scratch / "input").mkdir(parents=True)
        pid = os.fork()
        if pid == 0:
            try:
                round_of(name, seed, scratch, current, tally)
            finally:
                os._exit(0)
        status = os.waitpid(pid, 0)[1]
        lines = tally.read_text().splitlines() if tally.exists() else []
        ended = ""
        if os.WIFSIGNALED(status):
            ended = f"fault: the interpreter died of signal {os.WTERMSIG(status)}"
        for input in Path(outer).glob("current" if ended else "[0-9]*"):
            shutil.move(input, kept / (f"crash-{seed}-{readers.READERS[name].name}" if ended else input.name))
    parts = [line.split(" ", 1) for line in lines]
    return [(float(seconds), outcome) for seconds, outcome in parts], ended


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--reader", action="append", choices=sorted(readers.READERS))
    parser.add_argument(
        "--seed", type=int, help="number of the first round; by default the first that the log has not used"
    )
    parser.add_argument("--log", type=Path, default=Path(__file__).with_name("fuzz-log.jsonl"))
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz-faults")
    options = parser.parse_args()
    options.keep.mkdir(exist_ok=True)
    names = options.reader or sorted(readers.READERS)
    tried: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in names}
    slowest = dict.fromkeys(names, 0.0)
    begun = time.monotonic()
    until, seed = begun + 60 * options.minutes, next_seed(options.log) if options.seed is None else options.seed
    guarded = 0
    while time.monotonic() < until:
        for name in names:
            outcomes, ended = child(name, seed, options.keep)
            outcomes = [(seconds, outcome) for seconds, outcome in outcomes if outcome != "untried"]
            tried[name].update(outcome for _, outcome in outcomes)
            if ended:
                tried[name][ended] += 1
            guarded += 0 if seed % GUARDED else len(outcomes)
            slowest[name] = max([slowest[name], *(seconds for seconds, _ in outcomes)])
            seed += 1
            if time.monotonic() > until:
                break
    faults = tell(tried, slowest)
    with options.log.open("a") as log:
        print(json.dumps(line(tried, slowest, faults, guarded, seed, time.monotonic() - begun)), file=log)
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
    tried: dict[str, collections.Counter[str]],
    slowest: dict[str, float],
    faults: int,
    guarded: int,
    seed: int,
    seconds: float,
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
        "guarded": guarded,
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
