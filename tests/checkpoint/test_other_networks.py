"""A file may hold networks that the model beside it does not have: they are judged as in a file alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gnnstab
from gnnstab.records import Diagnosis
from models.stacks import Stack, random_batch


def _network(prefix: str = "", *, times: float = 1.0) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = Stack(2, residual=1.0, concat=False, heads=2, beta=True).state_dict()
    return {prefix + name: t * times if "lin_query.weight" in name else t for name, t in state.items()}


def _diagnosed(file: Path) -> Diagnosis:
    return gnnstab.diagnose(
        file, model=lambda: Stack(2, residual=1.0, concat=False, heads=2, beta=True), batch=random_batch()
    )


PLACES = [("", "value."), ("actor.", "value."), ("", "old.net.")]


@pytest.mark.parametrize(("own", "other"), PLACES)
def test_saturated_attention_of_another_network_is_told(own: str, other: str, saved: Callable[..., Path]) -> None:
    found = _diagnosed(saved({**_network(own), **_network(other, times=400.0)}))
    assert {f.layer for f in found.findings if f.code == "GS301"} >= {f"{other}convs.0"}
    assert {layer.name for layer in found.layers if layer.attention} == {
        *("convs.0", "convs.1"),
        *(f"{other}convs.0", f"{other}convs.1"),
    }


@pytest.mark.parametrize(("own", "other"), PLACES)
def test_another_network_that_is_sound_is_no_matter(own: str, other: str, saved: Callable[..., Path]) -> None:
    assert _diagnosed(saved({**_network(own), **_network(other)})).exit_code() == 0


def test_no_graph_is_made_up_for_the_layers_that_the_batch_shows(saved: Callable[..., Path]) -> None:
    found = _diagnosed(saved(_network("actor.")))
    assert {s.source for s in found.signals if s.name == "attention.entropy"} == {"batch"}
    assert {layer.name for layer in found.layers if layer.attention} == {"convs.0", "convs.1"}
