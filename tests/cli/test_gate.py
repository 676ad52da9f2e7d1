"""`gnnstab check` and `gnnstab diagnose`: exit codes, reports, errors."""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from gnnstab.cli import output

import examples
from gnnstab.records import Target
from gnnstab.report import FORMATS


@pytest.mark.parametrize("command", ["check", "diagnose"])
@pytest.mark.parametrize(
    ("targets", "code"),
    [
        (["clean.pt"], 0),
        (["one.pt"], 1),
        (["many.pt"], 1),
        (["missing.pt"], 2),
        (["empty.pt"], 3),
        (["clean.pt", "one.pt"], 1),
        (["clean.pt", "empty.pt"], 3),
        (["empty.pt", "one.pt"], 1),
        (["one.pt", "missing.pt"], 2),
        (["crash.pt"], 2),
        (["interrupt.pt"], 130),
    ],
)
def test_exit_codes(cli, command: str, targets: list[str], code: int) -> None:
    assert cli(command, *targets).code == code


@pytest.mark.parametrize(
    ("targets", "code"),
    [(["clean.pt"], 0), (["part.pt"], 3), (["part.pt", "one.pt"], 1), (["part.pt", "missing.pt"], 2)],
)
def test_strict_asks_for_all_to_be_judged(cli, targets: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(examples.ALL, "part", lambda: replace(examples.clean(), signals=()))
    assert cli("check", "part.pt").code == 0
    assert cli("check", *targets, "--strict").code == code


@pytest.mark.parametrize("command", ["check", "diagnose"])
def test_a_file_of_a_folder_that_cannot_be_read_is_an_error(cli, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unread = "left out b.pt: b.pt: is empty"
    target, context = Target("checkpoint", "folder", (unread,)), {"left_out": [unread]}
    monkeypatch.setitem(examples.ALL, "torn", lambda: replace(examples.clean(), target=target, context=context))
    # A file may bear any name.
    named = Target("checkpoint", "folder", ("left out b.pt: read from the entry 'model'",))
    monkeypatch.setitem(examples.ALL, "named", lambda: replace(examples.clean(), target=named))
    assert cli(command, "named.pt").code == 0
    ran = cli(command, "torn.pt", "--baseline", "known.json", "--update-baseline")
    assert ran.code == 2 and "error: left out b.pt: b.pt: is empty" in ran.err
    assert not Path("known.json").exists()


PRINTED = [format for format in FORMATS if format != "html"]


@pytest.mark.parametrize("format", PRINTED)
@pytest.mark.parametrize(("target", "code"), [("clean.pt", 0), ("one.pt", 1)])
def test_no_format_changes_the_exit_code(cli, format: str, target: str, code: int) -> None:
    ran = cli("check", target, "--format", format)
    assert ran.code == code
    assert ran.err == ""
    assert ran.out


@pytest.mark.parametrize(("fail_on", "code"), [("error", 0), ("warning", 1), ("info", 1)])
def test_fail_on(cli, fail_on: str, code: int) -> None:
    assert cli("check", "one.pt", "--fail-on", fail_on).code == code


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("missing.pt", "error: missing.pt: no such file"),
        ("crash.pt", "error: ZeroDivisionError: division by zero (unexpected; --debug shows the traceback)"),
        ("interrupt.pt", "interrupted"),
    ],
)
def test_an_error_is_one_line_that_says_what(cli, target: str, told: str) -> None:
    ran = cli("check", target)
    assert (ran.err.strip("\n"), ran.out) == (f"gnnstab: {told}", "")


@pytest.mark.parametrize("arguments", [["--debug", "check", "crash.pt"], ["check", "crash.pt", "--debug"]])
def test_debug_lets_the_traceback_through(cli, arguments: list[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        cli(*arguments)


def test_one_bad_target_does_not_hide_the_others(cli) -> None:
    ran = cli("check", "missing.pt", "one.pt")
    assert ran.code == 2
    assert "UNSTABLE" in ran.out
    assert "missing.pt: no such file" in ran.err


def test_a_target_without_a_diagnosis_is_an_error_in_the_reports_of_machines(cli) -> None:
    for target, errors in (("missing.pt", 1), ("clean.pt", 0)):
        junit = cli("check", target, "one.pt", "--format", "junit").out
        assert f'name="{target}"' in junit or not errors
        assert f'errors="{errors}"' in junit.splitlines()[1]
        (run,) = json.loads(cli("check", target, "one.pt", "--format", "sarif").out)["runs"]
        assert run["invocations"][0]["executionSuccessful"] is not bool(errors)
        assert ("missing.pt: no such file" in json.dumps(run)) is bool(errors)


EVERY = [part for format in FORMATS for part in ("--output", f"{format}=report.{format}")]


@pytest.mark.parametrize(
    "targets", [["clean.pt", "missing.pt"], ["missing.pt"], ["missing.pt", "a/missing.pt"], ["missing.pt", "empty.pt"]]
)
def test_every_saved_report_names_a_target_that_could_not_be_read(cli, tmp_path: Path, targets: list[str]) -> None:
    for format in FORMATS:
        (tmp_path / f"report.{format}").write_text("an old report: STABLE")
    ran = cli("check", *targets, *EVERY)
    assert ran.code == 2
    lost = [target for target in targets if target != "clean.pt"]
    assert ran.err.count("missing.pt: no such file") == len([target for target in lost if target != "empty.pt"])
    for format in FORMATS:
        report = (tmp_path / f"report.{format}").read_text()
        assert "an old report" not in report
        assert all(target in report for target in lost), format
    assert [d["target"]["path"] for d in _listed(tmp_path / "report.json")][-len(lost) :] == lost


def test_a_target_without_an_attention_layer_is_no_stale_report(cli, tmp_path: Path) -> None:
    assert cli("check", "empty.pt", "--output", "markdown=r.md").code == 3
    assert "no attention layer in this file" in (tmp_path / "r.md").read_text()


def _listed(report: Path) -> list[dict]:
    found = json.loads(report.read_text())
    return found if isinstance(found, list) else [found]


def test_usage_errors_exit_2(cli) -> None:
    for arguments in (["check"], ["check", "one.pt", "--nope"], ["nope"], ["check", "one.pt", "--fail-on", "fatal"]):
        ran = cli(*arguments)
        assert ran.code == 2
        assert "Usage: gnnstab" in ran.err


def test_options_reach_the_library(cli, calls: list[dict]) -> None:
    cli("diagnose", "clean.pt", "--model", "a:b", "--batch", "b.pt", "--loss", "c:d", "--precision", "fp16", "--heads", "3",
        "--activation", "tanh", "--verify", "--jobs", "3", "--lr", "0.01", "--select", "gs3,GS401", "--ignore", "GS303", "--unsafe-load")  # fmt: skip
    call = calls[0]
    progress = call.pop("progress")
    assert progress("doing") is None
    assert call == {
        "target": "clean.pt", "model": "a:b", "batch": "b.pt", "loss": "c:d", "precision": "fp16", "heads": 3,
        "activation": "tanh", "verify": True, "jobs": 3, "lr": 0.01, "select": ("GS3", "GS401"), "ignore": ("GS303",), "unsafe": True,
        "thresholds": None, "overrides": (),
    }  # fmt: skip


def test_outputs_are_written_beside_standard_output(cli, tmp_path: Path) -> None:
    ran = cli(
        "check", "one.pt", "--output", "json=report.json", "--output", "sarif=report.sarif", "--output", "markdown=r.md"
    )
    assert ran.out.startswith("UNSTABLE")
    assert json.loads((tmp_path / "report.json").read_text())["findings"][0]["code"] == "GS301"
    assert json.loads((tmp_path / "report.sarif").read_text())["version"] == "2.1.0"
    assert (tmp_path / "r.md").read_text().startswith("## ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.md", "report.json", "report.sarif"]


def test_same_input_same_bytes(cli, tmp_path: Path) -> None:
    first = cli("check", "many.pt", "--output", "json=a.json").out
    assert cli("check", "many.pt", "--output", "json=b.json").out == first
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one.pt", "--output", "json=one.pt"], "it is read as well"),
        (["./one.pt", "--output", "json=link"], "it is read as well"),
        (["folder", "--output", "json=folder/two.safetensors"], "named as a checkpoint, a trace"),
        (["run", "--output", "json=run.rank0.gnnstab"], "named as a checkpoint, a trace"),
        (["one.pt", "--output", "json=run.gnnstab-shm"], "named as a checkpoint, a trace"),
        (["one.pt", "--output", "json=two.safetensors.index.json"], "or a project's settings"),
        (["one.pt", "--output", "json=net/setup.cfg"], "or a project's settings"),
        (["one.pt", "--model", "work:make", "--output", "json=net/work.py"], "named as a checkpoint, a trace, code"),
        (["one.pt", "--config", "own.toml", "--fail-on", "info", "--output", "json=own.toml"], "it is read as well"),
        (["one.pt", "--model", "net.work:make", "--output", "json=net/work.py"], "it is read as well"),
        (["one.pt", "--model", "a:b", "--batch", "data.json", "--output", "json=data.json"], "it is read as well"),
        (["one.pt", "--baseline", "data.json", "--output", "json=data.json"], "it is read as well"),
        (["one.pt", "--baseline", "new.json", "--update-baseline", "--output", "json=new.json"], "is written twice"),
        (["one.pt", "--output", "json=r", "--output", "markdown=./r"], "is written twice"),
    ],
)
def test_no_report_replaces_what_is_read(cli, calls: list[dict], arguments: list[str], message: str) -> None:
    stored = ("one.pt", "folder/two.safetensors", "two.safetensors.index.json", "run.rank0.gnnstab", "run.gnnstab-shm")
    kept = [Path(name) for name in (*stored, "net/work.py", "net/setup.cfg", "data.json")]
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.write_text("precious")
    Path("own.toml").write_text('[tool.gnnstab]\nfail-on = "error"\n')
    Path("link").symlink_to("one.pt")
    ran = cli("check", *arguments)
    assert ran.code == 2 and message in ran.err and not calls
    assert all(path.read_text() == "precious" for path in kept) and not Path("r").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("json=no/such/folder.json", "the folder no/such does not exist"),
        ("json=.", "cannot write .: it is a folder"),
        ("pdf=x.pdf", "unknown format 'pdf'; choose from text, json"),
        ("report.json", "is not of the form FORMAT=PATH; write --output json=report.json"),
        ("a/report.html", "; write --output html=a/report.html"),
        ("json=", "is not of the form FORMAT=PATH"),
    ],
)
def test_an_impossible_output_is_refused_before_the_work(cli, calls: list[dict], output: str, message: str) -> None:
    ran = cli("check", "one.pt", "--output", output)
    assert ran.code == 2
    assert message in ran.err
    assert calls == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_clear_line(cli) -> None:
    ran = cli("check", "one.pt", "--output", "json=/dev/full")
    assert ran.code == 2
    assert ran.err == "gnnstab: error: cannot write /dev/full: No space left on device\n"


def test_a_failed_write_leaves_the_old_report(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report.json"
    report.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    ran = cli("check", "one.pt", "--output", "json=report.json")
    assert ran.code == 2
    assert "cannot write report.json: No space left on device" in ran.err
    assert report.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_report_replaces_a_link_and_waits_for_no_pipe(cli, tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    os.mkfifo(tmp_path / "pipe.json")
    cli("check", "one.pt", "--output", "json=link.json")
    assert (tmp_path / "real.json").read_text() == "old"
    assert json.loads((tmp_path / "link.json").read_text())["findings"]
    assert "pipe.json: it is not a regular file" in cli("check", "one.pt", "--output", "json=pipe.json").err


def test_several_targets_in_one_report(cli) -> None:
    assert len(json.loads(cli("check", "one.pt", "clean.pt", "--format", "json").out)) == 2
    assert isinstance(json.loads(cli("check", "one.pt", "--format", "json").out), dict)


def test_quiet_and_verbose(cli) -> None:
    assert len(cli("check", "many.pt", "-q").out.splitlines()) == 1
    assert len(cli("check", "many.pt", "-v").out) > len(cli("check", "many.pt").out)


def test_hostile_names_survive_every_format(cli) -> None:
    for format in PRINTED:
        ran = cli("check", "hostile.pt", "--format", format)
        assert ran.code == 1
        assert "\x1b" not in ran.out
        assert "\u202e" not in ran.out or format == "json"


def test_a_terminal_that_speaks_ascii_only(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    output.show("entropy → 0.5\n")
    assert stream.buffer.getvalue() == rb"entropy \u2192 0.5" + b"\n"


def test_junit_follows_fail_on(cli) -> None:
    assert 'failures="0"' in cli("check", "one.pt", "--format", "junit", "--fail-on", "error").out
    assert 'failures="1"' in cli("check", "one.pt", "--format", "junit").out


def test_each_target_has_its_own_folder_of_figures(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    figures = SimpleNamespace(write_all=lambda diagnosis, folder: asked.append((diagnosis.target.path, str(folder))))
    monkeypatch.setitem(sys.modules, "gnnstab.report.figures", figures)
    assert cli("check", "one.pt", "--plots", "figures").code == 1
    assert asked == [("checkpoints/agents7/actor.pt", "figures")]
    assert cli("check", "one.pt", "clean.pt", "--plots", "both").code == 1
    assert [folder for _, folder in asked[1:]] == [str(Path("both/0")), str(Path("both/1"))]


def test_a_check_that_finds_nothing_says_so_in_one_line(cli) -> None:
    assert len(cli("check", "clean.pt").out.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (["one.pt", "--fail-on", "error"], "passed: nothing at or above --fail-on error, 1 warning below it"),
        (["one.pt"], "failed: 1 warning at or above --fail-on warning"),
        (["clean.pt", "empty.pt"], "failed: 1 target could not be judged"),
        (["one.pt", "missing.pt"], "failed: a target, or a file of it, could not be read"),
    ],
)
def test_the_last_line_of_a_check_says_whether_it_passed_and_why(cli, arguments: list[str], last: str) -> None:
    assert cli("check", *arguments).out.splitlines()[-1] == last
    assert last not in cli("check", *arguments, "--quiet").out
    assert last not in cli("diagnose", *arguments).out
