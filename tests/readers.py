"""Every reader of files that strangers may have written, with files to begin from and ways to damage them.

A reader takes a path and goes all the way that the command line would go. It may refuse with one printable line
(`GnnstabError`); everything else that it raises, a warning too, and everything that takes too long, is a fault.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import sqlite3
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.nn import TransformerConv

from gnnstab import baseline, config
from gnnstab.checkpoint import load, rebuild, recover
from gnnstab.config.validating import validate
from gnnstab.errors import GnnstabError
from gnnstab.evaluation import evaluate
from gnnstab.probe.batches.arguments import as_arguments, load_batch
from gnnstab.probe.replaying import bundle
from gnnstab.records import Blind, Event, LayerFacts, Measure, SeriesKey, Signals, StepRow, Target
from gnnstab.report import render
from gnnstab.signals import from_checkpoint, from_trace
from gnnstab.trace import Trace, TraceWriter
from strangers import rewritten
from structure import in_members, in_operations

Edit = tuple[float, str, bytes]
"""Where (0 … 1 of the content), what (one of `EDITS`), with what."""

EDITS = ("overwrite", "insert", "delete", "repeat", "truncate", "zero")

LONGEST_LINE = 2001
"""Characters of an error's message."""


def apply(content: bytes, edits: list[Edit]) -> bytes:
    """The content after these edits."""
    data = bytearray(content)
    for place, what, new in edits:
        at = min(int(place * len(data)), max(len(data) - 1, 0))
        if what == "overwrite":
            data[at : at + len(new)] = new
        elif what == "insert":
            data[at:at] = new
        elif what == "delete":
            del data[at : at + 1 + len(new)]
        elif what == "repeat":
            data[at:at] = data[at : at + 64] * (1 + len(new))
        elif what == "truncate":
            del data[at:]
        else:
            data[at : at + 16] = bytes(len(data[at : at + 16]))
    return bytes(data)


def in_archive(content: bytes, edits: list[Edit]) -> bytes:
    """Edits of the pickle inside a torch archive, packed again with right lengths and checksums."""
    return rewritten(content, lambda name, data: apply(data, edits) if name.endswith("data.pkl") else data)


def in_json(content: bytes, edits: list[Edit]) -> bytes:
    """Edits of the values of a JSON document; bytes that are none are edited as such."""
    try:
        document = json.loads(content)
    except ValueError:
        return apply(content, edits)
    for place, what, new in edits:
        document = _edit_value(document, place, what, random.Random(repr((place, new))))
    return json.dumps(document).encode()


def in_header(content: bytes, edits: list[Edit]) -> bytes:
    """Edits of the JSON header of a safetensors file, with its right length."""
    size = int.from_bytes(content[:8], "little")
    header = in_json(content[8 : 8 + size], edits)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def in_values(content: bytes, edits: list[Edit]) -> bytes:
    """Edits of what a torch file holds: other tensors, other names, other nesting; saved as torch saves."""
    value = torch.load(io.BytesIO(content), weights_only=False)
    for place, what, new in edits:
        value = _edit_value(value, place, what, random.Random(repr((place, new))))
    return _saved(value)


def _edit_value(value: Any, place: float, what: str, rng: random.Random) -> Any:
    """One place somewhere inside changed."""
    if isinstance(value, Data):
        inside = _edit_value(value.to_dict(), place, what, rng)
        return (
            Data.from_dict(inside) if isinstance(inside, dict) and all(isinstance(k, str) for k in inside) else inside
        )
    if not isinstance(value, (dict, list, tuple)) or not value or rng.random() < 0.02:
        return _odd(value, rng)
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    at = int(place * len(items)) % len(items)
    key, child = items[at]
    if what == "delete":
        del items[at]
    elif what == "insert":
        items.insert(at, (rng.choice((key, "gnn1.lin_key.weight", "x\x1b[0m\n", "", "a." * 50)), _odd(child, rng)))
    elif what == "repeat":
        items[at] = (key, [child] * 3 if rng.random() < 0.5 else {"again": child})
    elif what == "truncate":
        items = items[:at]
    else:
        items[at] = (key, _edit_value(child, rng.random(), what, rng))
    if isinstance(value, dict):
        return dict(items)
    return type(value)(child for _, child in items)


def _odd(value: Any, rng: random.Random) -> Any:
    """Something else in the place of a value."""
    if isinstance(value, torch.Tensor):
        return _odd_tensor(value, rng)
    plain = [v for v in VALUES if not isinstance(v, bytes)]
    return rng.choice([*plain, [value], {"value": value}, [], {}, True, "error", "warning", "1"])


def _odd_tensor(tensor: torch.Tensor, rng: random.Random) -> Any:
    made: list[Callable[[], Any]] = [
        lambda: torch.zeros(0),
        lambda: torch.tensor(float("nan")),
        lambda: torch.full_like(tensor, rng.choice((0, 1, 127))),
        lambda: tensor.float() * rng.choice((1e38, 1e-45, float("inf"), float("nan"), -1e6)),
        lambda: tensor.double() * 1e300,
        lambda: tensor.to(rng.choice((torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.complex64))),
        lambda: tensor.reshape(-1),
        lambda: tensor.reshape(*tensor.shape, 1, 1),
        lambda: tensor.t() if tensor.dim() == 2 else tensor[..., :1] if tensor.dim() else tensor,
        lambda: tensor[:1].expand(1000, *tensor.shape[1:]) if tensor.dim() else tensor,
        lambda: torch.cat([tensor.reshape(-1)] * 3),
        lambda: tensor.reshape(-1).to_sparse(),
        lambda: tensor.to("meta"),
        lambda: torch.nn.Parameter(tensor.float()),
        lambda: torch.tensor([[-1, 99], [5, -(2**40)]]),
        lambda: None,
        lambda: "text",
        lambda: [tensor, tensor],
    ]
    try:
        return rng.choice(made)()
    except RuntimeError:
        return torch.ones(3, 5)


VALUES: tuple[Any, ...] = (
    None,
    0,
    -1,
    1,
    2**31,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    1e308,
    float("inf"),
    "nan",
    "",
    "0",
    "gnn1\x1b[31m\n\u202e",
    "x" * 3000,
    b"\xff\x00\xfe",
    "[" * 5000,
    "[1, 2, 3]",
    '{"a": {"b": [1e999, null, "\\u0000"]}}',
    "9" * 5000,
)


def in_tables(content: bytes, edits: list[Edit], scratch: Path) -> bytes:
    """Edits of an SQLite database through SQL: values of other kinds, lost and doubled rows, triggers and views."""
    path = scratch / "edited.gnnstab"
    path.write_bytes(content)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        tables = [
            row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        ]
        for place, what, new in edits:
            chosen = random.Random(repr((place, new)))
            table = tables[int(place * len(tables)) % len(tables)]
            columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
            with_ = chosen.choice(VALUES)
            try:
                _edit_table(connection, table, chosen.choice(columns), what, with_, chosen)
            except (sqlite3.Error, OverflowError):
                continue
    finally:
        connection.close()
    return path.read_bytes()


def _edit_table(
    connection: sqlite3.Connection, table: str, column: str, what: str, value: Any, rng: random.Random
) -> None:
    if what == "overwrite":
        connection.execute(f'UPDATE "{table}" SET "{column}" = ?', (value,))
    elif what == "zero":
        connection.execute(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid % 3 = {rng.randrange(3)}', (value,))
    elif what == "insert":
        connection.execute(f'CREATE TRIGGER t{rng.random() * 1e9:.0f} AFTER INSERT ON "{table}" BEGIN SELECT 1; END')
    elif what == "delete":
        connection.execute(f'DELETE FROM "{table}" WHERE "{column}" >= ?', (value,))
    elif what == "repeat":
        connection.execute(f'INSERT INTO "{table}" ("{column}") VALUES (?)', (value,))
    else:
        connection.execute(f'ALTER TABLE "{table}" RENAME COLUMN "{column}" TO "{column}2"')


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


def report(target: Target, signals: Signals, formats: tuple[str, ...]) -> None:
    """NonFiniteDetector and render; a report is text that can be written."""
    diagnosis = evaluate(target, signals)
    for format in formats:
        text = render(diagnosis, format)
        assert text.encode("utf-8"), format
        if format == "json":
            json.loads(text)


def read_config(path: Path) -> None:
    """Read and hold against the rules."""
    validate(config.load(path.parent, file=path))


def read_batch(path: Path) -> None:
    """Load, and make the arguments of a forward."""
    as_arguments(load_batch(path), TransformerConv(4, 4))


def read_bundle(path: Path) -> None:
    """Read what lies in the folder of the file."""
    bundle.read(path.parent)


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


def _saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@cache
def checkpoints() -> dict[str, bytes]:
    """A state dict, a full checkpoint with its optimizer, the format before torch 1.6."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleDict(
        {"gnn1": TransformerConv(4, 4, heads=2, edge_dim=1), "gnn2": TransformerConv(8, 4, beta=True)}
    )
    optimizer = torch.optim.Adam(layers.parameters())
    sum(p.square().sum() for p in layers.parameters()).backward()
    optimizer.step()
    state = layers.state_dict()
    whole = {"model": state, "optimizer": optimizer.state_dict(), "epoch": 3, "args": {"lr": 1e-3}}
    return {
        "state": _saved(state),
        "whole": _saved(whole),
        "module": _saved({"model": layers["gnn1"]}, pickle_protocol=4),
        "legacy": _saved(state, _use_new_zipfile_serialization=False),
    }


@cache
def safetensors() -> dict[str, bytes]:
    """The same state dict as a safetensors file."""
    from safetensors.torch import save

    return {"state": save({k: v.contiguous() for k, v in TransformerConv(4, 4, heads=2).state_dict().items()})}


def _write_trace(path: Path) -> None:
    with TraceWriter(path) as writer:
        for number in range(2):
            writer.layer(
                LayerFacts.of(
                    f"gnn{number}", "TransformerConv", number, in_channels=(4, 4), heads=2, beta=False, dropout=0.1
                )
            )
        writer.blind(Blind("gnn1", "gate", "no gate"))
        keys = [
            SeriesKey(f"gnn{i}", "train", 0, s) for i in range(2) for s in ("input", "score", "output", "grad_output")
        ]
        ids = [writer.series(key) for key in keys]
        for step in range(40):
            writer.sites(step, ids, np.abs(np.sin(np.arange(len(ids) * 5).reshape(-1, 5) + step)) * [1, 1, 1, 10, 0])
            writer.step(StepRow(step, step * 0.01, 1.0 / (step + 1), 1e-3, None, 1.0))
        names = ("attention.entropy", "attention.saturated_share", "score.within_std", "degree.mean")
        writer.measures([Measure(s, "gnn0", "train", 0, n, h, 0.5) for s in (0, 20) for n in names for h in (-1, 0, 1)])
        writer.event(
            Event(39, "non-finite", "gnn1", "train", stage="score", origin="made-here", nodes=(1, 2), message="m")
        )


def traces(folder: Path | None = None) -> dict[str, bytes]:
    """A short run with every table filled."""
    import tempfile

    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "run.gnnstab"
        _write_trace(path)
        return {"run": path.read_bytes()}


@cache
def batches() -> dict[str, bytes]:
    """A dict, a tuple, a Data."""
    tensors = {"x": torch.ones(3, 4), "edge_index": torch.tensor([[0, 1], [1, 2]])}
    return {
        "dict": _saved(tensors),
        "tuple": _saved(tuple(tensors.values())),
        "data": _saved(Data(**tensors)),
        "batch": _saved(Batch.from_data_list([Data(**tensors)] * 2)),
    }


@cache
def bundle_files() -> dict[str, bytes]:
    """The files of a bundle, as the probe writes them."""
    import tempfile

    from gnnstab.probe.attaching.forward_tracker import ForwardInputs
    from gnnstab.probe.replaying.replica import Autocast, rng_snapshot

    model, x = TransformerConv(4, 4), torch.ones(3, 4)
    inputs = ForwardInputs(
        (x, torch.tensor([[0, 1], [1, 2]])), {}, rng_snapshot(), Autocast("cpu", torch.bfloat16, False), "train"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = bundle.write(Path(name) / "b", model, inputs, Event(3, "non-finite"), [LayerFacts("a", "T", 0, True)])
        return {file.name: file.read_bytes() for file in folder.iterdir()}


BASELINE = json.dumps(
    {"schema_version": "1", "findings": [{"fingerprint": "ab12", "severity": "warning", "code": "GS301", "head": None}]}
).encode()

TOML = b"""[tool.gnnstab]
select = ["GS3", "GS5"]
fail-on = "error"
baseline = "known.json"
[tool.gnnstab.thresholds.GS301]
warn_entropy = 0.3
[tool.gnnstab.layers."decoder.*".GS301]
warn_entropy = 0.2
[[tool.gnnstab.suppressions]]
code = "GS204"
layer = "head"
reason = "known"
expires = 2027-01-31
"""

INI = b"""[gnnstab]
select = GS3, GS5
fail-on = error
[gnnstab:thresholds:GS301]
warn_entropy = 0.3
[gnnstab:layers:decoder.*:GS301]
warn_entropy = 0.2
[gnnstab:suppression:one]
code = GS204
reason = known
expires = 2027-01-31
"""


_TORCH: tuple[Callable[..., bytes], ...] = (in_values, apply, in_archive, in_operations, in_members)


def _of_bundle(name: str) -> Reader:
    damage: tuple[Callable[..., bytes], ...] = (in_json, apply)
    if name.endswith(".pt"):
        damage = _TORCH
    return Reader(name, read_bundle, lambda: {"bundle": bundle_files()[name]}, damage, bundle_files)


READERS: dict[str, Reader] = {
    "checkpoint": Reader("model.pt", read_checkpoint, checkpoints, _TORCH),
    "safetensors": Reader("model.safetensors", read_checkpoint, safetensors, (in_header, apply)),
    "trace": Reader("run.gnnstab", read_trace, cache(traces), (in_tables, apply)),
    "batch": Reader("batch.pt", read_batch, batches, _TORCH),
    "baseline": Reader("known.json", baseline.read, lambda: {"one": BASELINE}, (in_json, apply)),
    "pyproject": Reader("pyproject.toml", read_config, lambda: {"all keys": TOML}),
    "setup.cfg": Reader("setup.cfg", read_config, lambda: {"all keys": INI}),
    "bundle event": _of_bundle("event.json"),
    "bundle batch": _of_bundle("batch.pt"),
    "bundle rng": _of_bundle("rng.pt"),
    "bundle weights": _of_bundle("weights.pt"),
    "bundle layers": _of_bundle("layers.json"),
}
"""By name."""


def damaged(reader: Reader, seed: str, way: int, edits: list[Edit], folder: Path) -> bytes:
    """One input."""
    content, how = reader.seeds()[seed], reader.damage[way % len(reader.damage)]
    if how in (in_archive, in_operations, in_members) and not content.startswith(b"PK"):
        how = apply
    return partial(how, scratch=folder)(content, edits) if how is in_tables else how(content, edits)


def attempt(reader: Reader, content: bytes, folder: Path) -> bool:
    """Read one input in an empty folder; True when it was read, False when it was refused as it should be.

    Whatever else happens is raised.
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
        return False
    return True
