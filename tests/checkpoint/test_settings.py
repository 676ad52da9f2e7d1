"""What the settings beside the weights say, in whatever they were kept."""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from gnnstab.checkpoint import load
from gnnstab.checkpoint._settings import MOST, heads_in, plain_settings


class Dotted(dict):  # type: ignore[type-arg]
    """A dictionary with attributes, as many configuration libraries have one."""


class Slotted:
    """Keeps its values in slots."""

    __slots__ = ("heads",)

    def __init__(self, heads: int) -> None:
        self.heads = heads


@dataclass
class Model:
    heads: int = 4


@dataclass
class Config:
    lr: float = 0.1
    model: Model = field(default_factory=Model)


KEPT: dict[str, Callable[[], Any]] = {
    "config.model.heads": Config,
    "args.heads": lambda: argparse.Namespace(heads=4),
    "hparams.n_heads": lambda: types.SimpleNamespace(n_heads=4),
    "hyper_parameters.model.num_heads": lambda: {"model": {"num_heads": 4}},
    "cfg.heads": lambda: Dotted(heads=4),
    "opt.gnn_num_heads": lambda: {"gnn_num_heads": 4},
    "options.heads": lambda: Slotted(4),
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("legacy", [False, True])
def test_settings_are_read_without_their_class(
    name: str, legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (Dotted, Slotted, Model, Config):
        monkeypatch.setitem(sys.modules, kind.__module__, sys.modules.get(kind.__module__, types.ModuleType("m")))
        monkeypatch.setattr(sys.modules[kind.__module__], kind.__name__, kind, raising=False)
    content = {"model": {"w": torch.rand(4, 4)}, name.partition(".")[0]: KEPT[name]()}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    for kind in (Dotted, Slotted, Model, Config):
        monkeypatch.delattr(sys.modules[kind.__module__], kind.__name__)
    settings = load(tmp_path / "x.pt").settings
    assert settings[name] == 4
    said = heads_in(settings, 32)
    assert said is not None and said.heads == 4 and said.setting == name


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"args.heads": 3}, None),
        ({"args.heads": 4, "args.decoder.n_heads": 2}, None),
        ({"args.heads": 4, "args.decoder.n_heads": 4}, 4),
        ({"args.heads": 3, "args.decoder.n_heads": 4}, 4),
        ({"args.heads": True}, None),
        ({"args.heads": 0}, None),
        ({"args.heads": "4"}, None),
        ({"args.headstart": 4, "args.overheads": 4, "args.ahead": 4}, None),
        ({}, None),
    ],
)
def test_heads_that_are_not_told(settings: dict[str, Any], expected: int | None) -> None:
    """Those that do not divide the width belong elsewhere; two that do and differ decide nothing."""
    said = heads_in(settings, 32)
    assert (said.heads if said else None) == expected


def test_settings_without_end_are_cut() -> None:
    cycle: dict[str, Any] = {f"k{number}": number for number in range(1000)}
    cycle["itself"] = cycle
    deep: Any = 1
    for _ in range(50_000):
        deep = {"a": deep}
    found = plain_settings({"args": cycle, "config": deep})
    assert len(found) == MOST and all(name.startswith("args.k") for name in found)
