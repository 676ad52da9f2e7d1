from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from gnnstab.checkpoint import files_in


def test_checkpoints_in_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("step_10.pt", "step_9.pt", "step_100.ckpt", "notes.txt", "a2.pth", "a10.safetensors", "²3.pt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "c1.pt").mkdir()
    (tmp_path / "c2.pt").symlink_to("nowhere")
    names = [path.name for path in files_in(tmp_path).checkpoints]
    assert names == ["a2.pth", "a10.safetensors", "c1.pt", "c2.pt", "step_9.pt", "step_10.pt", "step_100.ckpt", "²3.pt"]


@pytest.mark.parametrize(
    "names",
    [
        ["gat_it900.pt", "gat_it5k.pt", "gat_it1.5M.pt", "gat_it2M.pt", "gat_it1B.pt"],
        ["it2e3.ckpt", "it9e3.ckpt", "it1e4.ckpt", "it2.5E+4.ckpt"],
        ["auc=0.91-epoch=3.ckpt", "auc=0.72-epoch=12.ckpt"],
    ],
)
def test_numbers_in_names_are_read_as_they_are_meant(tmp_path: Path, names: list[str]) -> None:
    for name in reversed(names):
        (tmp_path / name).write_bytes(b"x")
    found = files_in(tmp_path)
    assert [path.name for path in found.checkpoints] == names
    assert not found.by_time


@pytest.mark.parametrize(
    "names",
    [["gat_mae2.31.pt", "gat_mae1.02.pt"], ["0.7.pt", "0.88.pt", "0.81.pt"], ["net_seed7.pt", "net_seed1.pt"]],
)
def test_names_that_tell_no_order_take_that_of_their_times(tmp_path: Path, names: list[str]) -> None:
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, ns=(i, i))
    found = files_in(tmp_path)
    assert [path.name for path in found.checkpoints] == found.by_time == names


def test_what_file_systems_keep_beside_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "._meant.pt")
    foreign = ["._gat_2.pt", "._gat_2.safetensors", "._optimizer.pt", "gat_2.pt:Zone.Identifier"]
    for name in ("gat_2.pt", *foreign):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    found = files_in(tmp_path)
    assert [path.name for path in found.checkpoints] == ["._meant.pt", "gat_2.pt"]
    assert (found.foreign, found.beside, found.others) == (foreign, [], [])
