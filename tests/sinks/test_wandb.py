"""Weights & Biases, offline: the run's own file holds what the sink logged."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gnnstab.sinks import WandbSink, replay
from gnnstab.trace import Trace

pytest.importorskip("wandb", reason="wandb is not installed (pip install 'gnnstab[wandb]')")
pytestmark = pytest.mark.filterwarnings("ignore")


BLOCK, HEADER = 32768, 7


def chunks(data: bytes) -> Iterator[bytes]:
    """The payloads of a LevelDB log, the container of a run's file: blocks of fixed size, records split over them."""
    assert data[:4] == b":W&B"
    position, parts = HEADER, b""
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        parts += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def records(path: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    for data in chunks(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        yield record


def test_metrics_findings_and_page(trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    sink = WandbSink(mode="offline", dir=str(tmp_path), project="gnnstab-test")
    diagnosis = replay(trace, [sink])
    wandb.teardown()  # its own process writes the file; this waits until it has
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    history, summary = [], {}
    for record in records(path):
        if record.HasField("history"):
            history.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
        for item in record.summary.update if record.HasField("summary") else ():
            summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    losses = {row["gnnstab/step"]: row["gnnstab/loss"] for row in history if "gnnstab/loss" in row}
    assert sorted(losses) == list(range(30))
    assert losses[0] == 2.0
    assert summary["gnnstab/verdict"] == "unstable"
    pages = list(path.parent.rglob("*.html"))
    assert len(pages) == 1
    assert "Content-Security-Policy" in pages[0].read_text(encoding="utf-8")
    (table,) = path.parent.rglob("*.table.json")
    rows = json.loads(table.read_text())["data"]
    assert {row[0] for row in rows} == {f.code for f in diagnosis.findings}
