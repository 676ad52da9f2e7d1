"""What is bad and could hide: behind a known finding, another file of a folder, a trace beside it, a former run."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

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


def put(path: Path, **files: object) -> Path:
    """A folder of these files, ``__`` a dot in the names and ``_in_`` a folder."""
    for name, contents in files.items():
        file = path / name.replace("__", ".").replace("_in_", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(contents, file)
    return path


def moments(by: float = 1.0) -> dict[str, object]:
    state = {i: {"exp_avg": tensor * by, "step": 1} for i, tensor in enumerate(weights().values())}
    return {"state": state, "param_groups": [{"params": list(state), "lr": 1e-3}]}


BAD = weights(FIRST)


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ({"model_best__pth__tar": BAD}, {"model_best__pth__tar": weights()}),
        ({"scheduler__pt": BAD}, {"scheduler__pt": {"last_epoch": 3}}),
        ({"scaler__pt": {"scale": torch.tensor(math.nan)}}, {"scaler__pt": {"scale": torch.tensor(math.inf)}}),
        ({"optimizer__pt": {"model": BAD}}, {"optimizer__pt": {"model": weights()}}),
        ({"optimizer_1__bin": moments(math.nan)}, {"optimizer_1__bin": moments()}),
        ({"optimizer__bin": moments(), "optimizer__pt": moments(math.nan)}, {"optimizer__bin": moments()}),
        ({"optimizer__pt": {"actor": moments(math.nan)}}, {"optimizer__pt": {"actor": moments()}}),
        ({"b": {"model": weights(), "step": 0}, "optimizer__pt": moments(math.nan)}, {"optimizer__pt": moments()}),
        ({"random_states_0__pkl": {"x": [torch.full((2, 2), math.nan)]}}, {"random_states_0__pkl": {"x": [torch.ones(2)]}}),
    ],
)  # fmt: skip
def test_what_stands_beside_a_checkpoint_is_read(
    tmp_path: Path, bad: dict[str, object], good: dict[str, object]
) -> None:
    own = {"a__pt": {"model": weights(), "step": 9}}
    spoilt, repaired = (gnnstab.diagnose(put(tmp_path / name, **own, **files), heads=1) for name, files in (("bad", bad), ("good", good)))  # fmt: skip
    assert {f.code for f in spoilt.at_least("error")} == {"GS502"}
    assert repaired.at_least("error") == () and not any("left out" in note for note in repaired.target.notes)
    claims = any("the optimizer's state is" in note for note in spoilt.target.notes)
    assert claims == any("state" in str(contents)[:20] or "actor" in str(contents)[:20] for contents in bad.values())


@pytest.mark.parametrize("name", ["last__model", "b__pkl", "best", "net__bin", "a__pt__bak", "run-5_in_pytorch_model__bin"])  # fmt: skip
def test_what_holds_a_checkpoint_under_another_name_is_named(tmp_path: Path, name: str) -> None:
    run = put(tmp_path, a__pt=weights())
    (run / "log.bin").write_bytes(b"PK\3\4 no checkpoint")
    (run / "notes").mkdir()
    (run / "notes" / "text.md").write_text("a note")
    assert not any("itself" in part for part in not_covered(gnnstab.diagnose(run, heads=1)))
    put(run, bundle_in_weights__pt=BAD)
    (run / "bundle" / "event.json").write_text("{}")
    assert not any("itself" in part for part in not_covered(gnnstab.diagnose(run, heads=1))), "it is of a trace"
    put(run, **{name: BAD})
    shown = "run-5/" if "_in_" in name else name.replace("__", ".")
    diagnosis = gnnstab.diagnose(run, heads=1)
    assert any(shown in part for part in not_covered(diagnosis)) and diagnosis.exit_code() == 0
    (run / "a.pt").unlink()
    if "_in_" in name:
        with pytest.raises(LoadError, match="run-5/"):
            gnnstab.diagnose(run, heads=1)
    else:
        assert {f.code for f in gnnstab.diagnose(run, heads=1).at_least("error")} == {"GS502"}


def test_what_cannot_be_read_beside_a_checkpoint_hides_nothing_of_it(tmp_path: Path) -> None:
    run = put(tmp_path, a__pt=BAD)
    for name in ("optimizer.pt", "scheduler.pt"):
        (run / name).write_text("nothing")
    diagnosis = gnnstab.diagnose(run, heads=1)
    assert [f.layer for f in diagnosis.at_least("error")] == ["convs.0"]
    unread, beside = not_covered(diagnosis)[:2]
    assert "optimizer.pt" in unread and "scheduler.pt" in beside


@pytest.mark.parametrize(
    ("first", "second", "counted"),
    [
        ({"epoch": 100, "step": 10}, {"epoch": 101, "step": 0}, {2}),
        ({"epoch": 3, "step": 500}, {"epoch": 4, "step": 500}, {2}),
        ({"epoch": 4, "step": 10}, {"epoch": 3, "step": 90}, {1}),
        ({"step": 5}, {"step": -1}, {1, 2}),
        ({"epoch": -1, "step": 5}, {"epoch": 7, "step": 4}, {1}),
        ({"step": 5}, {"epoch": 2, "step": 4}, {1}),
    ],
)
def test_epochs_that_differ_come_before_steps(
    tmp_path: Path, first: dict[str, int], second: dict[str, int], counted: set[int]
) -> None:
    for bad in (1, 2):
        states = [{"model": weights(*[FIRST] * (bad == i)), **told} for i, told in ((1, first), (2, second))]
        run = put(tmp_path / f"{bad}", a_1__pt=states[0], a_2__pt=states[1])
        assert bool(gnnstab.diagnose(run, heads=1).at_least("error")) == (bad in counted)


def test_nothing_is_followed_over_steps_that_begin_anew(tmp_path: Path) -> None:
    def series(name: str, steps: list[int]) -> int:
        states = {f"a_{i}__pt": {"model": weights(), "epoch": i, "step": step} for i, step in enumerate(steps)}
        return len(gnnstab.diagnose(put(tmp_path / name, **states), heads=1).series)

    assert series("over", [0, 10, 20]) and not series("within", [0, 20, 10])


def test_a_known_nan_of_another_file_hides_none_of_the_newest(tmp_path: Path) -> None:
    known = gnnstab.diagnose(put(tmp_path, a_1__pt={"model": BAD}, a_2__pt={"model": weights()}), heads=1)
    (tmp_path / "known.json").write_text(baseline.dump([known]))
    accepted = baseline.read(tmp_path / "known.json")
    assert known.at_least("error") and accepted.apply(known).at_least("error") == ()
    later = gnnstab.diagnose(put(tmp_path, a_2__pt={"model": BAD}), heads=1)
    assert [f.layer for f in accepted.apply(later).at_least("error")] == ["convs.0"]


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


def test_weights_that_the_file_lacks_are_named(tmp_path: Path) -> None:
    class Headed(Stack):
        def __init__(self) -> None:
            super().__init__(2)
            self.head = nn.Linear(4, 2)

    for held, lacking in ((weights(), True), ({**weights(), **nn.Linear(4, 2).state_dict(prefix="head.")}, False)):  # fmt: skip
        torch.save(held, tmp_path / "a.pt")
        parts = not_covered(gnnstab.diagnose(tmp_path / "a.pt", model=Headed, heads=1))
        assert ("2 tensors of the model, which the file lacks" in parts) is lacking


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
