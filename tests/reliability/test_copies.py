"""Copies and saves of a model in the midst of a monitored training: the same bits, and nothing of gnnstab in any of them."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch_geometric.nn import GAT, GATv2Conv, GPSConv, HypergraphConv, TransformerConv

import gnnstab
from gnnstab.errors import UsageError
from side_by_side import Net, Run, graph, unnoticed
from trained import take_step

STEPS = 6

LOAD = """
import sys
sys.modules["gnnstab"] = None  # What imports it now fails.
import torch
for folder in sys.argv[1:]:
    model = torch.load(folder + "/model.pt", weights_only=False)
    torch.save(model(*torch.load(folder + "/batch.pt")), folder + "/output.pt")
"""


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def loaded(content: bytes) -> nn.Module:
    model: nn.Module = torch.load(io.BytesIO(content), weights_only=False)
    return model


def hooks_in(model: nn.Module) -> list[Any]:
    """Whatever stands in the tables of hooks and of their flags."""
    tables = [t for m in model.modules() for n, t in vars(m).items() if "hooks" in n and isinstance(t, dict)]
    return [entry for table in tables for entry in table.items()]


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: loaded(saved(model)),
    "average": lambda model: AveragedModel(model).module,
}


@pytest.mark.parametrize("way", WAYS)
def test_loops_that_copy_and_save(way: str) -> None:
    """After the forward, the backward and the step of every step: the best model, an average, a checkpoint."""
    twins: list[nn.Module] = []

    def loop(run: Run) -> None:
        model = Net()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

        def copied() -> None:
            twin = WAYS[way](model)
            state = torch.load(io.BytesIO(saved(model.state_dict())))
            torch.load(io.BytesIO(saved(copy.deepcopy(optimizer).state_dict())))
            run.keep(*twin.parameters(), *state.values())
            assert b"gnnstab" not in pickle.dumps(twin)
            assert hooks_in(twin) == []
            twins.append(twin)

        with run.watching(model, optimizer=optimizer):
            for number in range(STEPS):
                optimizer.zero_grad()
                loss = model(*graph(number)).square().mean()
                copied()
                loss.backward()
                run.keep(loss)
                run.keep_gradients(model)
                copied()
                optimizer.step()
                copied()
            run.keep(*model.parameters())
            run.keep(twins[-1].eval()(*graph(1)))
            twins[0](*graph(1)).sum().backward()

    run = unnoticed(loop, schedule=2)
    assert run.warned == []
    with run.monitor.trace as trace:
        assert [row.step for row in trace.steps()] == list(range(STEPS)), "a copy does not report as the model"


class Scriptable(nn.Module):
    """Plain enough for torch.jit.script."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.out(torch.tanh(self.first(x)))
        return out


def test_copies_made_inside_are_scripted_and_loaded_as_others_are() -> None:
    model, seen = Scriptable(), list[int]()
    handle = model.register_forward_hook(lambda *given: seen.append(1))
    with gnnstab.Monitor(model, on_finding="ignore") as monitor:
        model(*graph())
        monitor.step(1.0)
        twin = copy.deepcopy(model)
        assert len(twin._forward_hooks) == 1 and not twin._forward_pre_hooks
        handle.remove()
        content, twin = saved(model), copy.deepcopy(model)
    torch.jit.script(twin)(*graph())  # type: ignore[no-untyped-call]
    with torch.serialization.safe_globals([Scriptable, nn.Linear, set]):
        assert isinstance(torch.load(io.BytesIO(content), weights_only=True), Scriptable)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "TransformerConv": lambda: TransformerConv(8, 8, heads=2, concat=False, beta=True),
    "GAT": lambda: GAT(8, 8, num_layers=2, v2=True),
    "GPS": lambda: GPSConv(8, TransformerConv(8, 8), heads=2),
}


def kept_inside(model: nn.Module, folder: Path) -> tuple[nn.Module, Tensor]:
    """What is read back of a model that was saved while it was watched, and what the model gives for the batch beside it."""
    batch, optimizer = graph(), torch.optim.SGD(model.parameters(), lr=1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, schedule=1, on_finding="ignore"):
        for _ in range(2):
            take_step(optimizer, model(*batch).square().mean())
        model.eval()
        model(*batch)
        content = saved(model)
        expected: Tensor = model(*batch)
    assert b"gnnstab" not in content
    folder.mkdir()
    (folder / "model.pt").write_bytes(content)
    torch.save(batch, folder / "batch.pt")
    return loaded(content), expected


def test_what_was_saved_inside_loads_without_gnnstab(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = {tmp_path / name: kept_inside(make(), tmp_path / name) for name, make in MODELS.items()}
    ended = subprocess.run([sys.executable, "-c", LOAD, *made], capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr[-2000:]
    for folder, (twin, expected) in made.items():
        # Another process may round otherwise, as kernels go by where a tensor lies in memory.
        torch.testing.assert_close(torch.load(folder / "output.pt"), expected)
        assert torch.equal(twin(*graph()), expected)


def replicated(conv: Any) -> Any:
    """As ``DataParallel`` does it on each device."""
    replica = conv._replicate_for_data_parallel()
    vars(replica).update(conv._parameters)
    return replica


SHALLOW: dict[str, Callable[[Any], Any]] = {"copy": copy.copy, "replica": replicated}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "message": lambda: TransformerConv(8, 8, heads=2, dropout=0.5),
    "edge_update": lambda: GATv2Conv(8, 8, heads=2, dropout=0.5, add_self_loops=False),
    "forward": lambda: HypergraphConv(8, 8, use_attention=True, heads=2, dropout=0.5),
}


@pytest.mark.parametrize("way", SHALLOW)
@pytest.mark.parametrize("name", LAYERS)
def test_a_shallow_copy_computes_with_its_own_settings(name: str, way: str) -> None:
    """A teacher without dropout that shares the weights, and the replicas of ``DataParallel``; also after the monitor."""

    def loop(run: Run) -> None:
        conv, (x, edges) = LAYERS[name](), graph()
        more = (None, torch.ones(int(edges[1].max()) + 1, 8)) if name == "forward" else ()
        args = (x, edges, *more)
        optimizer = torch.optim.SGD(conv.parameters(), lr=1e-2)
        with run.watching(conv, optimizer=optimizer):
            for _ in range(2):
                optimizer.zero_grad()
                conv(*args).square().mean().backward()
                optimizer.step()
            teacher = SHALLOW[way](conv)
            teacher.dropout = 0.0
            with torch.no_grad():
                run.keep(teacher(*args))
        run.keep(teacher(*args))
        assert not any("gnnstab" in type(value).__module__ for value in vars(teacher).values())

    unnoticed(loop)


class Single(Net):
    """A copy of it is itself, as of an encoder that all share."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Single:
        return self


@pytest.mark.parametrize("kind", [Net, Single])
def test_a_copy_that_is_the_model_itself_is_not_run(kind: type[Net]) -> None:
    x, edges = graph()

    def loop(run: Run) -> None:
        model = kind()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        with run.watching(model, optimizer=optimizer, loss=lambda output: output.square().mean()):
            for _ in range(STEPS):
                optimizer.zero_grad()
                loss = model(x, edges).square().mean()
                loss.backward()
                optimizer.step()
                run.keep(loss, *model.parameters())

    unnoticed(loop)
    for call in (gnnstab.attention, lambda model, batch: gnnstab.diagnose(model, batch=batch)):
        model = kind()
        if kind is Single:
            with pytest.raises(UsageError, match="the module itself"):
                call(model, (x, edges))
        else:
            call(model, (x, edges))
        assert model.training
        assert hooks_in(model) == []
