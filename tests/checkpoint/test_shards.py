"""Models in several files: shards are read as one, and what a Trainer keeps beside them is no network."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import gnnstab
from gnnstab.checkpoint import files_in, load
from gnnstab.errors import LoadError

State = dict[str, torch.Tensor]
SAFE, BIN = "model-0000{}-of-00002.safetensors", "pytorch_model-0000{}-of-00002.bin"


@pytest.fixture(params=[SAFE, BIN])
def sharded(request: pytest.FixtureRequest, tmp_path: Path, state: State) -> Callable[..., Path]:
    """Save the state dict in two files that cut a layer in two, and give the folder."""

    def save(index: bool = True, **bad: int) -> Path:
        tensors = {name: tensor.clone() for name, tensor in state.items()} | {"embed.weight": torch.rand(5, 8)}
        for name, entry in bad.items():
            tensors[name.replace("__", ".")].view(-1)[entry] = math.nan
        cut = sorted(tensors)
        parts = [{name: tensors[name] for name in half} for half in (cut[:7], cut[7:])]
        for number, part in enumerate(parts, 1):
            path = tmp_path / request.param.format(number)
            save_file(part, path) if path.suffix == ".safetensors" else torch.save(part, path)
        named = {name: request.param.format(number) for number, part in enumerate(parts, 1) for name in part}
        stem, suffix = request.param.split("-")[0], Path(request.param).suffix
        if index:
            (tmp_path / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": named}))
        return tmp_path

    return save


@pytest.mark.parametrize("index", [True, False])
def test_healthy_shards_are_one_model(index: bool, sharded: Callable[..., Path], state: State) -> None:
    folder = sharded(index)
    (first,) = files_in(folder).checkpoints
    for path in (first, *(file for file in folder.iterdir())):
        checkpoint = load(path)
        assert set(checkpoint.tensors) == {*state, "embed.weight"}
        assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in state.items())
    diagnosis = gnnstab.diagnose(folder)
    assert len(diagnosis.layers) == 2 and diagnosis.exit_code() == 0
    assert any("2 files of one model" in note for note in diagnosis.target.notes)


@pytest.mark.parametrize("name", ["embed__weight", "convs__0__lin_key__weight", "convs__1__lin_value__bias"])
def test_a_nan_in_any_shard_is_found(name: str, sharded: Callable[..., Path]) -> None:
    (finding,) = [f for f in gnnstab.diagnose(sharded(**{name: 0})).findings if f.severity == "error"]
    assert finding.code == "GS502" and name.replace("__", ".") in finding.message


def test_a_missing_shard_is_named(sharded: Callable[..., Path]) -> None:
    folder = sharded()
    first, second = sorted(path for path in folder.iterdir() if path.suffix != ".json")
    second.unlink()
    for target in (folder, first, next(folder.glob("*.json"))):
        with pytest.raises(LoadError, match=f"{second.name}"):
            gnnstab.diagnose(target)


def shards(folder: Path, *contents: Any) -> Path:
    for number, content in enumerate(contents, 1):
        torch.save(content, folder / f"m-{number:05}-of-{len(contents):05}.bin")
    return folder / "m-00001-of-00002.bin"


@pytest.mark.parametrize(
    ("second", "index", "why"),
    [
        ({"a": torch.ones(2, 2)}, None, "as another file of that model does"),
        ([torch.ones(2)], None, "holds no named tensors"),
        ({"b": torch.ones(2, 2)}, {"weight_map": {"c": "m-00001-of-00002.bin"}}, "names 1 tensors that no file holds"),
        ({"b": torch.ones(2, 2)}, {"weight_map": [1]}, "its weight_map gives no files"),
        ({"b": torch.ones(2, 2)}, [1], "is no index"),
        ({"b": torch.ones(2, 2)}, "[" * 200_000, "is no index"),
    ],
)
def test_files_that_are_no_parts_of_one_model(second: Any, index: Any, why: str, tmp_path: Path) -> None:
    first = shards(tmp_path, {"a": torch.ones(2, 2)}, second)
    if index is not None:
        (tmp_path / "m.bin.index.json").write_text(index if isinstance(index, str) else json.dumps(index))
    with pytest.raises(LoadError, match=why):
        load(first)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("files", [("a.bin",), ("a.bin", "b.bin"), ("m-00001-of-00002.bin", "m-00002-of-00002.bin")])
def test_an_index_of_any_name_says_what_the_files_hold(files: tuple[str, ...], lost: bool, tmp_path: Path) -> None:
    for name in files:
        torch.save({name: torch.ones(2, 2)}, tmp_path / name)
    named = {name: name for name in files} | ({"lost": files[-1]} if lost else {})
    index = tmp_path / "consolidated.index.json"
    index.write_text(json.dumps({"weight_map": named}))
    if lost:
        with pytest.raises(LoadError, match="names 1 tensors that no file holds, first lost"):
            load(index)
    else:
        assert len(load(index).tensors) == len(files)


def test_an_index_that_leaves_out_a_part_is_none_of_the_model(tmp_path: Path) -> None:
    shards(tmp_path, {"a": torch.ones(2, 2)}, {"b": torch.full((2, 2), math.nan)})
    index = tmp_path / "m.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m-00001-of-00002.bin"}}))
    with pytest.raises(LoadError, match=r"and not m-00002-of-00002\.bin"):
        load(index)
    index.write_text(json.dumps({"weight_map": {"a": "m-00001-of-00002.bin", "b": "m-00002-of-00002.bin"}}))
    assert len(load(index).tensors) == 2


@pytest.mark.parametrize("name", ["../m.bin", "/etc/passwd", "a/b.bin"])
def test_an_index_leads_to_no_other_folder(name: str, tmp_path: Path) -> None:
    index = tmp_path / "m.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(LoadError, match="outside of its folder"):
        load(index)


@pytest.mark.parametrize("name", ["m-00003-of-00002.bin", "m-00001-of-99999.bin", "m-00000-of-00002.bin"])
def test_numbers_that_no_shard_has(name: str, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2, 2)}, tmp_path / name)
    with pytest.raises(LoadError, match="is named as one of"):
        load(tmp_path / name)


@pytest.mark.parametrize("bad", ["", "model", "optimizer"])
@pytest.mark.parametrize("ending", [(".safetensors", ".pt"), (".bin", ".bin")])
def test_a_folder_of_a_trainer(ending: tuple[str, str], bad: str, tmp_path: Path, state: State) -> None:
    weights = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in state.items()}
    optimizer = torch.optim.AdamW(weights.values())
    sum(weight.square().sum() for weight in weights.values()).backward()
    optimizer.step()
    kept, tensors = optimizer.state_dict(), {name: weight.data for name, weight in weights.items()}
    spoilt = {"model": tensors["convs.0.lin_key.weight"], "optimizer": kept["state"][0]["exp_avg"]}
    if bad:
        spoilt[bad].view(-1)[0] = math.nan
    if ending[0] == ".bin":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        save_file(tensors, tmp_path / "model.safetensors")
    torch.save(kept, tmp_path / f"optimizer{ending[1]}")
    torch.save({"last_epoch": 3, "_last_lr": [1e-3]}, tmp_path / f"scheduler{ending[1]}")
    torch.save({"cpu": torch.get_rng_state()}, tmp_path / "rng_state.pth")
    torch.save({"lr": 1e-3}, tmp_path / "training_args.bin")
    diagnosis = gnnstab.diagnose(tmp_path)
    assert len(diagnosis.layers) == 2
    assert not any("left out" in note for note in diagnosis.target.notes)
    assert diagnosis.exit_code() == bool(bad)
    assert any(f"the optimizer's state is that of optimizer{ending[1]}" in note for note in diagnosis.target.notes)
