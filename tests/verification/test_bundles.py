"""A bundle that a real monitor wrote, replayed: the same place, the same numbers, and the fixes tried on it."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
from gnnstab.cli.group import run
from torch import nn

from gnnstab import Monitor
from gnnstab.errors import CheckpointMismatch
from gnnstab.probe.replaying import bundle
from gnnstab.verification.bundles import replay_bundle, seen_in
from models.informarl import Actor, load_actor, sample_batch
from models.stacks import Stack, random_batch

CRASH = "agents7_lr7e-2_amp16_nan_crash"


def overflowing() -> nn.Module:
    """Scores beyond fp16 in the second layer of two."""
    torch.manual_seed(0)
    model = Stack(2, 16)
    with torch.no_grad():
        for linear in (model.convs[1].lin_query, model.convs[1].lin_key):
            linear.weight *= 3000
    return model


def plain() -> nn.Module:
    return Stack(2, 16)


def watched(model, arguments, trace, *, loss=lambda out: out.float().square().mean(), dtype=torch.float16):
    """One step of a training loop under a monitor; returns its only bundle."""
    optimizer = torch.optim.Adam(model.parameters())
    with warnings.catch_warnings(), Monitor(model, optimizer=optimizer, trace=trace, on_finding="ignore"):
        warnings.simplefilter("ignore")
        with torch.autocast("cpu", dtype=dtype or torch.float16, enabled=dtype is not None):
            out = model(**arguments)
        loss(out).backward()
        optimizer.step()
    (folder,) = trace.parent.glob("*.bundle-*")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return watched(overflowing(), random_batch(16, 5, 16), tmp_path_factory.mktemp("run") / "run.gnnstab")


def test_the_bundle_shows_what_the_run_showed_and_the_fix_works_on_it(folder):
    found = replay_bundle(bundle.read(folder), plain(), ["fp32-attention", ("fp32-attention", {"only": ["convs.0"]})])
    assert (found.event.layer, found.event.stage, found.event.origin) == ("convs.1", "score", "made-here")
    assert found.event.message == found.recorded.message
    assert found.note == "The monitor saw the same at step 0."
    first = next(row for row in found.rows if row.non_finite)
    assert (first.layer, first.stage, first.dtype) == ("convs.1", "score", "float16")
    assert [t.verdict for t in found.tried] == ["confirmed", "no-effect"]


def test_on_the_command_line(folder, capsys):
    assert run(["replay", str(folder), "--model", f"{__name__}:plain", "--fix", "fp32-attention"]) == 1
    out = capsys.readouterr().out
    assert "convs.1  score" in out
    assert "65504" in out
    assert "fp32-attention: confirmed" in out
    assert "The monitor saw the same at step 0." in out
    assert run(["replay", str(folder), "--model", f"{__name__}:plain", "--format", "json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["recorded"]["layer"] == said["event"]["layer"] == "convs.1"


def test_without_a_model_it_says_what_it_can_and_what_it_needs(folder, capsys):
    assert run(["replay", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "Recorded at step 0: the score of convs.1" in out
    assert "All weights and arguments in the bundle are finite." in out
    assert "pass --model pkg.mod:factory" in out
    assert "Every stage" not in out
    assert run(["replay", str(folder), "--fix", "dropout"]) == 2
    assert "--model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--batch", "b.pt"], "its own batch"),
        (["--precision", "fp16"], "its own batch and number format"),
        (["--model", "models.informarl:Actor"], "belongs to another model than Actor"),
    ],
)
def test_mistakes(folder, capsys, extra, told):
    assert run(["replay", str(folder), *extra]) == 2
    assert told in capsys.readouterr().err
    assert run(["replay"]) == 2
    assert "--batch FILE" in capsys.readouterr().err


def test_weights_of_another_shape_are_refused(folder):
    with pytest.raises(CheckpointMismatch, match="of its tensors differ"):
        replay_bundle(bundle.read(folder), Stack(2, 8))


def test_weights_that_were_not_finite_are_named(tmp_path):
    model = plain()
    with torch.no_grad():
        model.convs[0].lin_value.bias[0] = math.nan
    folder = watched(model, random_batch(16, 5, 16), tmp_path / "run.gnnstab", dtype=None)
    assert "Not finite in the bundle: weight convs.0.lin_value.bias." in seen_in(bundle.read(folder)).note
    found = replay_bundle(bundle.read(folder), plain())
    assert found.event.origin == "came-in"


def test_a_failure_of_the_backward_alone_is_said_to_need_a_loss(tmp_path):
    folder = watched(
        plain(), random_batch(16, 5, 16), tmp_path / "run.gnnstab", loss=lambda out: (0 * out).sqrt().sum(), dtype=None
    )
    found = replay_bundle(bundle.read(folder), plain())
    assert found.event is None
    assert "a bundle holds no loss" in found.note
    assert "convs.1, stage gradient" in found.note


def test_a_model_in_half_precision_is_replayed_in_half_precision(tmp_path):
    arguments = {k: v.half() if v.is_floating_point() else v for k, v in random_batch(16, 5, 16).items()}
    folder = watched(overflowing().half(), arguments, tmp_path / "run.gnnstab", dtype=None)
    found = replay_bundle(bundle.read(folder), plain(), ["fp32-attention"])
    assert (found.event.stage, found.note) == ("score", "The monitor saw the same at step 0.")
    assert found.tried[0].verdict == "confirmed"


def test_the_crash_of_the_real_actor_from_its_bundle(tmp_path):
    folder = watched(load_actor(CRASH), {k: v[:64] for k, v in sample_batch().items()}, tmp_path / "run.gnnstab")
    found = replay_bundle(bundle.read(folder), Actor(), ["fp32-attention", "score-cap"])
    assert (found.event.layer, found.event.stage, found.event.origin) == ("gnn.gnn2.1", "score", "made-here")
    assert found.note == "The monitor saw the same at step 0."
    assert [t.verdict for t in found.tried] == ["confirmed", "no-effect"]
