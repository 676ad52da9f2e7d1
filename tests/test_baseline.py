"""Baselines: what counts as known, and files that are none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import examples
from gnnstab.baseline import Baseline, dump, read
from gnnstab.errors import ConfigurationError


@pytest.fixture
def known(tmp_path: Path) -> Baseline:
    path = tmp_path / "baseline.json"
    path.write_text(dump([examples.many_findings()]), encoding="utf-8")
    return read(path)


def test_what_was_written_is_known(known: Baseline) -> None:
    diagnosis = known.apply(examples.many_findings())
    assert diagnosis.findings == ()
    assert len(diagnosis.suppressed) == len(examples.many_findings().findings)
    assert diagnosis.exit_code("info") == 0
    assert "fired" not in {rule.status for rule in diagnosis.rules}


def test_a_number_that_moves_and_layers_in_another_order_stay_known(known: Baseline) -> None:
    base = examples.many_findings()
    moved = tuple(
        replace(f, value=f.value * 1.07, step=(f.step or 0) + 5, message="other") for f in reversed(base.findings)
    )
    assert known.apply(replace(base, findings=moved, layers=tuple(reversed(base.layers)))).findings == ()


def test_another_head_or_layer_or_rule_is_new(known: Baseline) -> None:
    finding = next(f for f in examples.many_findings().findings if f.code == "GS301")
    for change in ({"head": 7}, {"layer": "decoder.0"}, {"code": "GS302"}, {"signal": "score.max_abs"}):
        assert not known.knows(replace(finding, **change))


def test_a_warning_that_becomes_an_error_is_new_and_the_reverse_is_not(known: Baseline) -> None:
    finding = next(f for f in examples.many_findings().findings if f.severity == "warning")
    assert known.knows(finding)
    assert not known.knows(replace(finding, severity="error"))
    assert known.knows(replace(finding, severity="info"))


def test_hostile_names_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(dump([examples.hostile_names()]), encoding="utf-8")
    assert read(path).apply(examples.hostile_names()).findings == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not a baseline"),
        ("null", "not a baseline"),
        ('{"findings": {}}', "not a baseline"),
        ('{"schema_version": "9", "findings": []}', "version '9' is not '1'"),
        ('{"schema_version": "1", "findings": [1]}', "finding 1 has no fingerprint"),
        ('{"schema_version": "1", "findings": [{"fingerprint": "a", "severity": "fatal"}]}', "no valid severity"),
        ('{"schema_version": "1", "findings": [{"fingerprint": ["a"], "severity": "error"}]}', "has no fingerprint"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_binary_folder_and_missing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "binary", tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigurationError):
            read(path)


def test_the_worst_severity_of_one_fingerprint_is_kept() -> None:
    finding = examples.one_finding().findings[0]
    twice = replace(examples.one_finding(), findings=(replace(finding, severity="error"), finding))
    assert json.loads(dump([twice]))["findings"][0]["severity"] == "error"
