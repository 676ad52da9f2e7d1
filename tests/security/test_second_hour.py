"""Checkpoints that hid NaN, were refused though a training program wrote them, or cost more than they are worth."""

from __future__ import annotations

import dataclasses
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.checkpoint import Checkpoint, load, rebuild, recover
from gnnstab.checkpoint import _rebuilding as rebuilding
from gnnstab.config import load as configuration
from gnnstab.errors import ConfigurationError, LoadError
from gnnstab.probe.batches.batch_file import load_batch
from gnnstab.report import render

State = dict[str, torch.Tensor]
Save = Callable[..., Path]


class Wrapper(dict):
    """A dictionary of somebody's own."""


@dataclasses.dataclass
class Box:
    w: torch.Tensor


class Kept:
    def __init__(self, state: Any) -> None:
        self.state = state

    def __getstate__(self) -> Any:
        return [self.state]

    def __setstate__(self, state: Any) -> None:
        pass


class Hider(nn.Module):
    def __init__(self, state: State) -> None:
        super().__init__()
        self.c = TransformerConv(8, 8, heads=2, concat=False)
        self.w = nn.Parameter(state["c.lin_key.weight"])
        self._non_persistent_buffers_set = {"w"}


@pytest.fixture(name="good")
def make() -> State:
    torch.manual_seed(0)
    return {f"c.{k}": v for k, v in TransformerConv(8, 8, heads=2, concat=False).state_dict().items()}


@pytest.fixture
def saved(tmp_path: Path) -> Save:
    def save(content: Any, name: str = "file.pt") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


HIDDEN: dict[str, Callable[[State, State], Any]] = {
    "a parameter called scaler": lambda good, bad: {**good, "scaler": bad["c.lin_key.weight"]},
    "a network among the callbacks": lambda good, bad: {"actor": good, "callbacks": bad},
    "a dictionary of another class": lambda good, bad: {"a": good, "b": Wrapper(bad)},
    "averaged weights in a list": lambda good, bad: {"model": good, "ema": {"shadow_params": list(bad.values())}},
    "an attribute of an object": lambda good, bad: {"model": good, "more": Box(bad["c.lin_key.weight"])},
    "the state of an object": lambda good, bad: {"model": good, "more": Kept(bad)},
    "a parameter that is said to be passing": lambda good, bad: Hider(bad),
    "a sparse tensor": lambda good, bad: {**good, "mixed": bad["c.lin_key.weight"].to_sparse()},
}


@pytest.mark.parametrize("where", HIDDEN)
def test_nan_is_found_wherever_it_has_a_name(where: str, good: State, saved: Save) -> None:
    bad = {name: tensor * float("nan") for name, tensor in good.items()}
    assert {f.code for f in gnnstab.diagnose(saved(HIDDEN[where](good, bad))).findings} == {"GS502"}
    assert not gnnstab.diagnose(saved(HIDDEN[where](good, good))).findings


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (lambda t: {"list": [t, t]}, "2 tensors in lists and objects, without a weight's name, not judged: list.0, list.1"),
        (lambda t: {"s": t.to("meta")}, "1 tensor not judged, meta (declared, not stored): s"),
    ],
)  # fmt: skip
def test_what_is_not_judged_is_said(
    content: Callable[[torch.Tensor], Any], note: str, good: State, saved: Save
) -> None:
    diagnosis = gnnstab.diagnose(saved({**good, **content(torch.full((4, 4), float("nan")))}))
    assert note in diagnosis.target.notes
    assert "stored tensor" in render(diagnosis, "text")


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad])
def test_a_file_with_the_optimizer_itself(optimizer: Any, good: State, saved: Save) -> None:
    model = TransformerConv(8, 8, heads=2, concat=False)
    made = optimizer(model.parameters(), lr=0.1)
    model(torch.ones(2, 8), torch.tensor([[0], [1]])).sum().backward()
    made.step()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(made, 10)
    kept = load(saved({"model": good, "optimizer": made, "scheduler": scheduler}))
    listed = load(saved({"model": good, "optimizer": made.state_dict()}))
    assert len(kept.optimizers[0].entries) == len(listed.optimizers[0].entries) == len(list(model.parameters()))
    assert kept.optimizers[0].adaptive == listed.optimizers[0].adaptive
    assert kept.optimizers[0].entries[0].settings == listed.optimizers[0].entries[0].settings


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_weights_of_eight_bits_are_judged(dtype: str, good: State, saved: Save) -> None:
    low = {name: tensor.to(getattr(torch, dtype)) for name, tensor in good.items()}
    assert len(gnnstab.diagnose(saved(low)).layers) == 1
    low["c.lin_key.weight"] = torch.full((16, 8), float("nan")).to(getattr(torch, dtype))
    assert [f.code for f in gnnstab.diagnose(saved(low)).findings] == ["GS502"]


def test_a_number_of_steps_beyond_64_bits(good: State, saved: Save, tmp_path: Path) -> None:
    saved({"model": good, "step": 2**63}, "1.pt")
    saved({"model": good, "step": 3}, "2.pt")
    assert "read 2 checkpoints" in gnnstab.diagnose(tmp_path).target.notes[0]


def test_the_newest_file_without_a_step_is_not_passed_over(good: State, saved: Save, tmp_path: Path) -> None:
    bad = {name: tensor * float("nan") for name, tensor in good.items()}
    saved({"model": good, "step": 500}, "ckpt_500.pt")
    for name in ("last.pt", "best.pt"):
        saved(bad, name)
        diagnosis = gnnstab.diagnose(tmp_path)
        assert [f.code for f in diagnosis.findings] == ["GS502"]
        assert f"without a step, placed by name: {name}" in diagnosis.target.notes[0]
        (tmp_path / name).unlink()
    saved({"model": bad, "step": 100}, "ckpt_100.pt")
    diagnosis = gnnstab.diagnose(tmp_path)
    assert not diagnosis.findings
    assert diagnosis.target.notes[0].endswith("the newest is ckpt_500.pt; NaN or Inf in ckpt_100.pt too")


def test_an_unexpected_failure_costs_one_line(
    good: State, saved: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1.pt", "2.pt"):
        saved(good, name)
    monkeypatch.setattr("gnnstab.checkpoint.rebuild", _failing("1.pt", rebuild))
    assert any("left out 1.pt: " in n and "no kernel" in n for n in gnnstab.diagnose(tmp_path).target.notes)


def _failing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def run(facts: Any, checkpoint: Checkpoint, **more: Any) -> Any:
        if checkpoint.path.endswith(name):
            raise RuntimeError("no kernel")
        return real(facts, checkpoint, **more)

    return run


def test_widths_and_layers_without_end_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.zeros(1).expand(1, 4_000_000)
    names = [f"lin_{name}" for name in ("key", "query", "value", "skip")]
    one = {f"{n}.weight": wide for n in names} | {f"{n}.bias": torch.zeros(1) for n in names}
    checkpoint = Checkpoint("memory", "torch", 0, {f"c.{k}": v for k, v in one.items()}, {"": ()})
    assert rebuild(recover(checkpoint, heads=1), checkpoint, probed=True).model.beyond == 1
    monkeypatch.setattr(rebuilding, "MOST_LAYERS", 3)
    many = {f"{i}.{k}": v.clone() for i in range(5) for k, v in TransformerConv(4, 4).state_dict().items()}
    checkpoint = Checkpoint("memory", "torch", 0, many, {"": ()})
    rebuilt = rebuild(recover(checkpoint, heads=1), checkpoint, probed=True)
    assert (len(rebuilt.model.paths), rebuilt.model.beyond) == (3, 2)


@pytest.mark.parametrize("where", ["networks", "vectors", "averaged"])
def test_long_paths_are_not_repeated_without_end(where: str, saved: Save) -> None:
    tensor = torch.zeros(4) if where == "vectors" else torch.zeros(2, 2)
    inner: Any = {i: {0: tensor} if where == "networks" else tensor for i in range(2000)}
    for level in range(90):
        inner = {f"{level:03}" + "x" * 197: inner}
    with pytest.raises(LoadError, match="its names have more than"):
        load(saved({"a": {"w": torch.zeros(2, 2)}, "ema" if where == "averaged" else "b": inner}))


def test_an_object_that_is_a_key_is_never_written_out(good: State, tmp_path: Path) -> None:
    # A list that holds one list twice, and so on: written out it has 2²⁶ entries.
    doubled = b"](NNe" + b"r\x0a\x00\x00\x00" + b"0"
    for k in range(26):
        doubled += b"](" + bytes([ord("h"), 10 + k]) * 2 + b"e" + b"r" + bytes([11 + k, 0, 0, 0]) + b"0"
    key = b"cmine\nThing\n(h\x24tRr\x02\x00\x00\x00"
    group = b"}(X\x06\x00\x00\x00params](K\x00eh\x02K\x01u"
    content = b"(" + doubled + key + b"1}(X\x05\x00\x00\x00state}K\x00}h\x02K\x01ssX\x0c\x00\x00\x00param_groups](" + group + b"eu"  # fmt: skip
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02" + content + b".")
    with pytest.raises(LoadError, match="no named tensors"):
        load(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"x": torch.zeros(2, 2, device="meta")}, "a tensor without numbers"),
        ({uuid.UUID(int=0): torch.zeros(2, 2)}, "a Record is a key"),
        ({("a", uuid.UUID(int=0)): torch.zeros(2, 2)}, "a Record is a key"),
    ],
    ids=["meta", "object", "in a tuple"],
)
def test_batches_without_numbers_or_names(content: Any, said: str, saved: Save) -> None:
    with pytest.raises(LoadError, match=said):
        load_batch(saved(content))


@pytest.mark.parametrize("table", ["thresholds", "suppressions", "layers"])
def test_an_ini_key_where_a_section_belongs(table: str, tmp_path: Path) -> None:
    section = {"thresholds": "thresholds:GS301", "suppressions": "suppression:a", "layers": "layers:c:GS301"}[table]
    (tmp_path / "setup.cfg").write_text(f"[gnnstab]\n{table} = x\n[gnnstab:{section}]\na = 1\n")
    with pytest.raises(ConfigurationError, match=f"{table} is a key of .gnnstab. as well"):
        configuration(tmp_path)


def test_a_module_that_was_compiled_and_a_range(good: State, tmp_path: Path) -> None:
    for content in (
        torch.compile(TransformerConv(8, 8, heads=2), backend="eager"),
        {"w": good, "args": {"r": range(3)}},
    ):
        torch.save(content, tmp_path / "file.pt")
        assert len(recover(load(tmp_path / "file.pt")).layers) == 1
