"""Pickles written by hand to cost more than they are worth: each is refused in one line, and costs this process nothing."""

from __future__ import annotations

import io
import os
import pickle
import re
import signal
import struct
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gnnstab.cli.group import run as command
from torch_geometric.nn import TransformerConv

import readers
from attacks import ATTACKS, call, storage, tensor, text, written
from effort import within
from gnnstab.checkpoint import load, recover
from gnnstab.errors import LoadError, UnsafeFileError
from gnnstab.probe.batches.arguments import load_batch
from gnnstab.unpickling import guard


@pytest.mark.parametrize("read", [load, load_batch])
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_cost_one_line(name: str, read: Callable[..., Any], tmp_path: Path) -> None:
    body, expected = ATTACKS[name]
    path = written(tmp_path / "x.pt", body)
    with within(5), pytest.raises(LoadError) as caught:
        read(path)
    assert re.search(expected, str(caught.value))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ATTACKS)
def test_the_rules_hold_without_a_child(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a platform without processes that can be forked gets."""
    monkeypatch.setattr(guard, "available", lambda: False)
    with within(10), pytest.raises(LoadError, match=ATTACKS[name][1]):
        load(written(tmp_path / "x.pt", ATTACKS[name][0]))


def test_the_files_written_here_are_healthy_otherwise(tmp_path: Path) -> None:
    found = load(written(tmp_path / "x.pt", tensor((2, 2), (1, 2))))
    assert found.tensors["w"].tolist() == [[1.0, 2.0], [3.0, 4.0]] and found.tensors["x"].tolist() == [[1, 3], [2, 4]]


CALLED = [
    "posix.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "importlib.import_module",
    "torch.hub.load",
]


@pytest.mark.parametrize("name", [*CALLED, "operator.methodcaller", "types.CodeType", "somebodys.function"])
def test_what_would_run_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeFileError, match=re.escape(name)):
        load(written(tmp_path / "x.pt", call(name, text("true"))))


def test_a_method_that_is_looked_up_is_called_as_little(tmp_path: Path) -> None:
    body = b"cbuiltins\ngetattr\n(cposix\nDirEntry\n" + text("system") + b"tR(" + text("true") + b"tR"
    with pytest.raises(UnsafeFileError, match=r"posix\.DirEntry\.system"):
        load(written(tmp_path / "x.pt", body))


@pytest.mark.parametrize("member", ["a/data.pkl", "a/data/0", "A/DATA/0", "b/data.pkl"])
def test_two_members_of_one_name(member: str, tmp_path: Path) -> None:
    """The check would read one, torch the other."""
    path = written(tmp_path / "x.pt", b"N")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive, pytest.warns() if member[0] == "a" else _quiet():
        archive.writestr(member, b"\x80\x02}.")
    for read in (load, load_batch):
        with pytest.raises(LoadError, match="has two"):
            read(path)


@pytest.mark.parametrize("order", ["little", "big"])
def test_views_of_one_storage_are_copied_once(order: str, tmp_path: Path) -> None:
    """It may have to be aligned, or turned into the byte order of this machine."""
    numbers = struct.pack("<8f" if order == "little" else ">8f", *range(8))
    description = b"\x80\x02}("
    for start in range(8):
        view = text("v") + b"K" + bytes([start]) + b"K" + bytes([8 - start]) + b"\x87"
        of = storage(8).removesuffix(b"tQ") + view + b"tQ"
        description += text(f"w{start}") + call("torch._utils._rebuild_tensor", of, b"K\x00K\x01\x85K\x01\x85")
    for pad in range(4):
        with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("a" * (pad + 1) + "/data.pkl", description + b"u.")
            archive.writestr("a" * (pad + 1) + "/byteorder", order.encode())
            archive.writestr("a" * (pad + 1) + "/data/0", numbers)
        found = load(tmp_path / "x.pt").tensors
        assert [found[f"w{start}"].item() for start in range(8)] == list(range(8))
        assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 1


@pytest.mark.parametrize("value", [0, 1, 2**15, 2**31, 2**32 - 1])
@pytest.mark.parametrize("field", [8, 16, 42], ids=["flags", "checksum", "place"])
@pytest.mark.parametrize("member", [0, 1, 2], ids=["pickle", "version", "data"])
def test_a_directory_that_lies(
    member: int, field: int, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a child, whose end would be told in one line as well."""
    monkeypatch.setattr(guard, "available", lambda: False)
    raw = bytearray(written(tmp_path / "x.pt", b"N").read_bytes())
    entry = [match.start() for match in re.finditer(b"PK\x01\x02", raw)][member]
    size = 2 if field == 8 else 4
    raw[entry + field : entry + field + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
    (tmp_path / "x.pt").write_bytes(raw)
    try:
        found = load(tmp_path / "x.pt").tensors["w"].tolist()
    except LoadError as error:
        found = str(error)
    assert found == [[1.0, 2.0], [3.0, 4.0]] or re.search("damaged|does not lie where|the file has", str(found))


def _quiet() -> Any:
    import contextlib

    return contextlib.nullcontext()


def legacy(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _end_of_pickles(raw: bytes) -> int:
    stream = io.BytesIO(raw)
    for _ in range(3):
        pickle.load(stream)
    place = raw.index(b".", stream.tell())
    while True:  # The list of keys is the last pickle: the shortest cut that torch's own reader can begin with.
        try:
            stream.seek(place + 1)
            keys = pickle.load(stream)
            if isinstance(keys, list) and keys and all(isinstance(key, str) for key in keys):
                return stream.tell()
        except Exception:
            pass
        place = raw.index(b".", place + 1)


@pytest.mark.parametrize("kept", [0, 8, 20])
def test_a_legacy_file_without_its_data(kept: int, tmp_path: Path) -> None:
    """What torch leaves in memory of its own would be judged in the place of weights."""
    raw = legacy(TransformerConv(8, 8).state_dict())
    (tmp_path / "x.pt").write_bytes(raw[: _end_of_pickles(raw) + kept])
    for read in (load, load_batch):
        with pytest.raises(LoadError, match=r"the file has \d+ of them|does not fit the storages"):
            read(tmp_path / "x.pt")


def test_a_legacy_file_whose_storages_are_not_listed(tmp_path: Path) -> None:
    raw = legacy({"w": torch.ones(2, 2)})
    end = _end_of_pickles(raw)
    start = raw.rindex(b"\x80\x02]", 0, end)
    (tmp_path / "x.pt").write_bytes(raw[:start] + b"\x80\x02].")
    with pytest.raises(LoadError, match="declares 16 bytes, the file has 0"):
        load(tmp_path / "x.pt")


def test_a_tensor_with_attributes_becomes_a_plain_one(tmp_path: Path) -> None:
    weight = torch.rand(2, 2)
    weight.numel = "text"  # type: ignore[assignment,method-assign]
    torch.save({"w": weight}, tmp_path / "x.pt")
    found = load(tmp_path / "x.pt").tensors["w"]
    assert type(found) is torch.Tensor and found.numel() == 4 and not found.__dict__


@pytest.mark.parametrize("name", ["checkpoint", "batch", "bundle rng"])
def test_torchs_own_reader_sees_no_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had CVE-2026-24747 before torch 2.10, and gnnstab runs with torch 2.6."""
    reader = readers.READERS[name]
    seeds = reader.seeds()

    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", never)
    monkeypatch.setattr(torch.serialization, "load", never)
    for content in seeds.values():
        readers.attempt(reader, content, tmp_path)


def test_one_file_does_not_end_the_diagnosis_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        torch.save({"model": TransformerConv(8, 8).state_dict(), "step": step}, tmp_path / f"step-{step}.pt")
    written(tmp_path / "step-3.pt", ATTACKS["nested tuples as a key"][0])
    assert command(["diagnose", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "step-3.pt" in said.out + said.err and "TransformerConv" in said.out


# What nobody thought of: a reader that does the worst, in the place of the one that keeps the rules.


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def spin() -> None:
    while True:
        pass


def eat() -> None:
    held = []
    while True:
        held.append(bytearray(2**24))


def overflow() -> None:
    nested: Any = ()
    for _ in range(2_000_000):
        nested = (nested,)
    hash(nested)


def leave() -> None:
    os._exit(0)


@pytest.mark.parametrize(
    ("worst", "expected"),
    [
        (crash, r"brings down the process that looks at it \(signal 11\)"),
        (spin, "takes more than 1 s to look through"),
        (eat, "asks for more memory"),
        (overflow, "brings down the process|asks for more memory"),
        (leave, "brings down the process"),
        (lambda: 1 / 0, r"damaged \(ZeroDivisionError\)"),
    ],
    ids=["crash", "spin", "eat", "overflow", "leave", "raise"],
)
def test_whatever_happens_in_the_child_costs_one_line(
    worst: Callable[[], object], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if worst is spin:  # The others come to their end by themselves, whenever the machine lets them.
        monkeypatch.setattr(guard, "SECONDS", 1)
    with pytest.raises(LoadError, match=f"file.pt: .*{expected}"):
        guard.look_first("file.pt", 1000, worst)


def test_a_child_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "WAITING", 0.3)
    started = time.monotonic()
    with pytest.raises(LoadError, match="takes more than"):
        guard.look_first("file.pt", 1000, lambda: time.sleep(100))
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("error", [LoadError("said so"), UnsafeFileError("said so")], ids=lambda e: type(e).__name__)
def test_the_child_tells_what_it_refused(error: LoadError) -> None:
    def refuse() -> None:
        raise error

    with pytest.raises(type(error), match=r"^said so$"):
        guard.look_first("file.pt", 1000, refuse)


def test_a_system_that_makes_no_more_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules alone then hold."""

    def none() -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", none)
    guard.look_first("file.pt", 1000, crash)


def test_settings_of_every_kind_are_read_as_records(tmp_path: Path) -> None:
    """Nothing of their classes has to be at hand."""
    body = b"cmine\nConfig\n)\x81}(" + text("heads") + b"K\x04" + text("deep") + b"cmine\nDeep\n)\x81ub"
    description = b"\x80\x02}(" + text("config") + body + text("state_dict") + b"}" + text("w") + tensor() + b"su."
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a/data.pkl", description)
        archive.writestr("a/data/0", struct.pack("<4f", 1, 2, 3, 4))
    found = load(tmp_path / "x.pt")
    assert found.settings == {"config.heads": 4} and list(found.tensors) == ["w"]


def _of_every_kind() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Some of these are old, some new.
        return {
            "per tensor": torch.quantize_per_tensor(torch.rand(3, 4), 0.1, 0, torch.qint8),
            "per channel": torch.quantize_per_channel(
                torch.rand(3, 4), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 1, 2]), 0, torch.quint8
            ),
            "coo": torch.eye(4).to_sparse(),
            "csr": torch.eye(4).to_sparse_csr(),
            "csc": torch.eye(4).to_sparse_csc(),
            "bsr": torch.eye(4).to_sparse_bsr((2, 2)),
            "nested": torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)]),
            "conjugate": torch.tensor([1 + 2j]).conj(),
            "negative": torch.tensor([1 + 2j]).conj().imag,
            "parameter": torch.nn.Parameter(torch.ones(2)),
        }


def test_tensors_of_every_kind_are_read(tmp_path: Path) -> None:
    """No healthy file is refused for what it holds beside plain weights."""
    content = _of_every_kind()
    torch.save(content, tmp_path / "x.pt")
    found = load(tmp_path / "x.pt").tensors
    assert torch.equal(found["per channel"].dequantize(), content["per channel"].dequantize())
    assert torch.equal(found["per tensor"].dequantize(), content["per tensor"].dequantize())
    assert all(found[name].to_dense().equal(torch.eye(4)) for name in ("coo", "csr", "csc", "bsr"))
    assert [part.tolist() for part in found["nested"].unbind()] == [
        part.tolist() for part in content["nested"].unbind()
    ]
    assert found["conjugate"].tolist() == [1 - 2j] and found["negative"].tolist() == [-2.0]
    assert type(found["parameter"]) is torch.Tensor and not found["parameter"].requires_grad


def test_sparse_indices_beyond_the_shape_are_refused(tmp_path: Path) -> None:
    wild = torch.sparse_coo_tensor(torch.tensor([[0, 9]]), torch.ones(2), (4,), check_invariants=False)
    torch.save({"w": torch.ones(2, 2), "x": wild}, tmp_path / "x.pt")
    with pytest.raises(LoadError, match="a sparse tensor cannot be built"):
        load(tmp_path / "x.pt")


def test_tensors_see_the_bytes_of_their_file(tmp_path: Path) -> None:
    """Of every way to store them; two names of one storage stay one."""
    whole = torch.arange(12.0).view(3, 4)
    content = OrderedDict(a=whole, b=whole.t(), c=whole[1:, ::2], half=whole.half(), e=torch.zeros(0, 3))
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(content, tmp_path / "x.pt", **options)
        found = load(tmp_path / "x.pt").tensors
        assert all(torch.equal(found[name], tensor) for name, tensor in content.items())
        assert found["a"].untyped_storage().data_ptr() == found["b"].untyped_storage().data_ptr()
    assert recover(load(tmp_path / "x.pt")).layers == ()
