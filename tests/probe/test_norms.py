"""Normalisation directly beside a layer, and over the nodes of several graphs at once."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GraphNorm, LayerNorm, TransformerConv, global_mean_pool

import gnnstab
from gnnstab.probe.attaching.norms import batch_vectors
from gnnstab.probe.measure import measure
from gnnstab.signals import from_trace
from gnnstab.trace import TraceWriter
from side_by_side import hooks_of, identical

EDGES = torch.tensor([[0, 1, 2, 3, 2, 1], [1, 0, 3, 2, 1, 2]])
TWO, ONE = torch.tensor([0, 0, 0, 1]), torch.zeros(4, dtype=torch.long)
BESIDE = {
    "convs.0": {"before": "LayerNorm", "after": ""},
    "convs.1": {"before": "", "after": "GraphNorm"},
    "convs.2": {"before": "", "after": ""},
}


class Net(nn.Module):
    """LayerNorm before the first layer, GraphNorm after the second, activations between all others."""

    def __init__(self, tells: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tells = tells
        self.before, self.after = nn.LayerNorm(4), GraphNorm(4)
        self.convs = nn.ModuleList(TransformerConv(4, 4) for _ in range(3))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None) -> Tensor:
        x = self.convs[0](self.before(x), edge_index)
        x = self.after(self.convs[1](x.relu(), edge_index=edge_index), batch if self.tells else None)
        return self.convs[2](x.relu(), edge_index).relu()


class Blind(nn.Module):
    """Never gets to know the graphs; the norm stands beside no attention layer."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = TransformerConv(4, 4), norm

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.norm(self.conv(x, edge_index).relu())


def inputs(batch: Tensor | None) -> dict[str, Any]:
    """Keyword arguments of a forward."""
    torch.manual_seed(1)
    return {"x": torch.randn(4, 4), "edge_index": EDGES} | ({} if batch is None else {"batch": batch})


def train(model: nn.Module, *args: Any, monitored: bool = True, **kwargs: Any) -> tuple[gnnstab.Monitor, list[Tensor]]:
    """Two steps; the hooks of the norms must be gone after the first forward."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    monitor, outputs = gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore"), []
    watch = monitor if monitored else torch.enable_grad()
    with watch:
        for _ in range(2):
            optimizer.zero_grad()
            outputs.append(model(*args, **kwargs))
            assert not any(m._forward_hooks for m in model.modules() if "Norm" in type(m).__name__)
            outputs[-1].square().mean().backward()
            optimizer.step()
    return monitor, outputs


def without_batch(diagnosis: gnnstab.records.Diagnosis) -> list[str | None]:
    """Norms that GS108 names as called without ``batch``."""
    return [f.layer for f in diagnosis.findings if f.code == "GS108" and "without `batch`" in f.message]


def test_only_the_very_same_tensor_counts() -> None:
    with measure(Net(), inputs(None)) as trace:
        assert json.loads(trace.meta["norms"]) == BESIDE
        assert "norm_without_batch" not in trace.meta


def test_the_facts_and_the_smallest_graph_reach_the_signals() -> None:
    with measure(Net(), inputs(TWO)) as trace:
        signals = from_trace(trace)
    facts = {layer.name: (layer.norm_before, layer.norm_after) for layer in signals.attention_layers}
    assert facts == {name: (one["before"], one["after"]) for name, one in BESIDE.items()}
    assert signals.value("graph.smallest") == 1


def test_a_monitor_knows_the_same_as_a_look_at_the_model() -> None:
    model = Net()
    monitor, outputs = train(model, **inputs(ONE))
    _, plain = train(Net(), monitored=False, **inputs(ONE))
    assert all(identical(one, other) for one, other in zip(outputs, plain, strict=True))
    assert hooks_of(model) == []
    looked, watched = gnnstab.diagnose(Net(), batch=inputs(ONE)), monitor.diagnose()
    beside = [{f.name: (f.norm_before, f.norm_after) for f in diagnosis.layers} for diagnosis in (looked, watched)]
    assert beside[0] == beside[1] == {name: (one["before"], one["after"]) for name, one in BESIDE.items()}


def test_a_compiled_model_is_compiled_no_more_often_and_says_nothing_of_its_norms() -> None:
    graphs = []
    for monitored in (False, True):
        torch._dynamo.reset()
        counters.clear()
        monitor, _ = train(torch.compile(Net(), backend="eager"), monitored=monitored, **inputs(None))
        graphs.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert graphs[0] == graphs[1]
    assert "norms" not in monitor.trace.meta


def test_a_forward_that_fails_leaves_no_hooks_and_the_next_one_is_watched() -> None:
    model = Net()
    with gnnstab.Monitor(model, on_finding="ignore") as monitor:
        with pytest.raises(Exception, match=r"."):
            model(torch.randn(4, 5), EDGES)
        monitor.step()
        assert not model.before._forward_hooks
        model(**inputs(ONE)).sum().backward()
        monitor.step()
    assert json.loads(monitor.trace.meta["norms"]) == BESIDE


@pytest.mark.parametrize(
    ("tells", "batch", "named"), [(False, TWO, ["after"]), (True, TWO, []), (False, ONE, []), (False, None, [])]
)
def test_a_norm_that_is_not_told_of_several_graphs_is_named(tells: bool, batch: Any, named: list[str]) -> None:
    assert without_batch(gnnstab.diagnose(Net(tells), batch=inputs(batch))) == named
    assert without_batch(train(Net(tells), **inputs(batch))[0].diagnose()) == named
    if batch is not None:
        x, edges, graphs = inputs(batch).values()
        assert without_batch(train(Net(tells), x, edges, graphs)[0].diagnose()) == named, "positional"


@pytest.mark.parametrize("norm", [GraphNorm(4), LayerNorm(4)], ids=["GraphNorm", "LayerNorm over a graph"])
def test_the_batch_may_know_graphs_that_the_forward_does_not_take(norm: nn.Module) -> None:
    one = Data(**inputs(None))
    assert without_batch(gnnstab.diagnose(Blind(norm), batch=Batch.from_data_list([one, one]))) == ["norm"]
    assert without_batch(gnnstab.diagnose(Blind(norm), batch=Batch.from_data_list([one]))) == []


def test_norms_over_channels_or_over_all_graphs_need_no_batch() -> None:
    one = Data(**inputs(None))
    for norm in (LayerNorm(4, mode="node"), nn.BatchNorm1d(4), nn.LayerNorm(4)):
        assert without_batch(gnnstab.diagnose(Blind(norm), batch=Batch.from_data_list([one, one]))) == []


def test_a_norm_of_other_rows_than_the_vector_counts_is_not_judged() -> None:
    class Pooled(Net):
        def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None) -> Tensor:
            return self.after(self.convs[0](x, edge_index)[:3])

    assert without_batch(gnnstab.diagnose(Pooled(), batch=inputs(TWO))) == []


def test_graphs_are_found_by_name_alone() -> None:
    model = Net()
    assert [v.tolist() for v in batch_vectors(model, (EDGES[0], EDGES[0], TWO), {})] == [TWO.tolist()]
    assert batch_vectors(model, (TWO, TWO), {"other": TWO}) == []
    assert batch_vectors(model, (), {"batch": TWO.float()}) == []
    assert [len(v) for v in batch_vectors(model, (), {"data": {"paper": {"batch": TWO}}})] == [4]


def smallest(trace: gnnstab.trace.Trace) -> dict[str, list[Any]]:
    """What the trace says of the smallest graph of every norm that divides by a spread over nodes."""
    found: dict[str, list[Any]] = json.loads(trace.meta.get("norm_smallest", "{}"))
    return found


@pytest.mark.parametrize(
    ("tells", "batch", "nodes"),
    [
        (True, TWO, 1),
        (True, torch.tensor([7, 0, 7, 0]), 2),
        (True, ONE, 4),
        (False, TWO, 4),
        (True, None, 4),
    ],
)
def test_the_smallest_graph_that_a_norm_over_nodes_met_is_known(tells: bool, batch: Any, nodes: int) -> None:
    with measure(Net(tells), inputs(batch)) as trace:
        assert smallest(trace) == {"after": ["GraphNorm", nodes]}
        signals = from_trace(trace)
    assert signals.context["norm_smallest"] == {"after": ("GraphNorm", nodes)}
    found = [
        f.value for f in gnnstab.diagnose(Net(tells), batch=inputs(batch)).findings if "meets a graph" in f.message
    ]
    assert found == [nodes] * (nodes <= 2)


def test_the_smallest_of_several_forwards_and_calls_counts_and_norms_over_channels_do_not() -> None:
    class Twice(Net):
        def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None) -> Tensor:
            return super().forward(x, edge_index, ONE) + super().forward(x, edge_index, batch)

    assert smallest(train(Twice(), **inputs(TWO))[0].trace) == {"after": ["GraphNorm", 1]}
    with measure(Blind(LayerNorm(4)), inputs(None)) as trace:
        assert smallest(trace) == {}


@pytest.mark.parametrize(("rows", "seen"), [(2, 0), (2, 1), (6, 0)])
def test_a_batch_norm_that_is_trained_on_two_rows_leaves_the_sign_alone(rows: int, seen: int) -> None:
    class Pooled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.norm(self.convs[0](x, edge_index).view(rows, -1, 4).mean(1))

    torch.manual_seed(0)
    edges = torch.randint(0, 12, (2, 40))
    given = {"x": torch.randn(12, 4), "edge_index": edges}
    model = Pooled()
    model.norm.num_batches_tracked += seen
    told = gnnstab.diagnose(model, batch=given, select=["GS108"]).findings
    assert [f.severity for f in told if "the sign alone" in f.message] == ["warning"] * (rows == 2 and not seen)


@pytest.mark.parametrize(
    "text", ["[1]", '{"a": 2}', '{"a": ["GraphNorm", true]}', '{"a": ["GraphNorm", 1.5]}', "{", '{"a": []}']
)
def test_sizes_that_are_none_are_left_out(text: str) -> None:
    with TraceWriter(None) as writer:
        writer.meta("norm_smallest", text)
        with writer.read() as trace:
            assert "norm_smallest" not in from_trace(trace).context


class Pairs(nn.Module):
    """Two pooled graphs, a norm over them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = TransformerConv(4, 16), nn.BatchNorm1d(16), nn.Linear(16, 1)

    def forward(self, data: Data) -> Tensor:
        pooled = global_mean_pool(self.conv(data.x, data.edge_index), data.batch)
        out: Tensor = self.head(self.norm(pooled)).squeeze(-1)
        return out


@pytest.mark.parametrize(("lr", "roots"), [(1e-2, ["normalization-misuse"]), (3.0, ["learning-rate"])])
def test_signs_that_flip_in_a_norm_over_two_graphs_are_the_norms_and_not_the_rates(lr: float, roots: list[str]) -> None:
    torch.manual_seed(2)
    graphs = [Data(x=torch.randn(6, 4), edge_index=torch.randint(0, 6, (2, 18))) for _ in range(2)]
    pair, model = Batch.from_data_list(graphs), Pairs()
    # As luck has it, the first answers are nearly right.
    pair.y = copy.deepcopy(model)(pair).detach() + 0.1 * torch.tensor([1.0, -0.5])
    told = gnnstab.diagnose(
        model, batch=pair, loss=lambda out, data: (out - data.y).square().mean(),
        optimizer=torch.optim.Adam(model.parameters(), lr=lr),
    )  # fmt: skip
    assert set(roots) <= {c.cause for c in told.root_causes()}
    assert ("GS601" in {f.code for f in told.findings}) is ("learning-rate" in roots)
