"""Reports written by `Diagnosis.save`, and `Diagnosis.raise_for`."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

import examples
from gnnstab.errors import NothingEvaluable, UnstableError, UsageError
from gnnstab.records import Coverage
from gnnstab.report import render
from gnnstab.report.saving import ENDINGS


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_ending_says_which_format(ending: str, tmp_path: Path) -> None:
    diagnosis = examples.one_finding()
    path = diagnosis.save(tmp_path / f"report{ending}")
    assert path.read_text("utf-8") == render(diagnosis, ENDINGS[ending])


def test_options_and_format_are_handed_on(tmp_path: Path) -> None:
    diagnosis = examples.many_findings()
    path = diagnosis.save(tmp_path / "log", "text", verbose=True)
    assert path.read_text("utf-8") == render(diagnosis, "text", verbose=True)
    assert json.loads(diagnosis.save(str(tmp_path / "x.out"), "json").read_text("utf-8"))["schema_version"] == "1"


def test_what_cannot_be_written_is_said_and_changes_nothing(tmp_path: Path) -> None:
    diagnosis = examples.clean()
    with pytest.raises(UsageError, match=r"did you mean '.htm' or '.html'"):
        diagnosis.save(tmp_path / "report.htmk")
    with pytest.raises(UsageError, match="unknown format 'markdwn'; did you mean 'markdown'"):
        diagnosis.save(tmp_path / "report.md", "markdwn")
    with pytest.raises(UsageError, match="cannot write"):
        diagnosis.save(tmp_path / "missing" / "report.md")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    path.write_text("before")
    path.chmod(0o640)
    examples.clean().save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["report.md"]


def test_raise_for() -> None:
    clean, one = examples.clean(), examples.one_finding()
    assert clean.raise_for() is clean
    assert one.raise_for("error") is one
    with pytest.raises(UnstableError) as caught:
        one.raise_for()
    assert caught.value.finding is one.findings[0]
    with pytest.raises(UnstableError) as caught:
        examples.many_findings().raise_for()
    assert caught.value.finding.severity == "error"
    assert caught.value.finding.explained_by is None
    with pytest.raises(NothingEvaluable):
        replace(clean, coverage=Coverage(3, 0)).raise_for()
    with pytest.raises(UsageError):
        clean.raise_for("loud")
