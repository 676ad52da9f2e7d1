"""The configuration on the command line: `gnnstab config`, and what a gate does with it."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_every_setting_with_its_origin(cli, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.gnnstab]\nfail-on = "error"\nthresholds.GS301.warn_entropy = 0.3\n')
    ran = cli("config")
    assert ran.code == 0
    rows = {line.split()[0]: line.split() for line in ran.out.splitlines()}
    assert rows["fail-on"][1] == "error"
    # The folder of a test run in parallel is long enough to be shortened in the middle.
    assert rows["fail-on"][2].endswith("pyproject.toml")
    assert rows["thresholds.GS301.warn_entropy"][1] == "0.3"
    assert rows["select"][1:] == ["all", "default"]


def test_a_wrong_configuration_exits_2_also_when_quiet(cli, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.gnnstab]\nselect = ["GX"]\n')
    ran = cli("config", "--quiet")
    assert ran.code == 2
    assert "pyproject.toml: select: no rule code begins with 'GX'" in ran.err
    assert cli("config", "--quiet", "--isolated").code == 0
    assert cli("check", "clean.pt").code == 2


def test_an_expired_suppression_is_told(cli, tmp_path: Path) -> None:
    (tmp_path / "setup.cfg").write_text("[gnnstab:suppression:x]\ncode = GS301\nreason = y\nexpires = 2020-01-01\n")
    assert "expired on 2020-01-01" in cli("config").err


def test_the_gate_obeys_the_file_and_the_command_line_wins(cli, tmp_path: Path, calls: list[dict]) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.gnnstab]\nfail-on = "error"\nselect = ["GS3"]\nthresholds.GS301.warn_entropy = 0.2\n'
        'layers."a.*".GS301.warn_entropy = 0.1\n'
    )
    assert cli("check", "one.pt").code == 0
    assert calls[-1]["select"] == ("GS3",)
    assert calls[-1]["thresholds"] == {"GS301": {"warn_entropy": 0.2}}
    assert [(o.layer, dict(o.thresholds)) for o in calls[-1]["overrides"]] == [("a.*", {"warn_entropy": 0.1})]
    assert cli("check", "one.pt", "--fail-on", "warning", "--select", "GS4").code == 1
    assert calls[-1]["select"] == ("GS4",)
    assert cli("check", "one.pt", "--isolated").code == 1


def test_suppressions_silence_and_complain(cli, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[[tool.gnnstab.suppressions]]\ncode = "GS301"\nlayer = "gnn_base.*"\nreason = "by design"\n'
        '[[tool.gnnstab.suppressions]]\ncode = "GS4"\nreason = "old"\n'
    )
    ran = cli("check", "one.pt", "-v")
    assert ran.code == 0
    assert "(1 finding suppressed)" in cli("check", "one.pt").out
    assert "Suppressed: GS301 at gnn_base.gnn.gnn1: by design" in ran.out
    assert ran.err.count("\n") == 1
    assert "suppression of GS4 at layer *" in ran.err
    assert "matched nothing" in ran.err


def test_a_baseline_of_the_file_is_relative_to_the_file(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.gnnstab]\nbaseline = "known.json"\n')
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert cli("check", "one.pt", "--update-baseline").code == 0
    assert (tmp_path / "known.json").exists()
    assert cli("check", "one.pt").code == 0
