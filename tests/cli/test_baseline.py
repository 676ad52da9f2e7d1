"""`--baseline` and `--update-baseline`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import examples


def test_known_findings_pass_and_new_ones_fail(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cli("check", "one.pt", "--baseline", "known.json", "--update-baseline")
    assert first.code == 0
    assert "wrote 1 finding to known.json" in first.err
    again = cli("check", "one.pt", "--baseline", "known.json", "-v")
    assert again.code == 0
    assert "known: stands in the baseline" in again.out
    assert cli("check", "many.pt", "--baseline", "known.json").code == 1


def test_the_file_is_sorted_and_stable(cli, tmp_path: Path) -> None:
    cli("check", "many.pt", "--baseline", "a.json", "--update-baseline")
    cli("check", "many.pt", "--baseline", "b.json", "--update-baseline")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    entries = json.loads((tmp_path / "a.json").read_text())["findings"]
    assert len(entries) == len(examples.many_findings().findings)
    assert [e["code"] for e in entries] == sorted(e["code"] for e in entries)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--update-baseline"], "pass --baseline FILE"),
        (["--baseline", "nowhere.json"], "error: baseline nowhere.json does not exist; --update-baseline writes it\n"),
    ],
)
def test_a_baseline_that_is_not_there_says_how_to_make_it(cli, options: list[str], told: str) -> None:
    ran = cli("check", "one.pt", *options)
    assert (ran.code, told in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        *(
            (outside, "within the folder of this file")
            for outside in ("../known.json", "/dev/null", "out/known.json", "..")
        ),
        ("pyproject.toml", "it is read as well"),
        ("link.json", "it is read as well"),
        ("pipe", "not a regular file"),
    ],
)
def test_a_configuration_overwrites_baselines_of_its_own_folder_alone(
    cli, baseline: str, message: str, tmp_path: Path
) -> None:
    content = f"[tool.gnnstab]\nbaseline = {json.dumps(baseline)}\n"
    (tmp_path / "pyproject.toml").write_text(content)
    (tmp_path / "out").symlink_to(tmp_path.parent)
    (tmp_path / "link.json").symlink_to("pyproject.toml")
    os.mkfifo(tmp_path / "pipe")
    ran = cli("check", "one.pt", "--update-baseline")
    assert (ran.code, message in ran.err) == (2, True), ran.err
    assert (tmp_path / "pyproject.toml").read_text() == content and (tmp_path / "link.json").is_symlink()


def test_a_link_to_a_baseline_is_replaced_and_its_name_shown_as_text(cli, tmp_path: Path) -> None:
    cli("check", "one.pt", "--baseline", "known.json", "--update-baseline")
    known = (tmp_path / "known.json").read_bytes()
    name = "b\x1b]0;title\x07\u202e"
    (tmp_path / name).symlink_to("known.json")
    (tmp_path / "pyproject.toml").write_text(f"[tool.gnnstab]\nbaseline = {json.dumps(name)}\n")
    ran = cli("check", "many.pt", "--update-baseline")
    assert ran.code == 0 and ran.err.rstrip("\n").isprintable() and "title" in ran.err
    assert (tmp_path / "known.json").read_bytes() == known != (tmp_path / name).read_bytes()


def test_a_baseline_is_not_written_when_a_target_cannot_be_read(cli, tmp_path: Path) -> None:
    for targets in (["missing.pt"], ["missing.pt", "one.pt"]):
        assert cli("check", *targets, "--baseline", "known.json", "--update-baseline").code == 2
        assert not (tmp_path / "known.json").exists()


@pytest.mark.parametrize("update", [[], ["--update-baseline"]])
def test_a_report_is_no_baseline(cli, tmp_path: Path, update: list[str]) -> None:
    cli("check", "many.pt", "--output", "json=known.json")
    report = (tmp_path / "known.json").read_bytes()
    ran = cli("check", "many.pt", "--baseline", "known.json", *update)
    assert (ran.code, "not a baseline of gnnstab but a report" in ran.err) == (2, True), ran.err
    assert (tmp_path / "known.json").read_bytes() == report


def test_a_baseline_that_an_editor_gave_a_byte_order_mark_is_read(cli, tmp_path: Path) -> None:
    cli("check", "one.pt", "--baseline", "known.json", "--update-baseline")
    known = tmp_path / "known.json"
    known.write_bytes(b"\xef\xbb\xbf" + known.read_bytes())
    assert cli("check", "one.pt", "--baseline", "known.json").code == 0
