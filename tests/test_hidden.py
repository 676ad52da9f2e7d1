"""What is bad and could hide: behind a known finding, another file of a folder, a trace beside it, a former run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gnnstab
from gnnstab import baseline
from gnnstab.records import Diagnosis
from gnnstab.report import FORMATS, render
from models.stacks import Stack

Weights = dict[str, Tensor]


def weights(*bad: str, by: float = math.nan) -> Weights:
    """Fresh weights of two layers; these tensors are multiplied by ``by``."""
    torch.manual_seed(0)
    state = {name: tensor.clone() for name, tensor in Stack(2).state_dict().items()}
    return {name: tensor * by if name in bad else tensor for name, tensor in state.items()}


def judged(path: Path, contents: object) -> Diagnosis:
    torch.save(contents, path)
    return gnnstab.diagnose(path, heads=1)


FIRST, SECOND = "convs.0.lin_value.weight", "convs.1.lin_value.weight"


@pytest.mark.parametrize(("code", "by"), [("GS502", math.nan), ("GS605", 1e9)])
def test_a_baseline_hides_no_second_layer(tmp_path: Path, code: str, by: float) -> None:
    known, later = (judged(tmp_path / "a.pt", weights(*bad, by=by)) for bad in ((FIRST,), (FIRST, SECOND)))
    (tmp_path / "known.json").write_text(baseline.dump([known]))
    new = baseline.read(tmp_path / "known.json").apply(later)
    assert baseline.read(tmp_path / "known.json").apply(known).at_least("error") == ()
    assert [(f.code, f.layer) for f in new.at_least("error")] == [(code, "convs.1")]
    # Every format holds both, and a reader is told the sentence once.
    (said,) = {f.message for f in later.findings if f.code == code}
    text = " ".join(render(later, "text", verbose=True, width=400).split())
    assert text.count(said.rstrip(".")) == 1
    assert len(render(later, "text").splitlines()) <= 15
    assert all(render(later, format).count("convs.1") for format in FORMATS)
