"""Files made to fill memory, disk or time: refused or handled within the stated limits."""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.nn import TransformerConv

from effort import at_most
from gnnstab import archive
from gnnstab.checkpoint import _containers as containers
from gnnstab.checkpoint import _recovery, _sniffing, _tally, _tensor_scan, load, recover
from gnnstab.checkpoint._loading import Checkpoint
from gnnstab.checkpoint._naming import LONGEST_KEY, Unique
from gnnstab.checkpoint._reading import MOST_ENTRIES
from gnnstab.checkpoint._tensor_scan import scan_tensors
from gnnstab.errors import LoadError
from gnnstab.records import LayerFacts, Signal, Signals
from gnnstab.unpickling import guard
from strangers import rewritten

Save = Callable[..., Path]


def test_zip_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(LoadError, match="zip bomb"):
        load(tmp_path / "x.pt")


def test_members_that_overlap(saved: Save) -> None:
    """Two directory entries over the same bytes claim more than the file holds."""
    path = saved({"w": torch.rand(300, 300)})
    with zipfile.ZipFile(path, "a") as opened:
        large = max(opened.infolist(), key=lambda m: m.file_size)
        for number in range(3):
            twin = zipfile.ZipInfo(f"archive/data/9{number}")
            twin.header_offset = large.header_offset
            twin.file_size = twin.compress_size = large.file_size
            twin.CRC, twin.compress_type = large.CRC, zipfile.ZIP_STORED
            opened.filelist.append(twin)
        opened._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(LoadError, match="claim more bytes than the file has"):
        load(path)


def test_a_description_that_is_too_long(saved: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved({f"w{i}": i for i in range(2000)})
    monkeypatch.setattr(archive, "LARGEST_PICKLE", 10_000)
    with pytest.raises(LoadError, match="table of contents"):
        load(path)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(1).expand(10**6, 10**6),
        torch.zeros(4).as_strided((10**5, 10**6), (0, 0)),
        torch.zeros(10**4).unfold(0, 5000, 1),
    ],
)
def test_tensors_that_declare_more_than_they_store(tensor: torch.Tensor, saved: Save) -> None:
    path = saved({"w": tensor})
    with pytest.raises(LoadError, match="declare"):
        load(path)


def test_many_views_of_one_storage(saved: Save) -> None:
    base = torch.zeros(400_000)
    path = saved({f"w{i}": base[i : i + 390_000] for i in range(100)})
    with pytest.raises(LoadError, match="overlapping"):
        load(path)


def test_a_small_expanded_tensor_is_no_attack(saved: Save) -> None:
    assert load(saved({"w": torch.ones(1).expand(100, 100)})).tensors["w"].shape == (100, 100)


def test_storage_beyond_the_end_of_the_file(saved: Save) -> None:
    """A shape larger than its storage must not read what lies behind it."""
    path = saved({"w": torch.zeros(64, 64)})
    path.write_bytes(rewritten(path.read_bytes(), lambda name, data: data[:100] if "/data/" in name else data))
    with pytest.raises(LoadError):
        load(path)


def test_deep_nesting(saved: Save) -> None:
    content: Any = {"w": torch.zeros(2, 2)}
    for _ in range(containers.DEEPEST + 5):
        content = {"a": content}
    with pytest.raises(LoadError, match="nested deeper"):
        load(saved(content))


def test_cycles_and_exponential_nesting_end(saved: Save, state: dict[str, torch.Tensor]) -> None:
    laughs: list[Any] = [1]
    for _ in range(60):
        laughs = [laughs, laughs, laughs, laughs]
    cycle: dict[str, Any] = {"state_dict": state, "laughs": laughs}
    cycle["self"] = cycle
    with at_most(calls=500_000):
        assert len(recover(load(saved(cycle))).layers) == 2


def test_too_many_objects(saved: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MOST_NODES", 50)
    with pytest.raises(LoadError, match="more than 50 nested objects"):
        load(saved({"w": torch.zeros(2, 2), "x": [[] for _ in range(100)]}))


def test_objects_that_are_listed_again_are_counted(saved: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tally, "MOST_LISTED", 1000)
    weights = {"w": torch.zeros(2, 2)}
    group = {"params": [0] * 50, "lr": 0.1}
    state = {str(number): torch.zeros(()) for number in range(50)}
    optimizers = [
        {"state": {}, "param_groups": [group] * 50},
        {"state": {}, "param_groups": [{"params": group["params"]} for _ in range(50)]},
        {"state": {0: state}, "param_groups": [group]},
        [{"state": {}, "param_groups": [group]} for _ in range(50)],
    ]
    for optimizer in optimizers:
        with pytest.raises(LoadError, match="lists more than 1000"):
            load(saved({"model": weights, "optimizer": optimizer}))
    inner = nn.Linear(2, 2)
    module = nn.ModuleDict({str(number): nn.ModuleList([inner] * 30) for number in range(30)})
    with pytest.raises(LoadError, match="lists more than 1000"):
        load(saved(module))


def test_names_that_are_alike_are_told_apart_in_one_pass() -> None:
    class Counting(dict[str, int]):
        looks = 0

        def __contains__(self, key: object) -> bool:
            Counting.looks += 1
            return super().__contains__(key)

    names = Unique()
    names._next = Counting()
    assert len({names("bytes") for _ in range(500)} | {names(f"bytes#{number}") for number in range(500)}) == 1000
    assert Counting.looks <= 3000


def test_tensors_of_equal_statistics_are_not_compared_in_pairs() -> None:
    tensors = {str(n): torch.randperm(16, generator=torch.Generator().manual_seed(n)).float() for n in range(600)}
    tensors["twin"] = tensors["7"].clone()
    with at_most(calls=100_000):
        seen = scan_tensors(Checkpoint("x.pt", "torch", 0, tensors))
    assert len(seen.parameters) == 600 and "twin = 7" in seen.notes[0]


@pytest.mark.parametrize("where", ["ema", "optimizer"])
def test_one_tensor_of_many_names_is_scanned_once(where: str, saved: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.full((8, 8), float("nan"))
    ema = {f"w{number}": one for number in range(100)}
    optimizer = {
        "state": {0: {"exp_avg_sq": one, "step": 5}},
        "param_groups": [{"params": [0] * 100, "param_names": list(ema), "betas": (0.9, 0.99), "lr": 0.1, "eps": 1e-8}],
    }
    weights = {name: torch.full((2, 2), float(number)) for number, name in enumerate(ema)}
    scanned: list[tuple[int, ...]] = []
    whole = _tensor_scan.scan
    monkeypatch.setattr(_tensor_scan, "scan", lambda t, *more: scanned.append(tuple(t.shape)) or whole(t, *more))
    facts = recover(load(saved({"model": weights, where: ema if where == "ema" else optimizer})))
    assert scanned.count((8, 8)) == 1
    assert sum(s.value == 64 for s in facts.values if s.name == "weight.non_finite") == 100
    assert where == "ema" or facts.optimizers == (
        "optimizer: one state stands for several parameters or optimizers; not judged",
    )


def test_a_long_name_that_is_imported_again_and_again_is_kept_short() -> None:
    long = b"X" + struct.pack("<I", 2 * 10**5) + b"a." * 10**5
    again = (b"h\x00\x8c\x04" + b"%04d" % number + b"\x93" for number in range(1000))
    names = archive.imports_of(b"\x80\x04" + long + b"\x94" + b"".join(again) + b".")
    assert len(names) == 1000 and max(map(len, names)) <= 2 * archive.LONGEST_PART + 1


def test_a_million_keys_are_refused_unread(saved: Save) -> None:
    description = pickle.dumps({f"layer{i}.weight": i for i in range(1_000_000)}, protocol=2)
    path = saved({"a": torch.ones(2)})
    path.write_bytes(
        rewritten(path.read_bytes(), lambda name, data: description if name.endswith("data.pkl") else data)
    )
    with pytest.raises(LoadError, match=r"table of contents has .* more than the 16 MiB"):
        load(path)


def test_fifty_thousand_keys(saved: Save) -> None:
    zero = torch.zeros(1)
    path = saved({f"layer.{i}.scale": zero for i in range(50_000)})
    with at_most(calls=40_000_000):
        checkpoint = load(path)
        assert len(checkpoint.tensors) == 50_000
        assert recover(checkpoint).layers == ()


def test_hostile_names_become_one_printable_line(saved: Save) -> None:
    names = ["\udcff\x1b[31mred\n", "a" * 10_000, "ok", "", " ​"]
    checkpoint = load(saved({name: torch.full((2, 2), i) for i, name in enumerate(names)} | {7: torch.zeros(3)}))
    assert len(checkpoint.tensors) == 6
    assert all(name.isprintable() and len(name) <= LONGEST_KEY + 1 for name in checkpoint.tensors)
    for note in recover(checkpoint).notes:
        note.encode("utf-8")


@pytest.mark.parametrize("child", [True, False])
@pytest.mark.parametrize(
    ("count", "expected"), [(1_000_000, "its header has"), (MOST_ENTRIES + 1, f"more than {MOST_ENTRIES} tensors")]
)
def test_safetensors_of_more_tensors_than_can_be_told_of(
    count: int, expected: str, child: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("safetensors")
    if not child:
        monkeypatch.setattr(guard, "available", lambda: False)
    entry = '"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(entry % number for number in range(count)) + "}").encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(LoadError, match=expected):
        load(tmp_path / "x.safetensors")


def test_layers_by_the_thousand_are_refused(saved: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = TransformerConv(2, 2).state_dict()
    monkeypatch.setattr(_recovery, "MOST_LAYERS", 3)
    for count in (3, 4):
        opened = load(saved({f"c{i}.{name}": tensor + i for i in range(count) for name, tensor in layer.items()}))
        if count == 3:
            assert len(recover(opened).layers) == 3
        else:
            with pytest.raises(LoadError, match="holds 4 attention layers; at most 3 are judged"):
                recover(opened)


def test_rules_take_time_in_proportion_to_the_layers() -> None:
    """Ten times the layers may take some thirty times as long on a busy machine, but not a hundred times."""

    def seconds(count: int) -> float:
        layers = tuple(LayerFacts(f"c{i}", "TransformerConv", i, True, heads=1) for i in range(count))
        values = tuple(Signal("logit.frobenius", 1.0, layer.name, 0) for layer in layers)
        begun = time.process_time()
        signals = Signals("checkpoint", layers, values)
        for layer in layers:
            assert signals.layer(layer.name) is layer and len(signals.find("logit.frobenius", layer=layer.name)) == 1
        assert len(signals.find("logit.frobenius")) == count
        return time.process_time() - begun

    assert seconds(5000) < 30 * max(seconds(500), 0.005)


@pytest.mark.parametrize("stored", [1, 3])
def test_a_large_file_of_holes_is_refused_unread(stored: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors")
    file, most, many = tmp_path / "x.safetensors", 8 * 2**20, 2**21
    monkeypatch.setattr(_sniffing, "SMALLEST_WITH_HOLES", most)
    header = json.dumps({"w": {"dtype": "F32", "shape": [many], "data_offsets": [0, 4 * many]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(stored * 2**19))
    os.truncate(file, 8 + len(header) + 4 * many)
    if stored == 1:
        with pytest.raises(LoadError, match="the rest are holes"):
            load(file)
    else:
        assert load(file).tensors["w"].numel() == many


def test_names_that_become_equal_stay_apart(saved: Save) -> None:
    checkpoint = load(saved({"\n": torch.zeros(2, 2), "\\n": torch.ones(2, 2)}))
    assert sorted(float(t.sum()) for t in checkpoint.tensors.values()) == [0.0, 4.0]


def test_tensors_that_cannot_be_read_are_named(saved: Save) -> None:
    content = {
        "meta": torch.empty(10**6, 10**6, device="meta"),
        "sparse": torch.eye(4).to_sparse(),
        "complex": torch.full((2, 2), complex(float("nan"), 1)),
        "int": torch.arange(4),
        "half": torch.rand(3, 3).half(),
        "bfloat": torch.rand(3, 3).bfloat16(),
        "float8": torch.rand(3, 3).to(torch.float8_e4m3fn),
        "none": torch.zeros(0, 3),
    }
    facts = recover(load(saved(content)))
    notes = " ".join(facts.notes)
    for what in ("meta (declared, not stored): meta", "sparse: sparse", "complex: complex", "integer: int"):
        assert what in notes
    bad = {s.detail["parameter"]: s.value for s in facts.values if s.name == "weight.non_finite" and s.value}
    assert bad == {"complex": 4.0}


@pytest.mark.parametrize(
    "convert", [lambda t: t.to("meta"), lambda t: t.long(), lambda t: t.to(torch.complex64), lambda t: t.to_sparse()]
)
def test_a_layer_of_unreadable_tensors_is_told_not_judged(
    convert: Callable[[Any], Any], saved: Save, state: dict[str, Any]
) -> None:
    facts = recover(load(saved({name: convert(t) if "0.lin_query" in name else t for name, t in state.items()})))
    assert [layer.name for layer in facts.layers] == ["convs.1"]
    assert [blind.layer for blind in facts.unjudged] == ["convs.0"]
    assert "lin_query.weight is" in facts.unjudged[0].reason
    assert facts.layers_expected == 2


def test_low_precision_layers_are_judged(saved: Save, state: dict[str, torch.Tensor]) -> None:
    full = recover(load(saved(state)))
    half = recover(load(saved({name: t.bfloat16() for name, t in state.items()}, "half.pt")))
    pairs = [(a.value, b.value) for a, b in zip(full.values, half.values, strict=True) if a.name.startswith("logit.")]
    assert pairs
    assert all(b == pytest.approx(a, rel=0.02) for a, b in pairs)
