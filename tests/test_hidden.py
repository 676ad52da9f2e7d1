"""What is bad and could hide: behind a known finding, another file of a folder, a trace beside it, a former run."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gnnstab
from gnnstab import baseline
from gnnstab.compare import compare
from gnnstab.errors import LoadError, NothingEvaluable, TraceError
from gnnstab.records import Diagnosis, StepRow
from gnnstab.report import FORMATS, render
from gnnstab.report.summary import not_covered, state
from gnnstab.trace import Trace, TraceWriter, rank_path
from gnnstab.trace._opening import bytes_of
from models.stacks import Stack

Weights = dict[str, Tensor]


def weights(*bad: str, by: float = math.nan) -> Weights:
    """Fresh weights of two layers; these tensors are multiplied by ``by``."""
    torch.manual_seed(0)
    state = {name: tensor.clone() for name, tensor in Stack(2).state_dict().items()}
    return {name: tensor * by if name in bad else tensor for name, tensor in state.items()}


def judged(path: Path, contents: object) -> Diagnosis:
    torch.save(contents, path)
    return gnnstab.diagnose(path, heads=1)


FIRST, SECOND = "convs.0.lin_value.weight", "convs.1.lin_value.weight"


@pytest.mark.parametrize(("code", "by"), [("GS502", math.nan), ("GS605", 1e9)])
def test_a_baseline_hides_no_second_layer(tmp_path: Path, code: str, by: float) -> None:
    known, later = (judged(tmp_path / "a.pt", weights(*bad, by=by)) for bad in ((FIRST,), (FIRST, SECOND)))
    (tmp_path / "known.json").write_text(baseline.dump([known]))
    new = baseline.read(tmp_path / "known.json").apply(later)
    assert baseline.read(tmp_path / "known.json").apply(known).at_least("error") == ()
    assert [(f.code, f.layer) for f in new.at_least("error")] == [(code, "convs.1")]
    # Every format holds both, and a reader is told the sentence once.
    (said,) = {f.message for f in later.findings if f.code == code}
    text = " ".join(render(later, "text", verbose=True, width=400).split())
    assert text.count(said.rstrip(".")) == 1
    assert len(render(later, "text").splitlines()) <= 15
    assert all(render(later, format).count("convs.1") for format in FORMATS)


def folder(path: Path, **files: object) -> Path:
    path.mkdir()
    for name, contents in files.items():
        torch.save(contents, path / f"{name}.pt")
    return path


@pytest.mark.parametrize(
    ("bad", "good"), [({}, {}), ({"step": 100}, {"step": 100}), ({"step": 10}, {"step": 100}), ({}, {"step": 100})]
)
@pytest.mark.parametrize("names", [("actor", "critic"), ("adapted", "base"), ("agent_0", "agent_1")])
def test_of_several_networks_in_a_folder_none_hides_a_nan(
    tmp_path: Path, names: tuple[str, str], bad: dict[str, int], good: dict[str, int]
) -> None:
    both = folder(
        tmp_path / "bad", **{names[0]: {"model": weights(FIRST), **bad}, names[1]: {"model": weights(), **good}}
    )
    older = names[0].startswith("agent") and bad.get("step", 100) < 100
    found = [(f.code, f.layer) for f in gnnstab.diagnose(both, heads=1).at_least("error")]
    assert found == ([] if older else [("GS502", "convs.0")]), "an older state of the same file is told in a note"
    torch.save({"model": weights(), **bad}, both / f"{names[0]}.pt")
    repaired = gnnstab.diagnose(both, heads=1)
    assert repaired.at_least("error") == ()
    told = any(f"{names[0]}.pt" in part for part in not_covered(repaired))
    assert told != (names[0].startswith("agent") and not (bad and bad == good))


def test_checkpoints_beside_a_trace_are_named(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    with TraceWriter(run / "run.gnnstab"):
        pass
    alone = gnnstab.diagnose(run)
    torch.save(weights(FIRST), run / "last.pt")
    diagnosis = gnnstab.diagnose(run)
    assert not any("last.pt" in text for text in (*alone.target.notes, *not_covered(alone)))
    assert any("last.pt" in note for note in diagnosis.target.notes)
    assert any("last.pt" in part for part in not_covered(diagnosis)) and state(diagnosis) != "stable"


def test_a_comparison_of_no_number_says_so(tmp_path: Path) -> None:
    one = judged(tmp_path / "a.pt", weights())
    with pytest.raises(NothingEvaluable, match="in common"):
        compare(one, replace(one, signals=()))


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", good=weights())
    assert not any("left out" in note for note in gnnstab.diagnose(run, heads=1).target.notes)
    (run / "last.pt").symlink_to("gone/last.pt")
    (run / "saved.ckpt").mkdir()
    os.mkfifo(run / "z.pth")
    unread = [note for note in gnnstab.diagnose(run, heads=1).target.notes if note.startswith("left out")]
    assert [note.split(": ")[-1] for note in unread] == [
        "is a link to nothing",
        "is a directory; name a checkpoint file in it",
        "is not a regular file",
    ]


@pytest.mark.parametrize("asked", ["x.pt", "."])
def test_without_permission_the_line_says_so(tmp_path: Path, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(weights(), tmp_path / "x.pt")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "x.pt")

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(LoadError, match=r"x\.pt: cannot be read: Permission denied"):
        gnnstab.diagnose(tmp_path / asked)


def test_an_unfinished_trace_is_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "run.gnnstab").symlink_to(tmp_path / "run.gnnstab")
    writer = TraceWriter(tmp_path / "run.gnnstab")
    writer.step(StepRow(3, 0.0, 1.0, None, None, None))
    writer.flush()
    assert (tmp_path / "run.gnnstab-wal").stat().st_size
    for path in (tmp_path, tmp_path / "there"):
        with Trace.open(path / "run.gnnstab") as trace:
            assert list(trace.step_arrays()["step"]) == [3]
    assert bytes_of(str(tmp_path / "run.gnnstab")) == bytes_of(str(tmp_path / "there" / "run.gnnstab"))
    writer.close()


def test_a_stem_of_two_runs_is_asked_about(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "run.gnnstab"):
        pass
    with Trace.open(tmp_path / "run") as trace:
        assert trace.ranks
    with TraceWriter(rank_path(tmp_path / "run", 0)):
        pass
    with pytest.raises(TraceError, match="of two runs"):
        gnnstab.diagnose(tmp_path / "run")
    (tmp_path / "run.gnnstab").unlink()
    assert gnnstab.diagnose(tmp_path / "run").target.kind == "trace"
