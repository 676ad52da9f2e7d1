"""Containers are unwrapped, and what was unwrapped is told."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gnnstab.checkpoint import load, recover
from gnnstab.errors import LoadError, MissingExtra

Save = Callable[..., Path]
State = dict[str, torch.Tensor]


def _said(checkpoint: Any) -> str:
    return " | ".join(checkpoint.notes)


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.ckpt", "x.bin", "x.tar", "noending"])
def test_suffixes(name: str, saved: Save, state: State) -> None:
    checkpoint = load(saved(state, name))
    assert list(checkpoint.tensors) == list(state)
    assert checkpoint.format == "torch"
    assert checkpoint.notes == ()


def test_the_format_before_torch_1_6(saved: Save, state: State) -> None:
    checkpoint = load(saved(state, _use_new_zipfile_serialization=False))
    assert checkpoint.format == "torch before 1.6"
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "policy"])
def test_one_container(key: str, saved: Save, state: State) -> None:
    checkpoint = load(saved({"epoch": 7, key: OrderedDict(state), "best": torch.tensor(0.5)}))
    assert list(checkpoint.tensors) == list(state)
    assert f"read from the entry '{key}'" in checkpoint.notes
    assert "scanned for NaN and Inf alone: best" in _said(checkpoint)
    assert checkpoint.progress == {"epoch": 7}


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_in_front(wrapper: str, saved: Save, state: State) -> None:
    checkpoint = load(saved({"model": {wrapper + name: tensor for name, tensor in state.items()}}))
    assert list(checkpoint.tensors) == list(state)
    assert "removed the prefix" in _said(checkpoint)


def test_a_wrapper_in_the_middle(saved: Save, state: State) -> None:
    checkpoint = load(saved({name.replace("convs.0.", "convs.0._orig_mod."): tensor for name, tensor in state.items()}))
    assert list(checkpoint.tensors) == list(state)


def test_a_real_module_named_module_stays(saved: Save, state: State) -> None:
    names = [name.replace("convs.0", "module.a").replace("convs.1", "head") for name in state]
    assert list(load(saved(dict(zip(names, state.values(), strict=True)))).tensors) == names


def test_lightning(saved: Save, state: State) -> None:
    content = {
        "pytorch-lightning_version": "2.3.0",
        "epoch": 2,
        "global_step": 300,
        "state_dict": {f"model.{name}": tensor for name, tensor in state.items()},
        "loops": {"fit": {"x": torch.zeros(3, 3)}},
        "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(1.0)}},
        "optimizer_states": [torch.optim.Adam([nn.Parameter(torch.zeros(2))]).state_dict()],
        "hyper_parameters": {"heads": 3, "lr": 1e-3, "name": "x", "net": {"a": 1}},
    }
    checkpoint = load(saved(content, "last.ckpt"))
    assert next(iter(checkpoint.tensors)).startswith("model.convs.0")
    assert "Lightning checkpoint" in checkpoint.notes
    assert checkpoint.settings == {
        "hyper_parameters.heads": 3,
        "hyper_parameters.lr": 1e-3,
        "hyper_parameters.name": "x",
        "hyper_parameters.net.a": 1,
    }
    assert [optimizer.path for optimizer in checkpoint.optimizers] == ["optimizer_states.0"]
    assert checkpoint.progress == {"epoch": 2, "global_step": 300}


def test_several_networks_keep_a_prefix(saved: Save, state: State) -> None:
    checkpoint = load(
        saved({"models": {"actor": state, "critic": {n: t.clone() for n, t in state.items()}}, "epoch": 1})
    )
    assert list(checkpoint.networks) == ["actor", "critic"]
    assert len(recover(checkpoint).layers) == 4
    assert recover(checkpoint).layers[2].name == "critic.convs.0"
    assert "read from the entry 'models'" in checkpoint.notes
    assert "2 groups of tensors: 'actor', 'critic'" in checkpoint.notes


@pytest.mark.parametrize("key", ["ema", "model_ema", "ema_state_dict"])
def test_averaged_weights_beside_the_weights(key: str, saved: Save, state: State) -> None:
    averaged = {name: torch.full_like(tensor, torch.nan) for name, tensor in state.items()}
    facts = recover(load(saved({"model": state, key: averaged})))
    assert len(facts.layers) == 2
    assert "averaged weights" in " ".join(facts.notes)
    assert sum(s.value for s in facts.values if s.name == "weight.non_finite") == sum(t.numel() for t in state.values())


def test_averaged_weights_alone_are_judged(saved: Save, state: State) -> None:
    assert len(recover(load(saved({"ema": state}))).layers) == 2


def test_averaged_weights_under_a_prefix(saved: Save, state: State) -> None:
    averaged = {f"ema.module.{name}": tensor.clone() for name, tensor in state.items()}
    checkpoint = load(saved(state | averaged))
    assert len(recover(checkpoint).layers) == 2
    assert len(checkpoint.shadows) == len(state)


def test_harmless_classes_are_read_as_stand_ins(saved: Save, state: State, tmp_path: Path) -> None:
    content = {
        "model": state,
        "args": argparse.Namespace(lr=0.1, heads=3, out=tmp_path),
        "score": np.float64(0.25),
        "history": np.arange(4.0),
        "path": tmp_path,
    }
    checkpoint = load(saved(content))
    assert checkpoint.settings == {"args.lr": 0.1, "args.heads": 3}
    assert list(checkpoint.tensors) == list(state)


def test_stand_ins_never_reach_the_real_classes(saved: Save, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    path = saved({"model": state, "args": argparse.Namespace(lr=0.1)})
    monkeypatch.setattr(argparse.Namespace, "__init__", lambda self, **kwargs: made.append("init"))
    load(path)
    assert made == []


def test_stand_ins_leave_no_trace_in_torch(saved: Save, state: State) -> None:
    before = set(torch.serialization.get_safe_globals())
    load(saved({"model": state, "args": argparse.Namespace(lr=0.1)}))
    assert set(torch.serialization.get_safe_globals()) == before


def test_safetensors(tmp_path: Path, state: State) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "x.safetensors")
    checkpoint = load(tmp_path / "x.safetensors")
    assert set(checkpoint.tensors) == set(state)
    assert checkpoint.format == "safetensors"
    assert len(recover(checkpoint).layers) == 2


def test_safetensors_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "x.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}" + bytes(8))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingExtra, match=r"gnnstab\[safetensors\]"):
        load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("content", [torch.zeros(3), None, {}, [1, 2], {"epoch": 3}, "text"])
def test_nothing_to_judge(content: Any, saved: Save) -> None:
    with pytest.raises(LoadError, match="no named tensors"):
        load(saved(content))


def test_nested_groups(saved: Save, state: State) -> None:
    nested = {
        "encoder": {
            "a": {n: t for n, t in state.items() if "convs.0" in n},
            "b": {n: t for n, t in state.items() if "convs.1" in n},
        }
    }
    facts = recover(load(saved(nested)))
    assert [layer.name for layer in facts.layers] == ["a.convs.0", "b.convs.1"]


@pytest.mark.parametrize("large", [False, True])
def test_tensors_of_large_files_are_mapped_not_copied(
    large: bool, saved: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved({"w": torch.zeros(2**20, 4)})
    if large:
        monkeypatch.setattr("gnnstab.unpickling._building.LARGEST_READ", 2**20)
    tensor = load(path).tensors["w"]
    maps = Path("/proc/self/maps")
    if not maps.exists():
        # Only Linux tells a process what it has mapped; the reader itself is the same elsewhere.
        pytest.skip("needs /proc")
    ranges = [line.split()[0].split("-") for line in maps.read_text().splitlines() if line.endswith(str(path))]
    assert any(int(start, 16) <= tensor.data_ptr() < int(end, 16) for start, end in ranges) == large
