"""Garbage in, one clear line out: fixed cases and random damage to real files."""

from __future__ import annotations

import os
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_geometric.nn import TransformerConv

import gnnstab
from forked import Child
from gnnstab.checkpoint import load, recover
from gnnstab.errors import LoadError
from gnnstab.probe.batches.arguments import load_batch
from strangers import rewritten

REAL = (Path(__file__).parents[1] / "data" / "informarl" / "healthy_3agents" / "actor.pt").read_bytes()

CASES = {
    "empty": (b"", "is empty"),
    "text": (b"epoch,loss\n1,2\n", "text file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "gzip": (b"\x1f\x8b" + b"0" * 40, "gzip"),
    "hdf5": (b"\x89HDF\r\n" + b"0" * 40, "HDF5"),
    "noise": (bytes(range(128, 256)) * 3, "neither a torch checkpoint"),
    "truncated": (REAL[: len(REAL) // 2], "truncated or damaged"),
    "a few bytes": (REAL[:10], "truncated or damaged"),
}


@pytest.mark.parametrize("case", CASES)
def test_says_what_the_file_is(case: str, tmp_path: Path) -> None:
    content, expected = CASES[case]
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=expected) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.pt")
    cases = {
        "missing.pt": "no such file",
        "fifo.pt": "not a regular file",
        ".": "is a directory",
        "nul\0.pt": "cannot be read",
    }
    for name, expected in cases.items():
        with pytest.raises(LoadError, match=expected):
            load(tmp_path / name)


def test_symlinks_lead_to_their_file_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "real.pt").write_bytes(REAL)
    (tmp_path / "link.pt").symlink_to("real.pt")
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    assert len(recover(load(tmp_path / "link.pt")).layers) == 3
    with pytest.raises(LoadError):
        load(tmp_path / "loop.pt")


def test_a_name_that_is_no_unicode(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"w\xff.pt")
    path.write_bytes(REAL)
    with pytest.raises(LoadError, match="has a name that is not UTF-8, which torch cannot open; rename it") as caught:
        load(path)
    assert str(caught.value).isprintable()


def test_a_file_of_a_later_torch(tmp_path: Path) -> None:
    later = rewritten(REAL, lambda name, content: b"99\n" if name.endswith("/version") else content)
    (tmp_path / "x.pt").write_bytes(later)
    for read in (load, load_batch):
        with pytest.raises(LoadError, match=r"version 99 of torch's file format, newer than .*; update gnnstab"):
            read(tmp_path / "x.pt")


NOBODY = 65534
"""User and group id without rights of their own, on every Linux."""


@pytest.mark.parametrize("closed", ["below/x.pt", "below"], ids=["file", "folder"])
def test_unreadable_file(closed: str) -> None:
    # Not below tmp_path: its parents are closed to other users, which would be refused for that reason already.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "below" / "x.pt"
        path.parent.mkdir(mode=0o755)
        path.write_bytes(REAL)
        (Path(folder) / closed).chmod(0)
        message = _refusal(path) if os.geteuid() else Child(lambda: _refusal_to_nobody(path)).result()
        path.parent.chmod(0o755)
    if message is None:
        # A file that everybody may read cannot be made unreadable: nothing is left to test.
        pytest.skip("root that may read everything and cannot become another user")
    assert f"{path}: cannot be read" in message and "\n" not in message


def _refusal(path: Path) -> str:
    with pytest.raises(LoadError) as caught:
        load(path)
    return str(caught.value)


def _refusal_to_nobody(path: Path) -> str | None:
    """Root may read everything, so a child of it gives its rights away first; None where it cannot."""
    try:
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
    except OSError:
        return None
    return _refusal(path)


@pytest.mark.parametrize(
    "header", [b"{", b'{"w":1}', b'{"w":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}']
)
def test_damaged_safetensors(header: bytes, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    with pytest.raises(LoadError, match="safetensors"):
        load(path)


def test_safetensors_data_under_a_torch_name(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"w": torch.zeros(2, 2)}, tmp_path / "x.pt")
    with pytest.raises(LoadError, match=r"named .pt but holds safetensors data; rename it to x.safetensors"):
        load(tmp_path / "x.pt")


def test_a_foreign_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    with pytest.raises(LoadError, match=r"no data.pkl"):
        load(tmp_path / "x.pt")


@settings(max_examples=40, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(1, len(REAL) - 1))
def test_truncated_anywhere(length: int, tmp_path: Path) -> None:
    """Other damage, to every kind of file: tests/security/test_fuzz.py."""
    path = tmp_path / "x.pt"
    path.write_bytes(REAL[:length])
    with pytest.raises(LoadError):
        load(path)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_written_to_while_it_is_read(replaced: bool, tmp_path: Path) -> None:
    path, other = tmp_path / "live.pt", tmp_path / "other.pt"
    torch.save(TransformerConv(4, 4).state_dict(), path)

    def saved_again(doing: str) -> None:
        if doing.startswith("probing"):
            if replaced:
                other.write_bytes(path.read_bytes() + b"more")
                os.replace(other, path)
            else:
                with path.open("ab") as stream:
                    stream.write(b"more")

    if replaced:  # What was read stays as it was.
        assert gnnstab.diagnose(path, progress=saved_again).signals
        return
    with pytest.raises(LoadError, match="written to while it was read"):
        gnnstab.diagnose(path, progress=saved_again)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_is_cut_while_it_is_read(suffix: str, tmp_path: Path) -> None:
    """What is mapped and no longer there ends a process (SIGBUS); it happens in a child, whose end is an error here."""
    path, state = tmp_path / f"live{suffix}", TransformerConv(64, 64).state_dict()
    if suffix == ".pt":
        torch.save(state, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, path)

    def body() -> str:
        values = load(path).tensors
        os.truncate(path, 10)
        return str(sum(float(value.sum()) for value in values.values()))

    assert Child(body).result(60) == str(sum(float(value.sum()) for value in state.values()))
