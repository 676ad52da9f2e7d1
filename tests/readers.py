"""Every reader of files that strangers may have written, with files to begin from and ways to damage them.

A reader takes a path and goes all the way that the command line would go. It may refuse with one printable line
(`GnnstabError`); everything else that it raises, a warning too, and everything that takes too long, is a fault.
"""

from __future__ import annotations

import inspect
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch_geometric.nn import TransformerConv

import seeds
from damage import Edit, apply, in_archive, in_header, in_json, in_lines, in_tables, in_values
from gnnstab import baseline, config
from gnnstab.characters import is_hidden
from gnnstab.checkpoint import load, rebuild, recover
from gnnstab.config.validating import validate
from gnnstab.errors import GnnstabError
from gnnstab.evaluation import evaluate
from gnnstab.probe.batches.arguments import as_arguments, load_batch
from gnnstab.probe.replaying import bundle
from gnnstab.records import Signals, Target
from gnnstab.report import render
from gnnstab.signals import from_checkpoint, from_trace
from gnnstab.trace import Trace, TraceWriter
from gnnstab.verification._arms import ArmResult
from gnnstab.verification._sweep import sweep
from pages import in_journal, in_log, in_pages
from structure import in_directory, in_members, in_operations

LONGEST_LINE = 2001
"""Characters of an error's message."""

LAYER = TransformerConv(4, 4)
"""What a batch is for."""


def read_checkpoint(path: Path) -> None:
    """Load, recover, rebuild, judge, render."""
    checkpoint = load(path)
    facts = recover(checkpoint)
    rebuilt = rebuild(facts, checkpoint)
    bool(rebuilt)
    report(Target("checkpoint", str(path), tuple(checkpoint.notes)), from_checkpoint(facts), ("text", "json"))


def read_trace(path: Path) -> None:
    """Open, make signals, judge, render."""
    with Trace.open(path) as trace:
        signals = from_trace(trace)
    report(Target("trace", str(path)), signals, ("text", "json", "html"))


def read_beside_a_trace(path: Path) -> None:
    """Read the trace that this file is a companion of."""
    read_trace(path.with_name("run.gnnstab"))


def write_over_a_trace(path: Path) -> None:
    """Begin a run where the trace of another one, or its companions, are."""
    TraceWriter(path.with_name("run.gnnstab")).close()


def report(target: Target, signals: Signals, formats: tuple[str, ...]) -> None:
    """Judge and render in one of the formats, another one for every input; the text can be written and hides nothing."""
    diagnosis = evaluate(target, signals)
    format = formats[Path(target.path).stat().st_mtime_ns // 1000 % len(formats)]
    text = render(diagnosis, format)
    assert text.encode("utf-8"), format
    if format == "json":
        json.loads(text)
    unseen = {character for character in set(text) - {"\n"} if is_hidden(character)}
    assert not unseen, f"{format} hides {unseen!a:.60}"


def read_config(path: Path) -> None:
    """Read and hold against the rules."""
    validate(config.load(path.parent, file=path))


def read_batch(path: Path) -> None:
    """Load, and make the arguments of a forward."""
    as_arguments(load_batch(path), LAYER)


def read_bundle(path: Path) -> None:
    """Read what lies in the folder of the file."""
    bundle.read(path.parent)


def read_store(path: Path) -> None:
    """Go on with a verification of which a part is stored."""
    found = sweep({"a": ArmResult, "b": ArmResult}, ArmResult, store=path)
    assert all(type(result) is ArmResult for result in found.values())


@dataclass(frozen=True)
class Reader:
    """One kind of file."""

    name: str
    """File name of an input."""

    read: Callable[[Path], object]
    seeds: Callable[[], dict[str, bytes]]
    """Valid contents to begin from, by a word for each."""

    damage: tuple[Callable[..., bytes], ...] = (apply,)
    companions: Callable[[], dict[str, bytes]] = dict
    """Further files of the same folder, by name."""


_TORCH: tuple[Callable[..., bytes], ...] = (
    in_values,
    apply,
    in_archive,
    in_operations,
    in_operations,
    in_members,
    in_directory,
)
_TRACE: tuple[Callable[..., bytes], ...] = (in_tables, in_pages, in_pages, apply)


def _of_bundle(name: str) -> Reader:
    damage = _TORCH if name.endswith(".pt") else (in_json, apply)
    return Reader(name, read_bundle, lambda: {"bundle": seeds.bundle_files()[name]}, damage, seeds.bundle_files)


def _beside(
    end: str,
    of: Callable[[], dict[str, bytes]],
    *damage: Callable[..., bytes],
    read: Callable[[Path], object] = read_beside_a_trace,
) -> Reader:
    name = f"run.gnnstab{end}"
    return Reader(name, read, lambda: {"killed": of()[name]}, damage, of)


def _one(content: bytes) -> Callable[[], dict[str, bytes]]:
    return lambda: {"one": content}


READERS: dict[str, Reader] = {
    "checkpoint": Reader("model.pt", read_checkpoint, seeds.checkpoints, _TORCH),
    "safetensors": Reader("model.safetensors", read_checkpoint, seeds.safetensors, (in_header, apply)),
    "trace": Reader("run.gnnstab", read_trace, seeds.traces, _TRACE),
    "trace with journal": _beside("", seeds.interrupted, *_TRACE),
    "trace with log": _beside("", seeds.logged, *_TRACE),
    "trace journal": _beside("-journal", seeds.interrupted, in_journal, in_journal, apply),
    "trace log": _beside("-wal", seeds.logged, in_log, in_log, apply),
    "trace shared memory": _beside("-shm", seeds.logged, apply),
    "old trace": Reader("run.gnnstab", write_over_a_trace, seeds.traces, _TRACE),
    "old journal": _beside("-journal", seeds.interrupted, in_journal, apply, read=write_over_a_trace),
    "batch": Reader("batch.pt", read_batch, seeds.batches, _TORCH),
    "baseline": Reader("known.json", baseline.read, _one(seeds.BASELINE), (in_json, apply)),
    "store": Reader("arms.jsonl", read_store, _one(seeds.STORE), (in_lines, in_json, apply)),
    "pyproject": Reader("pyproject.toml", read_config, _one(seeds.TOML), (in_lines, apply)),
    "setup.cfg": Reader("setup.cfg", read_config, _one(seeds.INI), (in_lines, apply)),
    "bundle event": _of_bundle("event.json"),
    "bundle batch": _of_bundle("batch.pt"),
    "bundle rng": _of_bundle("rng.pt"),
    "bundle weights": _of_bundle("weights.pt"),
    "bundle layers": _of_bundle("layers.json"),
}
"""By name."""


def damaged(reader: Reader, seed: str, way: int, edits: list[Edit], scratch: Path) -> bytes:
    """One input; ``scratch`` is a folder for ways that need one."""
    content, how = reader.seeds()[seed], reader.damage[way % len(reader.damage)]
    if how in (in_archive, in_members, in_directory) and not content.startswith(b"PK"):
        how = in_operations
    if "scratch" in inspect.signature(how).parameters:
        how = partial(how, scratch=scratch)
    return how(content, edits)


def attempt(reader: Reader, content: bytes, folder: Path) -> None:
    """Read one input in an empty folder.

    Raises `GnnstabError` with one clear line when it is refused, as it should be; whatever else happens is raised, too.
    """
    for old in folder.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    for name, companion in reader.companions().items():
        (folder / name).write_bytes(companion)
    (folder / reader.name).write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reader.read(folder / reader.name)
    except GnnstabError as error:
        message = str(error)
        assert message.isprintable() and len(message) <= LONGEST_LINE, f"no clear line: {message!r}"
        raise
