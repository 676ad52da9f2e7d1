"""A trace whose event is damaged, whose steps were all skipped, or whose rows belong to nothing is not called stable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gnnstab.cli.group import run as command
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.probe.attaching.forward_tracker import ForwardInputs
from gnnstab.probe.replaying import bundle
from gnnstab.probe.replaying.replica import Autocast, rng_snapshot
from gnnstab.records import Diagnosis, Event
from gnnstab.report.summary import state

WHOLE = {
    "step": "3",
    "kind": "'non-finite'",
    "layer": "'gnn0'",
    "mode": "'train'",
    "call": "0",
    "stage": "'score'",
    "origin": "'made-here'",
    **dict.fromkeys(("nodes", "edges", "heads"), "'[]'"),
    "message": "'m'",
    "detail": "'{}'",
}


def _insert(**fields: str) -> str:
    return f"INSERT INTO event VALUES (1, {', '.join({**WHOLE, **fields}.values())})"


def found(diagnosis: Diagnosis, code: str, word: str = "") -> list[Any]:
    return [finding for finding in diagnosis.findings if finding.code == code and word in finding.message]


@pytest.mark.parametrize(
    ("field", "value"),
    [("nodes", "'['"), ("detail", "'{'"), ("step", "'x'"), ("call", "'x'"), ("layer", "x'00'"), ("mode", "x'00'")],
)
def test_a_damaged_event_still_tells_of_it(field: str, value: str, changed: Callable[..., Any]) -> None:
    (event,) = found(changed(_insert()), "GS502")
    assert "cannot be read" not in event.message and event.step == 3
    diagnosis = changed(_insert(**{field: value}))
    (event,) = found(diagnosis, "GS502", f"cannot be read: {field}")
    assert event.layer == (None if field == "layer" else "gnn0") and state(diagnosis) == "unstable"
    (row,) = found(diagnosis, "GS903", "malformed")
    assert row.severity == "warning" and diagnosis.context["rows_doubtful"] == 1


def test_an_event_without_a_kind_is_counted(changed: Callable[..., Any]) -> None:
    diagnosis = changed(_insert(kind="x'00'"))
    assert diagnosis.context["rows_doubtful"] == 1 and not found(diagnosis, "GS502")


@pytest.mark.parametrize("loss", ["'nan'", "9e999", "-9e999"])
def test_a_run_that_skipped_every_step_never_trained(loss: str, changed: Callable[..., Any]) -> None:
    diagnosis = changed(f"UPDATE step SET loss = {loss}, skipped = 1")
    (event,) = found(diagnosis, "GS502", "stage loss")
    assert event.severity == "error" and event.step == 0
    for mended in (
        "UPDATE step SET skipped = 0, loss = 1.0 WHERE step = 9",
        "UPDATE step SET loss = NULL WHERE step = 9",
        "UPDATE step SET loss = 1.0",
        "DELETE FROM step WHERE step > 1",
    ):
        assert not found(changed(f"UPDATE step SET loss = {loss}, skipped = 1", mended), "GS502")


NO_WRITER = {
    "skipped twice": "UPDATE step SET loss = 'nan', skipped = 2",
    "skipped less than never": "UPDATE step SET loss = 'nan', skipped = -1",
    "a layer that is not listed": "UPDATE series SET layer = 'foo'",
    "a site that there is none of": "UPDATE series SET site = 'foo'",
    "a quantity that there is none of": "UPDATE quantity SET name = 'foo.bar'",
    "a quantity of a layer that is not listed": "UPDATE quantity SET layer = 'foo'",
    "a quantity that is not listed": "DELETE FROM quantity WHERE id = 1",
    "a negative size": "UPDATE statistic SET rms = -1",
    "a minimum above the maximum": "UPDATE statistic SET minimum = 5, maximum = -5",
}


@pytest.mark.parametrize("name", NO_WRITER)
def test_rows_that_no_writer_makes_are_counted(name: str, changed: Callable[..., Any]) -> None:
    try:
        diagnosis = changed(NO_WRITER[name])
    except gnnstab.errors.TraceError:
        assert "quantity that is not listed" in name
        return
    (row,) = found(diagnosis, "GS903", "malformed")
    assert row.severity == "warning" and state(diagnosis) != "stable"


WRITERS_OWN = {
    "as it was written": "UPDATE step SET lr = lr",
    "a parameter": "UPDATE series SET layer = 'gnn0.lin_key.weight', site = 'weight' WHERE id = 8",
    "a number of the whole model": "UPDATE quantity SET layer = '' WHERE id = 12",
    "a tensor without entries that are numbers": "UPDATE statistic SET minimum = 9e999, maximum = -9e999, rms = NULL WHERE series = 8",
    "skipped": "UPDATE step SET skipped = 1 WHERE step < 3",
}


@pytest.mark.parametrize("name", WRITERS_OWN)
def test_rows_that_a_writer_makes_are_not(name: str, changed: Callable[..., Any]) -> None:
    assert changed(WRITERS_OWN[name]).context["rows_doubtful"] == 0


def test_a_bundle_ends_no_line_of_a_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = ForwardInputs((torch.ones(3, 4),), {}, rng_snapshot(), Autocast("cpu", torch.bfloat16, False), "train")
    folder = bundle.write(tmp_path / "b", TransformerConv(4, 4), inputs, Event(3, "non-finite"), [])
    about = json.loads((folder / "event.json").read_text())
    foreign = "x\n\nSTABLE  everything is finite"
    about["event"].update(layer=foreign, stage=foreign, message=foreign)
    (folder / "event.json").write_text(json.dumps({**about, "left_out": [foreign]}))
    command(["replay", str(folder)])
    assert r"x\n\nSTABLE" in capsys.readouterr().out
