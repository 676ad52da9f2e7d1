"""One look at a model, and what users call a batch."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.errors import LoadError, NothingEvaluable, UnsafeFileError, UsageError
from gnnstab.probe.batches.arguments import as_arguments, load_batch
from gnnstab.probe.batches.data import MOST_BATCHES
from gnnstab.probe.measure import measure, read_out
from gnnstab.report.summary import not_covered
from models.informarl import load_actor, policy_loss, reference, sample_batch
from models.stacks import Stack, random_batch

FIGURES = {
    # batch: layer: score std, min, max, output RMS, largest |output|, entropy, one-hot share (tests/data/README.md)
    3: {
        "gnn.gnn1": (8.03, -39.8, 39.0, 2.381, 11.54, 0.476, 0.148),
        "gnn.gnn2.0": (3.48, -27.4, 14.3, 1.315, 6.16, 0.620, 0.070),
        "gnn.gnn2.1": (0.27, -2.0, 1.9, 0.507, 1.89, 0.991, 0.000),
    },
    7: {
        "gnn.gnn1": (26.50, -130.7, 89.8, 4.325, 17.83, 0.229, 0.423),
        "gnn.gnn2.0": (11.81, -97.5, 32.0, 2.375, 10.65, 0.457, 0.179),
        "gnn.gnn2.1": (3.73, -27.5, 8.3, 1.004, 3.70, 0.813, 0.011),
    },
}
NAMES = (
    "score.std",
    "score.min",
    "score.max",
    "output.rms",
    "output.max_abs",
    "attention.entropy",
    "attention.one_hot_share",
)
DIGITS = (2, 1, 1, 3, 2, 3, 3)


@pytest.mark.parametrize(("agents", "run"), [(3, "healthy_3agents"), (7, "agents7_default")])
def test_the_figures_of_the_real_network(agents: int, run: str) -> None:
    trace = measure(load_actor(run), sample_batch(agents), loss=policy_loss)
    measured = {(m.layer, m.name): m.value for m in trace.measures() if m.head == -1}
    for layer, expected in FIGURES[agents].items():
        for name, value, digits in zip(NAMES, expected, DIGITS, strict=True):
            assert round(measured[layer, name], digits) == pytest.approx(value, abs=1.5 * 10**-digits), (layer, name)


@pytest.mark.parametrize(("agents", "run"), [(3, "healthy_3agents"), (7, "agents7_default")])
def test_recorded_score_ranges_are_those_of_the_reference(agents: int, run: str) -> None:
    trace, expected = measure(load_actor(run), sample_batch(agents)), reference(agents)
    for name in ("gnn1", "gnn2.0", "gnn2.1"):
        for site in ("score", "attention", "output"):
            (row,) = next(v for k, v in trace.sites(layer=f"gnn.{name}", site=site).items())
            tensor = expected[f"{name}.{site}"].double()
            assert row["minimum"] == pytest.approx(float(tensor.min()), rel=1e-5, abs=1e-6)
            assert row["maximum"] == pytest.approx(float(tensor.max()), rel=1e-5)
            assert row["rms"] == pytest.approx(float(tensor.square().mean().sqrt()), rel=1e-5)


def test_the_users_model_is_left_alone() -> None:
    model, batch = load_actor().train(), sample_batch(7)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    measure(model, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any("message" in m.__dict__ for m in model.modules())


def test_the_first_non_finite_value_of_the_real_crash() -> None:
    model, batch = load_actor("agents7_lr7e-2_amp16_nan_crash"), sample_batch(7)
    (event,) = measure(model, batch, precision="fp16").events("non-finite")
    assert (event.layer, event.stage, event.origin) == ("gnn.gnn2.1", "score", "made-here")
    assert event.detail["weights_finite"] is True
    assert event.edges
    assert not measure(model, batch, precision="fp32").events("non-finite")


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = TransformerConv(3, 2)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.conv(x, edge_index)


class Whole(Plain):
    def forward(self, data: Data) -> torch.Tensor:  # type: ignore[override]
        return self.conv(data.x, data.edge_index)


class Nodes(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.conv(x, torch.tensor([[0, 1], [1, 0]]))


def graph() -> Data:
    return Data(x=torch.randn(4, 3), edge_index=torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]))


@pytest.mark.parametrize(
    ("model", "batch", "forwards"),
    [
        (Plain(), graph(), 1),
        (Whole(), graph(), 1),
        (Nodes(), graph(), 1),
        (Whole(), Batch.from_data_list([graph(), graph()]), 1),
        (Plain(), (graph().x, graph().edge_index), 1),
        (Plain(), {"x": graph().x, "edge_index": graph().edge_index}, 1),
        (Whole(), [graph(), graph(), graph()], 3),
        (Plain(), iter([graph(), graph()]), 2),
        (Plain(), Batch.from_data_list([graph(), graph()]), 1),
        (Whole(), DataLoader([graph() for _ in range(6)], batch_size=2, shuffle=True), 3),
        (Plain(), itertools.repeat(graph()), MOST_BATCHES),
        (Plain(), [graph().x, graph().edge_index], 1),
        (Plain(), (graph().x, graph().edge_index, torch.zeros(4)), 1),
        (Plain(), {"x": graph().x, "edge_index": graph().edge_index, "y": torch.zeros(4)}, 1),
        (Whole(), (graph(), torch.zeros(4)), 1),
        (Plain(), (graph(), torch.zeros(4)), 1),
        (Plain(), [graph(), torch.zeros(4)], 1),
        (Whole(), [[graph(), torch.zeros(4)], [graph(), torch.zeros(4)]], 2),
    ],
)
def test_every_kind_of_batch(model: nn.Module, batch: Any, forwards: int) -> None:
    trace = measure(model, batch)
    assert len(trace.steps()) == forwards
    assert [layer.name for layer in trace.layers()] == ["conv"]


def test_a_loader_that_shuffles_gives_the_loss_the_batch_that_the_model_saw() -> None:
    loader = DataLoader([graph() for _ in range(8)], batch_size=1, shuffle=True)
    seen: list[torch.Tensor] = []

    class Looking(Whole):
        def forward(self, data: Data) -> torch.Tensor:  # type: ignore[override]
            seen.append(data.x)
            return super().forward(data)

    def loss(output: torch.Tensor, batch: Data) -> torch.Tensor:
        assert torch.equal(batch.x, seen[-1])
        return output.square().mean()

    assert len(measure(Looking(), loader, loss=loss).steps()) == 8


def test_a_tuple_for_a_forward_of_one_argument_is_refused_with_its_own_message() -> None:
    with pytest.raises(UsageError, match=r"takes 2 positional arguments but 3 were given"):
        measure(Whole(), (graph().x, graph().edge_index))


def test_a_list_of_one_gives_the_loss_what_stands_in_it() -> None:
    given = []
    measure(Whole(), [graph()], loss=lambda output, batch: given.append(batch) or output.sum())
    assert all(isinstance(batch, Data) for batch in given)


@pytest.mark.parametrize("file", [False, True])
def test_several_batches_are_diagnosed_live_and_saved(file: bool, tmp_path: Path) -> None:
    batches: Any = [Batch.from_data_list([graph(), graph()]), Batch.from_data_list([graph()])]
    if file:
        torch.save(batches, tmp_path / "batches.pt")
        batches = str(tmp_path / "batches.pt")
    assert gnnstab.diagnose(Plain(), batch=batches).coverage.layers_observed == 1


@pytest.mark.parametrize("batch", ["text", 7, None, [], object()])
def test_no_batch_at_all(batch: Any) -> None:
    with pytest.raises(UsageError, match="none that a model could be called with"):
        as_arguments(batch, Plain())


class Calls(nn.Module):
    """Edges under a name of their own, alone or beside others."""

    def forward(self, x: torch.Tensor, e: torch.Tensor, w: torch.Tensor | None = None) -> torch.Tensor:
        return x


class CallsMore(nn.Module):
    def forward(self, x: torch.Tensor, e: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x


def test_edges_that_the_forward_calls_otherwise_are_told_by_their_place() -> None:
    data = Data(x=torch.ones(3, 2), edge_index=torch.tensor([[0], [1]]))
    ((_, named),) = as_arguments(data, Calls())
    assert named["e"] is data.edge_index and set(named) == {"x", "e"}
    typed = HeteroData({"a": {"x": data.x}, ("a", "to", "a"): {"edge_index": data.edge_index}})
    ((_, named),) = as_arguments(typed, Calls())
    assert named["x"] == {"a": data.x} and named["e"] == {("a", "to", "a"): data.edge_index}
    # Two that are missing, or a Data without edges: nobody knows.
    assert [set(as_arguments(data, CallsMore())[0][1]), set(as_arguments(Data(x=data.x), Calls())[0][1])] == [{"x"}] * 2


def test_a_forward_that_fails_says_what_it_was_given() -> None:
    with pytest.raises(UsageError, match=r"forward of Plain failed on the batch \(x=\(4, 5\)"):
        measure(Plain(), {"x": torch.randn(4, 5), "edge_index": graph().edge_index})


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, b: o, "not a scalar"),
        (lambda o, b: 3.0, "returned float"),
        (lambda o, b: o.nonsense, "AttributeError"),
    ],
)
def test_a_loss_that_fails(loss: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measure(Plain(), graph(), loss=loss)


@pytest.mark.parametrize(
    ("given", "handed", "advice"),
    [
        (
            "data and labels",
            r"a tuple of 2 \(Data with x, .*, tensor \(4,\)\)",
            r"as batch\[1\]; or give the Data alone",
        ),
        ("tensors", r"a tuple of 3 \(tensor \(4, 3\), tensor \(2, ", r"as batch\[2\]$"),
        ("names", r"a dict of 2 \(x: tensor \(4, 3\), edge_index: ", r"by their names, as batch\['y'\]"),
        ("data", r"as it was given: a Data with x, ", r"give \(batch, labels\) and read batch\[1\]"),
    ],
)
def test_a_loss_that_fails_is_told_with_what_it_was_handed(given: str, handed: str, advice: str) -> None:
    data = graph()
    named = {"x": data.x, "edge_index": data.edge_index}
    labels = torch.zeros(len(data.x))
    batch = {"data and labels": (data, labels), "tensors": (*named.values(), labels), "names": named, "data": data}[
        given
    ]

    def missing(output: torch.Tensor, batch: Any) -> torch.Tensor:
        return (output - batch.labels).square().mean()

    with pytest.raises(UsageError, match=r"handed output, a tensor \(4, ") as told:
        measure(Plain(), batch, loss=missing)
    assert re.search(handed, str(told.value)) and re.search(advice, str(told.value)), str(told.value)
    with pytest.raises(UsageError, match=handed):
        gnnstab.verify(Plain(), "lower-lr", batch=batch, loss=missing, lr=0.1, seeds=1, steps=1)


class LooksUp(nn.Module):
    """Takes the whole batch and looks up in it what it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = TransformerConv(8, 4)

    def forward(self, inputs: dict[str, Any]) -> torch.Tensor:
        return self.conv(inputs["x"], inputs["edge_index"])


@pytest.mark.parametrize("key", ["", "inputs"])
def test_a_dict_is_one_argument_where_forward_takes_one_of_another_name(key: str) -> None:
    batch: dict[str, Any] = {"x": torch.randn(6, 8), "edge_index": torch.randint(0, 6, (2, 20)), "y": torch.zeros(6)}
    ((args, kwargs),) = as_arguments({key: batch} if key else batch, LooksUp())
    assert (args or (kwargs[key],))[0] is batch
    assert gnnstab.diagnose(LooksUp(), batch={key: batch} if key else batch).coverage.layers_observed == 1


def test_a_model_without_floating_output_needs_a_loss() -> None:
    with pytest.raises(UsageError, match="pass loss="):
        read_out({"labels": torch.zeros(3, dtype=torch.long)})


@pytest.mark.parametrize("kind", ["dict", "tuple", "data", "hetero", "list"])
def test_batch_files(kind: str, tmp_path: Path) -> None:
    hetero = HeteroData()
    hetero["a"].x = torch.ones(2, 3)
    made = {
        "dict": {"x": torch.ones(2)},
        "tuple": (torch.ones(2),),
        "data": graph(),
        "hetero": hetero,
        "list": [graph()],
    }
    torch.save(made[kind], tmp_path / "batch.pt")
    assert type(load_batch(tmp_path / "batch.pt")) is type(made[kind])


class Trap:
    def __reduce__(self) -> Any:
        return (open, ("trap-was-sprung", "w"))


def test_a_batch_file_that_would_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Trap()}, tmp_path / "batch.pt")
    with pytest.raises(UnsafeFileError, match="--unsafe-load"):
        load_batch(tmp_path / "batch.pt")
    assert not (tmp_path / "trap-was-sprung").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 truncated", b"\x80\x02garbage"])
def test_batch_files_that_are_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "batch.pt").write_bytes(content)
    with pytest.raises(LoadError, match=r"batch\.pt"):
        load_batch(tmp_path / "batch.pt")


def test_a_missing_batch_file(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no such file"):
        load_batch(tmp_path / "batch.pt")


@pytest.mark.parametrize(
    ("loss", "moves"),
    [
        (lambda output, batch: output.square().mean(), True),
        (lambda output, batch: output.square().mean() * 0, False),
        (lambda output, batch: output.detach().square().mean(), False),
        (lambda output, batch: torch.tensor(1.0), False),
    ],
)
def test_a_loss_that_moves_no_parameter_shows_no_gradient(loss: Any, moves: bool) -> None:
    torch.manual_seed(0)
    diagnosis = gnnstab.diagnose(Stack(2), batch=random_batch(16, 5, 16), loss=loss)
    assert any("moves no parameter" in part for part in not_covered(diagnosis)) != moves


def test_a_batch_without_an_entry_shows_nothing() -> None:
    torch.manual_seed(0)
    model, full = Stack(2), random_batch(16, 5, 16)
    empty = {name: value[..., :0] if name == "edge_index" else value[:0] for name, value in full.items()}
    for batch in (empty, [empty, empty]):
        with pytest.raises(NothingEvaluable, match="the batch is empty"):
            gnnstab.diagnose(model, batch=batch)
    for batch, told in (([full, empty], True), ([full, full], False)):
        parts = not_covered(gnnstab.diagnose(model, batch=batch))
        assert any("1 of 2 batches" in part for part in parts) is told
