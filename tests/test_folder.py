"""A folder of checkpoints is read one file at a time: what is told of all of them, of some, and of the last alone."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch

import gnnstab
from gnnstab.errors import LoadError
from gnnstab.observation import _folders as subject
from gnnstab.records import Diagnosis
from gnnstab.report import render
from models.stacks import Stack

FILES = 7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of a run whose weights grow; the highest step is not the last name."""
    torch.manual_seed(0)
    model = Stack(2)
    for i in range(FILES):
        with torch.no_grad():
            model.convs[0].lin_query.weight *= 1.1
        step = 100 * (FILES if i == 2 else i)
        torch.save({"state_dict": model.state_dict(), "step": step}, tmp_path / f"{i}.pt")
    return tmp_path


def points(diagnosis: Diagnosis, name: str) -> set[int]:
    """In how many checkpoints a number was followed, over layers and heads."""
    return {len(series.steps) for series in diagnosis.series if series.name == name}


def test_few_checkpoints_are_all_probed(folder: Path) -> None:
    seen: list[str] = []
    diagnosis = gnnstab.diagnose(folder, heads=1, progress=seen.append)
    assert points(diagnosis, "logit.frobenius") == points(diagnosis, "score.within_std") == {FILES}
    assert [text for text in seen if text[0].isdigit()] == [f"{i + 1}/{FILES} {i}.pt" for i in range(FILES)]
    assert not any("evenly" in note for note in diagnosis.target.notes)


def test_of_many_some_are_probed_and_the_newest_always(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gnnstab.diagnose(folder, heads=1)
    monkeypatch.setattr(subject, "MOST_PROBED", 3)
    diagnosis = gnnstab.diagnose(folder, heads=1)
    assert points(diagnosis, "logit.frobenius") == {FILES}, "what the weights show is followed through all files"
    assert points(diagnosis, "score.within_std") == {4}, "first, middle and last name, and the highest step"
    assert any("probed on synthetic graphs: 3 of the 7 checkpoints, evenly spread" in n for n in diagnosis.target.notes)
    assert [s.value for s in diagnosis.signals] == [s.value for s in whole.signals], "the newest is judged in full"


def test_what_holds_for_many_files_is_told_once(folder: Path) -> None:
    (folder / "3.pt").write_bytes(b"epoch,loss\n1,2\n")
    notes = gnnstab.diagnose(folder, heads=1).target.notes
    assert [n for n in notes if "entry" in n] == [f"0.pt and {FILES - 2} more: read from the entry 'state_dict'"]
    (left_out,) = [n for n in notes if "left out" in n]
    assert left_out.startswith("left out 3.pt: ") and "text file" in left_out


def test_files_that_cannot_be_read_are_named_up_to_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MOST_LEFT_OUT", 2)
    for i in range(2, FILES):
        (folder / f"{i}.pt").write_bytes(b"epoch,loss\n1,2\n")
    notes = gnnstab.diagnose(folder, heads=1).target.notes
    assert [n.partition(": ")[0] for n in notes if "left out" in n] == [
        "left out 2.pt",
        "left out 3.pt",
        "left out 3 more",
    ]
    for i in range(2):
        (folder / f"{i}.pt").write_bytes(b"")
    with pytest.raises(LoadError, match=r"none of its 7 checkpoints could be read; the first: left out 0\.pt"):
        gnnstab.diagnose(folder, heads=1)


@pytest.mark.parametrize(("count", "most"), [(1, 3), (3, 3), (10, 3), (1000, 100)])
def test_an_even_choice_has_both_ends(count: int, most: int) -> None:
    chosen = sorted(subject._evenly(count, most))
    assert len(chosen) == min(count, most) and (chosen[0], chosen[-1]) == (0, count - 1)
    gaps = [b - a for a, b in itertools.pairwise(chosen)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_the_state_that_deepspeed_keeps_for_each_rank_belongs_to_the_weights_beside_it(
    bad: bool, flat: bool, tmp_path: Path
) -> None:
    """By parameter, or one flat part for each rank; what stands in it counts as in any optimizer's file."""
    torch.manual_seed(0)
    model = Stack(2)
    weights = [torch.nn.Parameter(torch.randn(500))] if flat else list(model.parameters())
    optimizer = torch.optim.Adam(weights, foreach=False)
    sum((p.square().sum() for p in weights), torch.zeros(())).backward()
    optimizer.step()
    state = optimizer.state_dict()
    if bad:
        state["state"][0]["exp_avg"].fill_(torch.nan)
    torch.save(
        {"module": model.state_dict(), "optimizer": None, "global_steps": 1}, tmp_path / "mp_rank_00_model_states.pt"
    )
    kept = {"base_optimizer_state": state, "single_partition_of_fp32_groups": [torch.randn(500)], "loss_scaler": 1}
    for rank in range(2):
        torch.save({"optimizer_state_dict": kept}, tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    diagnosis = gnnstab.diagnose(tmp_path)
    assert not [note for note in diagnosis.target.notes if "left out" in note or "not read" in note]
    assert {f.code for f in diagnosis.at_least("warning")} == ({"GS502"} if bad else set())


def test_a_file_that_was_left_out_is_named_once(folder: Path) -> None:
    torch.save({"epoch": 3}, folder / "3.pt")
    (left_out,) = [n for n in gnnstab.diagnose(folder, heads=1).target.notes if "left out" in n]
    assert left_out.startswith("left out 3.pt: holds an object")


def test_a_fold_that_ended_earlier_is_no_older_state_of_another_one(tmp_path: Path) -> None:
    for i in range(3):
        torch.manual_seed(i)
        model = Stack(2)
        if i == 1:
            model.convs[0].lin_query.weight.data[0, 0] = torch.nan
        torch.save({"state_dict": model.state_dict(), "step": 50 if i == 1 else 60}, tmp_path / f"cv_fold{i}.pt")
    diagnosis = gnnstab.diagnose(tmp_path, heads=1)
    assert any(finding.code == "GS502" for finding in diagnosis.findings)
    assert not diagnosis.series, "nothing is followed over folds"
    assert "names tell of several trainings" in diagnosis.target.notes[0]


def test_one_line_says_how_many_files_were_not_judged(tmp_path: Path) -> None:
    for name in ("swa.pt", "z.pt"):
        torch.save(Stack(2).state_dict(), tmp_path / name)
    diagnosis = gnnstab.diagnose(tmp_path, heads=1)
    assert "1 file not judged; " in render(diagnosis, "text", brief=True)


def test_an_order_by_time_is_told(tmp_path: Path) -> None:
    for name in ("rmse1.9.pt", "rmse1.2.pt"):
        torch.save(Stack(2).state_dict(), tmp_path / name)
    os.utime(tmp_path / "rmse1.9.pt", ns=(0, 0))
    (said, *_) = gnnstab.diagnose(tmp_path, heads=1).target.notes
    assert "the newest is rmse1.2.pt; by the times of files, since names tell no order: rmse1.9.pt, rmse1.2.pt" in said


def test_a_folder_copied_from_a_mac_is_judged(folder: Path) -> None:
    (folder / "._5.pt").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    diagnosis = gnnstab.diagnose(folder, heads=1)
    assert "left_out" not in diagnosis.context
    assert "passed over, as file systems write them beside files: ._5.pt" in diagnosis.target.notes[0]
