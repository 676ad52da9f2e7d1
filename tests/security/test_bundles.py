"""Bundles come from strangers, in issue reports above all: every file of the folder is read like a batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from gnnstab.cli.group import run as command
from torch import nn
from torch_geometric import EdgeIndex
from torch_geometric.nn import TransformerConv

from gnnstab.errors import LoadError, UnsafeFileError
from gnnstab.probe.attaching.forward_tracker import ForwardInputs
from gnnstab.probe.replaying import bundle
from gnnstab.probe.replaying.replica import Autocast, rng_snapshot
from gnnstab.records import Event
from strangers import compressed


def test_a_whole_bundle_is_read(folder: Path) -> None:
    found = bundle.read(folder)
    assert (
        torch.equal(found.inputs.args[0], torch.ones(3, 4))
        and found.event["step"] == 3
        and "lin_key.weight" in found.weights
    )


def test_a_subclass_of_tensor_needs_no_code_to_be_read_again(tmp_path: Path) -> None:
    """PyG's EdgeIndex is stored as the numbers that it wraps."""
    model, edges = TransformerConv(4, 4), EdgeIndex([[0, 1], [1, 2]], sparse_size=(3, 3))
    inputs = ForwardInputs(
        (torch.ones(3, 4), edges), {}, rng_snapshot(), Autocast("cpu", torch.bfloat16, False), "train"
    )
    found = bundle.read(bundle.write(tmp_path / "b", model, inputs, Event(3, "non-finite"), []))
    assert type(found.inputs.args[1]) is torch.Tensor and found.inputs.args[1].tolist() == [[0, 1], [1, 2]]


@pytest.mark.parametrize("name", ["batch.pt", "rng.pt", "weights.pt"])
def test_code_in_a_bundle_never_runs(folder: Path, name: str, payload: Any, marker: Path) -> None:
    content = torch.load(folder / name, weights_only=True)
    torch.save({**content, "more": payload}, folder / name)
    with pytest.raises(UnsafeFileError, match=r"running code from the file \(it imports .*mkdir"):
        bundle.read(folder)
    assert not marker.exists()


def test_the_command_line_refuses_it_in_one_line(
    folder: Path, payload: Any, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"args": (payload,), "kwargs": {}}, folder / "batch.pt")
    assert command(["replay", str(folder)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "running code" in line and not marker.exists()


@pytest.mark.parametrize("name", ["batch.pt", "rng.pt", "weights.pt"])
def test_a_compressed_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(compressed((folder / name).read_bytes()))
    with pytest.raises(LoadError, match="possible zip bomb"):
        bundle.read(folder)


@pytest.mark.parametrize("name", ["batch.pt", "weights.pt"])
def test_a_number_that_is_repeated_without_end_is_refused(folder: Path, name: str) -> None:
    """A model would compute with every one of them; some that are repeated, as of a mask, are read."""
    content = torch.load(folder / name, weights_only=True)
    for rows in (1000, 200_000):
        repeated = torch.ones(1, 4).expand(rows, 4)
        more = {"args": (repeated, *content["args"][1:])} if name == "batch.pt" else {"more": [repeated, repeated]}
        torch.save({**content, **more}, folder / name)
        if rows == 1000:
            assert name == "weights.pt" or bundle.read(folder).inputs.args[0].shape == (rows, 4)
            continue
        with pytest.raises(LoadError, match=r"repeat their entries \(expand\) declare 3200000 bytes"):
            bundle.read(folder)


@pytest.mark.parametrize("name", ["event.json", "layers.json", "batch.pt", "rng.pt", "weights.pt"])
@pytest.mark.parametrize("kind", ["missing", "pipe", "device", "folder", "huge"])
def test_what_is_no_regular_file(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as stream:
            stream.truncate(10**12)
    with pytest.raises(LoadError) as caught:
        bundle.read(folder)
    assert name in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("event.json", '{"event": {}, "mode": "train", "autocast": ["cpu", "load", true], "left_out": []}'),
        ("event.json", '{"event": {}, "mode": "train", "autocast": ["cpu", "__class__", true], "left_out": []}'),
        ("event.json", "[" * 100_000),
        ("layers.json", '["text"]'),
        ("layers.json", "7"),
    ],
)
def test_wrong_values(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(LoadError, match="bundle"):
        bundle.read(folder)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "a str stands where a tensor belongs"),
        (nn.parameter.UninitializedParameter(), "a tensor without numbers"),
        (torch.empty(4, 4, device="meta"), "a tensor without numbers"),
    ],
    ids=["text", "uninitialised", "meta"],
)
def test_weights_that_are_no_tensors(value: Any, expected: str, folder: Path) -> None:
    torch.save({"lin_key.weight": value}, folder / "weights.pt")
    with pytest.raises(LoadError, match=expected):
        bundle.read(folder)


@pytest.mark.parametrize("name", ["batch.pt", "rng.pt", "weights.pt"])
def test_a_storage_where_a_dict_belongs(folder: Path, name: str) -> None:
    """Looking into one makes torch warn."""
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.ones(3).untyped_storage(), dtype=torch.float32, _internal=True
    )
    torch.save(storage, folder / name)
    with pytest.raises(LoadError, match="bundle"):
        bundle.read(folder)
