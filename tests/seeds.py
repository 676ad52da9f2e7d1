"""Valid files of every kind that strangers may have written, to begin from."""

from __future__ import annotations

import io
import json
import sqlite3
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.nn import TransformerConv

from gnnstab.probe.replaying import bundle
from gnnstab.records import Blind, Event, LayerFacts, Measure, SeriesKey, StepRow
from gnnstab.trace import TraceWriter
from gnnstab.verification._arms import ArmResult


def saved(content: Any, **options: Any) -> bytes:
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
        "state": saved(state),
        "whole": saved(whole),
        "module": saved({"model": layers["gnn1"]}, pickle_protocol=4),
        "legacy": saved(state, _use_new_zipfile_serialization=False),
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
            writer.sites(step, ids, np.abs(np.sin(np.arange(len(ids) * 5).reshape(-1, 5) + step)) * [-1, 1, 1, 10, 0])
            writer.step(StepRow(step, step * 0.01, 1.0 / (step + 1), 1e-3, None, 1.0))
        names = ("attention.entropy", "attention.saturated_share", "score.within_std", "degree.mean")
        writer.measures([Measure(s, "gnn0", "train", 0, n, h, 0.5) for s in (0, 20) for n in names for h in (-1, 0, 1)])
        writer.event(
            Event(39, "non-finite", "gnn1", "train", stage="score", origin="made-here", nodes=(1, 2), message="m")
        )


@cache
def traces() -> dict[str, bytes]:
    """A short run with every table filled."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "run.gnnstab"
        _write_trace(path)
        return {"run": path.read_bytes()}


@cache
def batches() -> dict[str, bytes]:
    """A dict, a tuple, a Data."""
    tensors = {"x": torch.ones(3, 4), "edge_index": torch.tensor([[0, 1], [1, 2]])}
    return {
        "dict": saved(tensors),
        "tuple": saved(tuple(tensors.values())),
        "data": saved(Data(**tensors)),
        "batch": saved(Batch.from_data_list([Data(**tensors)] * 2)),
    }


@cache
def bundle_files() -> dict[str, bytes]:
    """The files of a bundle, as the probe writes them."""
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

STORE = b"".join(
    json.dumps({"key": key, "result": asdict(ArmResult(0.5, {"GS301": "warning"}, 1.0, 0.5))}).encode() + b"\n"
    for key in "ab"
)

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


def _changing(path: Path, journal: str) -> sqlite3.Connection:
    """A connection in the midst of a transaction that has changed the trace, its pages already on the disk."""
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in (
        f"PRAGMA journal_mode = {journal}",
        "PRAGMA cache_size = 1",
        "PRAGMA wal_autocheckpoint = 0",
        "BEGIN",
    ):
        connection.execute(statement)
    connection.execute("UPDATE step SET loss = loss + 1")
    connection.execute("UPDATE statistic SET maximum = maximum + 1 WHERE step < 20")
    return connection


@cache
def interrupted() -> dict[str, bytes]:
    """A trace whose writer was killed in a transaction without log, and the journal that undoes it."""
    return _with_companion("DELETE", "-journal")


@cache
def logged() -> dict[str, bytes]:
    """A trace whose writer was killed, with its write-ahead log and the shared memory beside it."""
    return _with_companion("WAL", "-wal", "-shm")


def _with_companion(journal: str, *ends: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "run.gnnstab"
        path.write_bytes(traces()["run"])
        connection = _changing(path, journal)
        if journal == "WAL":
            connection.execute("COMMIT")
        files = {f"run.gnnstab{end}": Path(f"{path}{end}").read_bytes() for end in ("", *ends)}
        connection.close()
        return files
