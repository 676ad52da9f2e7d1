"""Batch files come from strangers: no code of theirs runs, and none of them costs more than it is worth."""

from __future__ import annotations

import io
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gnnstab.cli.group import run as command
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.transforms import ToUndirected

from effort import at_most
from gnnstab.errors import GnnstabError, LoadError, UnsafeFileError
from gnnstab.probe.batches.arguments import load_batch
from strangers import compressed, rewritten


def stored(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def plain() -> dict[str, Any]:
    return {"x": torch.ones(3, 2), "edge_index": torch.tensor([[0, 1], [1, 2]])}


def hetero() -> HeteroData:
    data = HeteroData()
    data["user"].x = torch.ones(3, 2)
    data["user", "knows", "user"].edge_index = torch.tensor([[0, 1], [1, 2]])
    return data


HIDING_PLACES: dict[str, Callable[[Any], Any]] = {
    "alone": lambda payload: payload,
    "in a dict": lambda payload: {**plain(), "loss": payload},
    "as a key's value, nested": lambda payload: {**plain(), "meta": [{"a": (1, payload)}]},
    "in a Data": lambda payload: Data(**plain(), extra=payload),
    "beside the store of a Data": lambda payload: _with_state(Data(**plain()), payload),
    "in a HeteroData": lambda payload: _with_attribute(hetero(), payload),
}


def _with_state(data: Data, payload: Any) -> Data:
    data.__dict__["_edge_attr_cls"] = payload
    return data


def _with_attribute(data: HeteroData, payload: Any) -> HeteroData:
    data["user"].extra = payload
    return data


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}], ids=str)
@pytest.mark.parametrize("place", HIDING_PLACES)
def test_code_in_a_batch_never_runs(
    place: str, options: dict[str, Any], payload: Any, marker: Path, tmp_path: Path
) -> None:
    path = tmp_path / "batch.pt"
    path.write_bytes(stored(HIDING_PLACES[place](payload), **options))
    with pytest.raises(UnsafeFileError, match=r"running code from the file \(it imports .*mkdir") as caught:
        load_batch(path)
    assert "--unsafe-load" in str(caught.value) and "\n" not in str(caught.value)
    assert not marker.exists()


def test_the_payload_works_where_it_is_allowed_to(payload: Any, marker: Path, tmp_path: Path) -> None:
    path = tmp_path / "batch.pt"
    path.write_bytes(stored(HIDING_PLACES["in a Data"](payload)))
    load_batch(path, unsafe=True)
    assert marker.exists()


def test_a_plain_pickle_is_refused(payload: Any, marker: Path, tmp_path: Path) -> None:
    path = tmp_path / "batch.pt"
    for protocol in range(6):
        path.write_bytes(pickle.dumps({"x": payload}, protocol=protocol))
        with pytest.raises(LoadError):
            load_batch(path)
    assert not marker.exists()


def test_the_command_line_refuses_it_in_one_line(
    payload: Any, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "networks.py").write_text(
        "from torch_geometric.nn import TransformerConv\n\n\ndef make():\n    return TransformerConv(2, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    from torch_geometric.nn import TransformerConv

    torch.save(TransformerConv(2, 2).state_dict(), "model.pt")
    Path("batch.pt").write_bytes(stored({**plain(), "note": payload}))
    arguments = ["diagnose", "model.pt", "--model", "networks:make", "--batch", "batch.pt"]
    assert command(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if "error" in line]) == 1 and "running code" in " ".join(lines)
    assert not any("Traceback" in line for line in lines)
    assert not marker.exists()


@pytest.mark.parametrize(
    "batch",
    [
        plain(),
        tuple(plain().values()),
        [plain(), plain()],
        Data(**plain()),
        hetero(),
        ToUndirected()(
            Data(**plain())
        ),  # A Data that was asked which of its attributes are of nodes remembers the answer.
        ToUndirected()(hetero()),
        Batch.from_data_list([ToUndirected()(Data(**plain()))] * 2),
    ],
    ids=lambda b: type(b).__name__,
)
def test_ordinary_batches_are_read(batch: Any, tmp_path: Path) -> None:
    torch.save(batch, tmp_path / "batch.pt")
    assert type(load_batch(tmp_path / "batch.pt")) is type(batch)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}], ids=str)
@pytest.mark.parametrize("graph", [Data(**plain()), hetero()], ids=lambda g: type(g).__name__)
def test_a_pyg_batch_is_read_without_its_code(graph: Any, options: dict[str, Any], tmp_path: Path) -> None:
    batch = Batch.from_data_list([graph, graph])
    torch.save(batch, tmp_path / "batch.pt", **options)
    found = load_batch(tmp_path / "batch.pt")
    assert type(found) is type(batch) and str(found) == str(batch) and found.num_graphs == 2
    assert str(found.get_example(1)) == str(graph)


class Strange(Data):
    """A class of somebody's own."""


def test_a_container_of_another_class_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__, types.ModuleType(__name__)))
    monkeypatch.setattr(sys.modules[__name__], "Strange", Strange, raising=False)
    torch.save(Strange(**plain()), tmp_path / "batch.pt")
    with pytest.raises(UnsafeFileError, match=r"Strange.*save a dict of tensors or a PyG Data instead"):
        load_batch(tmp_path / "batch.pt")


def test_a_compressed_archive_is_refused_unread(tmp_path: Path) -> None:
    """torch would unpack it: 20 MB out of 20 kB here, as many gigabytes as an attacker likes elsewhere."""
    path = tmp_path / "batch.pt"
    path.write_bytes(compressed(stored({"x": torch.zeros(5_000_000)})))
    assert path.stat().st_size < 50_000
    with pytest.raises(LoadError, match=r"compressed .* possible zip bomb"):
        load_batch(path)


@pytest.mark.parametrize(
    "content",
    [
        {"x": torch.ones(1).expand(10**6, 10**6)},
        [torch.ones(1000).expand(10**7, 1000)],
        Data(x=torch.ones(1, 64).expand(10**8, 64)),
    ],
    ids=["dict", "list", "Data"],
)
def test_tensors_that_declare_more_than_they_store(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "batch.pt")
    with pytest.raises(LoadError, match=r"its tensors declare more than \d+ MiB"):
        load_batch(tmp_path / "batch.pt")


def test_many_views_of_one_storage(tmp_path: Path) -> None:
    whole = torch.ones(1 << 18)
    torch.save([whole[i:] for i in range(1000)], tmp_path / "batch.pt")
    with pytest.raises(LoadError, match="declare more than"):
        load_batch(tmp_path / "batch.pt")


def test_nesting(tmp_path: Path) -> None:
    content: Any = torch.ones(1)
    for _ in range(200):
        content = [content]
    torch.save(content, tmp_path / "batch.pt")
    with pytest.raises(LoadError, match="nested deeper than 50 levels"):
        load_batch(tmp_path / "batch.pt")


def test_a_list_that_holds_itself(tmp_path: Path) -> None:
    content: list[Any] = [torch.ones(1)]
    content.append(content)
    torch.save(content, tmp_path / "batch.pt")
    with pytest.raises(LoadError, match="nested deeper"):
        load_batch(tmp_path / "batch.pt")


def test_lists_that_double_at_every_level(tmp_path: Path) -> None:
    content: Any = [1]
    for _ in range(40):
        content = [content, content]
    torch.save(content, tmp_path / "batch.pt")
    with at_most(calls=30_000_000), pytest.raises(LoadError, match="holds more than 1000000 things"):
        load_batch(tmp_path / "batch.pt")


def test_calls_that_fill_the_memory(tmp_path: Path) -> None:
    """`bytearray(n)` is among the calls that torch's restricted unpickler makes."""
    path = tmp_path / "batch.pt"
    body = b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."
    honest = stored({"x": torch.zeros(2)})
    path.write_bytes(rewritten(honest, lambda name, data: body if name.endswith("data.pkl") else data))
    with pytest.raises(LoadError, match="can fill the memory"):
        load_batch(path)


def test_a_container_with_wrong_insides(tmp_path: Path) -> None:
    for name, value in (("_store", None), ("_store", 7), ("_store", {"x": 1}), ("_store", [])):
        data = Data(**plain())
        data.__dict__[name] = value
        torch.save(data, tmp_path / "batch.pt")
        with pytest.raises(LoadError, match=r"batch .*: (holds a damaged Data|not a file written)"):
            load_batch(tmp_path / "batch.pt")


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9, 0.999])
def test_truncated(share: float, tmp_path: Path) -> None:
    whole = stored(plain())
    (tmp_path / "batch.pt").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(LoadError) as caught:
        load_batch(tmp_path / "batch.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pipe", "folder", "nothing", "loop", "x\0y", "a\nb\x1b[31m"])
def test_what_is_no_regular_file(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(GnnstabError) as caught:
        load_batch(tmp_path / name)
    assert str(caught.value).isprintable()
