"""A user's repository from the first healthy commit to a regression: what the gate does at each point."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch
from gnnstab.cli.group import run

from models.informarl import DATA

LAYER, HEAD = "gnn.gnn1", 1
GATE = ("check", "actor.pt", "--model", "network:actor", "--batch", "batch.pt")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_network: None) -> Path:
    """A git repository with a healthy checkpoint, its code, a batch, and a configuration."""
    (tmp_path / "actor.pt").write_bytes((DATA / "healthy_3agents" / "actor.pt").read_bytes())
    (tmp_path / "batch.pt").write_bytes((DATA / "sample_batch_3agents.pt").read_bytes())
    (tmp_path / "network.py").write_text("from models.informarl import actor\n", encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "theirs"\n\n[tool.gnnstab]\nfail-on = "warning"\n')
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    commit("healthy")
    return tmp_path


def git(*arguments: str) -> str:
    who = ("-c", "user.name=user", "-c", "user.email=user@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *who, *arguments], check=True, capture_output=True, text=True).stdout


def commit(message: str) -> None:
    git("add", "-A")
    git("commit", "-qm", message)


def scale_queries(layer: str, factor: float, head: int | None = None) -> None:
    """What a bad commit does to the checkpoint."""
    state = torch.load("actor.pt", weights_only=True)
    rows = slice(None) if head is None else slice(16 * head, 16 * (head + 1))
    for kind in ("weight", "bias"):
        state[f"gnn_base.{layer}.lin_query.{kind}"][rows] *= factor
    torch.save(state, "actor.pt")


@pytest.fixture
def gate(capfd: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        out, err = capfd.readouterr()
        return code, out, err

    return call


def test_the_healthy_commit_passes(repository: Path, gate) -> None:
    code, out, err = gate(*GATE)
    assert code == 0, out
    assert out.startswith("STABLE")
    assert err == ""


def test_a_regression_fails_in_every_format_with_layer_and_head(repository: Path, gate) -> None:
    scale_queries(LAYER, 8, HEAD)
    commit("sharper attention")
    reports = {
        "json": "r.json",
        "sarif": "r.sarif",
        "junit": "r.xml",
        "markdown": "r.md",
        "github": "r.txt",
        "html": "r.html",
    }
    outputs = [part for format, path in reports.items() for part in ("--output", f"{format}={path}")]
    code, out, _ = gate(*GATE, *outputs)
    assert code == 1
    assert out.startswith("UNSTABLE")
    found = {format: (repository / path).read_text(encoding="utf-8") for format, path in reports.items()}
    for text in (out, *found.values()):
        assert LAYER in text
        assert f"head {HEAD}" in text or f'"head": {HEAD}' in text
    findings = [f for f in json.loads(found["json"])["findings"] if f["severity"] != "info"]
    assert {f["layer"] for f in findings} == {LAYER}
    results = json.loads(found["sarif"])["runs"][0]["results"]
    assert results[0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "actor.pt"
    assert ET.fromstring(found["junit"]).get("failures") != "0"
    # No line of a pull request belongs to a binary file.
    assert "::warning title=GS301" in found["github"] and "file=actor.pt" not in found["github"]


@pytest.mark.parametrize("format", ["text", "json", "sarif", "junit", "github", "markdown"])
def test_no_format_changes_the_exit_code(repository: Path, gate, format: str) -> None:
    scale_queries(LAYER, 8)
    assert gate("check", "actor.pt", "--model", "network:actor", "--batch", "batch.pt", "--format", format)[0] == 1


def test_the_baseline_silences_the_old_finding_and_not_the_new_one(repository: Path, gate) -> None:
    scale_queries(LAYER, 8)
    baseline = ("--baseline", "known.json")
    assert gate(*GATE, *baseline, "--update-baseline")[0] == 0
    commit("known for now")
    assert gate(*GATE, *baseline)[0] == 0
    scale_queries(LAYER, 1.1)
    assert gate(*GATE, *baseline)[0] == 0, "numbers may move a little"
    scale_queries("gnn.gnn2.0", 12)
    code, out, _ = gate(*GATE, *baseline, "--format", "json")
    assert code == 1
    document = json.loads(out)
    assert {f["layer"] for f in document["findings"]} == {"gnn.gnn2.0"}
    assert {s["finding"]["layer"] for s in document["suppressed"]} == {LAYER}


def test_select_ignores_everything_else(repository: Path, gate) -> None:
    scale_queries(LAYER, 8)
    assert gate(*GATE, "--select", "GS4")[0] == 0
    code, out, _ = gate(*GATE, "--select", "GS3", "--format", "json")
    assert code == 1
    document = json.loads(out)
    assert {f["code"][:3] for f in document["findings"]} == {"GS3"}
    assert {r["status"] for r in document["rules"] if not r["code"].startswith("GS3")} == {"suppressed"}


def test_a_suppression_with_its_reason(repository: Path, gate) -> None:
    scale_queries(LAYER, 8)
    with (repository / "pyproject.toml").open("a") as stream:
        stream.write(
            f'\n[[tool.gnnstab.suppressions]]\ncode = "GS3"\nlayer = "{LAYER}"\nreason = "looks up one neighbour"\n'
        )
    code, out, _ = gate(*GATE)
    assert code == 0
    assert "(2 findings suppressed)" in out


def test_what_cannot_be_read_exits_2(repository: Path, gate) -> None:
    (repository / "text.pt").write_text("no checkpoint")
    (repository / "empty.pt").write_bytes(b"")
    (repository / "cut.pt").write_bytes((repository / "actor.pt").read_bytes()[:2000])
    for target in ("missing.pt", "text.pt", "empty.pt", "cut.pt"):
        code, out, err = gate("check", target)
        assert (code, out) == (2, ""), target
        assert err.startswith("gnnstab: error: ")
        assert err.count("\n") == 1
        assert target in err


def test_a_file_without_attention_layers_exits_3(repository: Path, gate) -> None:
    torch.save(torch.nn.Linear(4, 4).state_dict(), "linear.pt")
    code, out, err = gate("check", "linear.pt")
    assert code == 3, (out, err)
    assert not out.startswith("STABLE")
