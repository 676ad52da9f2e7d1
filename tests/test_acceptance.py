"""The main job on real files, run as a user would run it: what the tool has to say of each real network."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from gnnstab.cli.group import run
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.records import FIVE_CAUSES
from models.informarl import DATA

MODEL = ["--model", "models.informarl:actor"]
Batch = dict[int, list[str]]
BATCH: Batch = {n: [*MODEL, "--batch", str(DATA / f"sample_batch_{n}agents.pt")] for n in (3, 7)}


def diagnose(capsys: pytest.CaptureFixture[str], name: str, *options: str) -> tuple[int, dict[str, Any]]:
    code = run(["diagnose", str(DATA / name), "--isolated", "--format", "json", *options])
    return code, json.loads(capsys.readouterr().out)


def status(diagnosis: dict[str, Any], cause: str) -> str:
    return next(c["status"] for c in diagnosis["causes"] if c["cause"] == cause)


def warned(diagnosis: dict[str, Any]) -> set[str]:
    return {f["code"] for f in diagnosis["findings"] if f["severity"] != "info"}


def test_a_bare_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = diagnose(capsys, "agents7_default/actor.pt")
    assert code == 0
    assert [
        (x["in_channels"], x["out_channels"], x["heads"], x["concat"], x["edge_dim"], x["beta"])
        for x in found["layers"]
    ] == [([16, 16], 16, 3, False, 1, False)] * 3
    spectral = [s["value"] for s in found["signals"] if s["name"] == "logit.spectral_qk"]
    assert max(spectral) == pytest.approx(0.45, abs=0.01)
    assert [c["cause"] for c in found["causes"][:5]] == list(FIVE_CAUSES)
    assert status(found, "no-residual") == "not-evaluable"
    assert "--model" in next(c["reason"] for c in found["causes"] if c["cause"] == "no-residual")
    assert status(found, "no-dropout") == "not-evaluable"
    assert found["coverage"]["assumptions"]


def test_the_critics_running_statistics_are_no_weights(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("agents7_default", "healthy_3agents"):
        code, found = diagnose(capsys, f"{name}/critic.pt")
        assert (code, warned(found)) == (0, set())


@pytest.mark.parametrize(
    ("name", "ruined"),
    [
        ("healthy_3agents", False),
        ("agents7_default", False),
        ("agents7_lr7e-3_saturated", True),
        ("agents7_lr7e-2_amp16_nan_crash", True),
    ],
)
def test_files_alone_tell_sharpened_attention_as_information(
    name: str, ruined: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of healthy networks are sharper than these: what would tell is asked for."""
    code, found = diagnose(capsys, f"{name}/actor.pt")
    assert (code, warned(found)) == (0, set())
    told = [f["message"] for f in found["findings"] if f["code"] == "GS301"]
    assert bool(told) == ruined and all("pass the model with batch= and loss=" in message for message in told)


def test_the_healthy_actor_on_its_batch(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = diagnose(capsys, "healthy_3agents/actor.pt", *BATCH[3])
    assert (code, warned(found)) == (0, set())


def test_the_seven_agent_actor_on_its_batch(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = diagnose(capsys, "agents7_default/actor.pt", *BATCH[7])
    assert code == 1
    attention = [f for f in found["findings"] if f["code"].startswith("GS3") and f["severity"] == "warning"]
    assert {f["layer"] for f in attention} == {"gnn.gnn1"}
    assert [c["cause"] for c in found["causes"] if c["status"] == "root-cause"] == ["sum-aggregation"]
    # Its weights look unknown: nobody sees how they were drawn.
    assert status(found, "unsuitable-init") == "not-evaluable"
    for cause in ("no-dropout", "beta-disabled", "no-residual", "unsuitable-init"):
        assert cause == "unsuitable-init" or status(found, cause) in ("present", "absent")
        assert next(c["reason"] for c in found["causes"] if c["cause"] == cause)


def test_the_saturated_actor_on_its_batch(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = diagnose(capsys, "agents7_lr7e-3_saturated/actor.pt", *BATCH[7])
    assert code == 1
    assert any(f["code"].startswith("GS3") and f["severity"] == "error" for f in found["findings"])


def test_the_crash_in_half_precision(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = diagnose(capsys, "agents7_lr7e-2_amp16_nan_crash/actor.pt", *BATCH[7], "--precision", "fp16")
    assert code == 1
    (event,) = [e for e in found["events"] if e["kind"] == "non-finite"]
    assert (event["layer"], event["stage"], event["origin"]) == ("gnn.gnn2.1", "score", "made-here")
    assert event["detail"]["weights_finite"] is True
    assert status(found, "precision") == "root-cause"


def test_the_crash_in_full_precision(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = diagnose(capsys, "agents7_lr7e-2_amp16_nan_crash/actor.pt", *BATCH[7])
    assert code == 1
    assert not [e for e in found["events"] if e["kind"] == "non-finite"]
    assert any(f["code"].startswith("GS3") and f["severity"] == "error" for f in found["findings"])
    headroom = [s["value"] for s in found["signals"] if s["name"] == "precision.fp16_headroom" and s["head"] is None]
    assert min(headroom) < 2


class Trap:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("trap-was-sprung",))


def garbage(folder: Path) -> dict[str, Path]:
    files = {name: folder / f"{name}.pt" for name in ("empty", "text", "truncated", "pickle", "no-layers", "missing")}
    files["empty"].write_bytes(b"")
    files["text"].write_text("this is no checkpoint\n")
    whole = (DATA / "healthy_3agents" / "actor.pt").read_bytes()
    files["truncated"].write_bytes(whole[: len(whole) // 2])
    files["pickle"].write_bytes(pickle.dumps({"state_dict": Trap()}))
    torch.save({"fc.weight": torch.ones(2, 2)}, files["no-layers"])
    assert zipfile.is_zipfile(files["no-layers"])
    return files


@pytest.mark.parametrize(
    ("name", "expected"), [("empty", 2), ("text", 2), ("truncated", 2), ("pickle", 2), ("missing", 2), ("no-layers", 3)]
)
def test_garbage(
    name: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = run(["diagnose", str(garbage(tmp_path)[name]), "--isolated"])
    shown = capsys.readouterr()
    assert code == expected, shown
    assert "Traceback" not in shown.err + shown.out
    if expected == 2:
        assert len(shown.err.strip().splitlines()) == 1
        assert name in shown.err
    assert not (tmp_path / "trap-was-sprung").exists()


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_a_wrong_batch(content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch = tmp_path / "batch.pt"
    if content is not None:
        batch.write_bytes(content)
    actor = str(DATA / "agents7_default" / "actor.pt")
    assert run(["diagnose", actor, "--isolated", *MODEL, "--batch", str(batch)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(("sharpness", "expected"), [(1, 0), (400, 1)])
def test_a_model_that_is_one_bare_layer(sharpness: float, expected: int) -> None:
    torch.manual_seed(0)
    conv = TransformerConv(16, 16, heads=2)
    conv.lin_query.weight.data *= sharpness
    edges = (torch.rand(20, 20) < 0.5).fill_diagonal_(False).nonzero().t()
    diagnosis = gnnstab.diagnose(conv, batch=(torch.randn(20, 16), edges))
    assert diagnosis.exit_code() == expected, str(diagnosis)
    assert [layer.name for layer in diagnosis.layers] == ["TransformerConv"]
