"""Programs that train well and look like broken ones, each beside a twin that is broken; end to end."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GCNConv, HeteroConv, RGATConv, SimpleConv, TransformerConv

import gnnstab
from gnnstab.records import Finding, LayerFacts, Series, SeriesKey, Signal, Signals
from gnnstab.rules.gs301_attention_explosion import AttentionExplosion
from gnnstab.rules.gs302_attention_saturated_by_input import AttentionSaturatedByInput
from gnnstab.rules.live import LiveEngine
from gnnstab.rules.run_losses import trained_well


def ring(nodes: int, reach: Callable[[int], int]) -> Tensor:
    """Node i hears the ``reach(i)`` nodes before it."""
    edges = [((i - k) % nodes, i) for i in range(nodes) for k in range(1, reach(i) + 1)]
    return torch.tensor(edges).t().contiguous()


class Behind(nn.Module):
    """Attention behind some aggregation of large inputs."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.conv = first, TransformerConv(8, 8, heads=2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.conv(self.first(x, edge_index), edge_index)
        return out


@pytest.mark.parametrize("reach", [lambda i: 8, lambda i: 2 + i % 20], ids=["one in-degree", "many in-degrees"])
@pytest.mark.parametrize("kind", ["gcn", "gat", "sum"])
def test_weighted_means_are_no_growing_sums(kind: str, reach: Callable[[int], int]) -> None:
    torch.manual_seed(0)
    first = {"gcn": lambda: GCNConv(8, 8), "gat": lambda: GATConv(8, 8), "sum": lambda: SimpleConv(aggr="sum")}[kind]()
    x = 6.0 + torch.randn(40, 8)
    diagnosis = gnnstab.diagnose(Behind(first), batch=(x, ring(40, reach)))
    found = [f for f in diagnosis.findings if f.code == "GS401"]
    assert bool(found) == (kind == "sum")


class Nodes(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first, self.second = (TransformerConv(8, 4, heads=2, **options) for _ in range(2))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x, edge_index)), edge_index)
        return out


def run(model: nn.Module, args: tuple[Any, ...], steps: int = 12, **options: Any) -> gnnstab.Diagnosis:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore", schedule=1) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            output = model(*args)
            loss = (output - 1).square().mean()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
            if options.get("evaluates"):
                model.eval()
                with torch.no_grad():
                    model(*args)
                model.train()
    return monitor.diagnose()


def codes(diagnosis: gnnstab.Diagnosis, code: str) -> list[str]:
    return [f.severity for f in diagnosis.findings if f.code == code]


@pytest.mark.usefixtures("untried")
def test_parameters_without_a_part_to_play_are_no_wiring_mistake() -> None:
    torch.manual_seed(0)
    x, tree = torch.randn(12, 8), ring(12, lambda i: 1)
    assert codes(run(Nodes(root_weight=False), (x, tree)), "GS604") == []
    model = Nodes()
    model.forgotten = nn.Linear(8, 8)
    assert codes(run(model, (x, tree)), "GS604") == ["info"]


class Relations(nn.Module):
    """Two node types, of which the read-out uses one; ``detached``: the last layer of that one is cut off."""

    def __init__(self, detached: bool) -> None:
        super().__init__()
        kinds = [("a", "to", "b"), ("b", "to", "a")]
        self.layers = nn.ModuleList(
            HeteroConv({kind: TransformerConv(8, 8) for kind in kinds}, aggr="sum") for _ in range(2)
        )
        self.head = nn.Linear(8, 1)
        self.detached = detached

    def forward(self, x: dict[str, Tensor], edges: dict[Any, Tensor]) -> Tensor:
        for layer in self.layers:
            x = {name: torch.relu(value) for name, value in layer(x, edges).items()}
        state = x["b"].detach() if self.detached else x["b"]
        out: Tensor = self.head(state)
        return out


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("detached", [False, True])
def test_relations_that_nothing_reads_are_information_and_a_detached_model_is_an_error(detached: bool) -> None:
    torch.manual_seed(0)
    edges = ring(10, lambda i: 3)
    args = ({"a": torch.randn(10, 8), "b": torch.randn(10, 8)}, {("a", "to", "b"): edges, ("b", "to", "a"): edges})
    assert set(codes(run(Relations(detached), args), "GS604")) - {"info"} == ({"error"} if detached else set())


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize(("rate", "expected"), [(0.1, []), (0.6, ["warning"])])
def test_dropout_on_leaves_is_judged_by_what_it_does(rate: float, expected: list[str]) -> None:
    torch.manual_seed(0)
    model = Nodes(dropout=rate, root_weight=False)
    diagnosis = run(model, (torch.randn(200, 8), ring(200, lambda i: 1)), steps=12, evaluates=True)
    assert codes(diagnosis, "GS105") == expected


class Scaled(nn.Module):
    """Inputs in tiny units, weights that make up for it; ``factor`` spoils one of them."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.conv, self.back = TransformerConv(8, 8, heads=2), TransformerConv(16, 8)
        with torch.no_grad():
            self.conv.lin_value.weight.mul_(factor)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.back(self.conv(x, edge_index), edge_index)
        return out


@pytest.mark.parametrize(("size", "expected"), [(1e-4, ["info"]), (1.0, ["error"])])
def test_large_weights_that_work_are_information(size: float, expected: list[str]) -> None:
    torch.manual_seed(0)
    batch = (size * torch.randn(20, 8), ring(20, lambda i: 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert codes(gnnstab.diagnose(Scaled(1e4), batch=batch), "GS605") == expected


class Constant(nn.Module):
    """A layer behind constant ones, or behind a tanh at both of its limits."""

    def __init__(self, spread: bool) -> None:
        super().__init__()
        self.first, self.second = TransformerConv(8, 8), TransformerConv(8, 8)
        self.spread = spread

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        hidden = self.first(x, edge_index)
        hidden = torch.tanh(60 * hidden) if self.spread else 1 + 0 * hidden
        out: Tensor = self.second(hidden, edge_index)
        return out


@pytest.mark.parametrize("spread", [False, True])
def test_constant_inputs_are_no_saturated_tanh(spread: bool) -> None:
    torch.manual_seed(0)
    diagnosis = gnnstab.diagnose(Constant(spread), batch=(torch.randn(20, 8), ring(20, lambda i: 5)))
    assert codes(diagnosis, "GS702") == (["warning"] if spread else [])


def followed(norm: Callable[[int], float], rate: Callable[[int], float] = lambda i: 1e-3) -> list[Finding]:
    engine, found = LiveEngine(), []
    for i in range(120):
        found += engine.update(i, (), np.empty(0), grad_norm=norm(i), lr=rate(i))
    return [f for f in found if f.code == "GS603"]


def test_live_spikes_are_jumps_and_warm_ups_are_not_judged_by_them() -> None:
    def bursts(i: int) -> float:
        return 30.0 if i in (3, 30, 45, 60) else 1.0

    assert followed(lambda i: math.exp(0.09 * i)) == []
    assert len(followed(bursts)) == 1
    assert followed(bursts, lambda i: 1e-5 * (i + 1)) == []
    assert len(followed(lambda i: 4.0 ** max(i - 40, 0) if i < 50 else 1.0, lambda i: 1e-5 * (i + 1))) == 1


def test_a_trace_of_a_slow_rise_is_silent_and_one_of_a_jump_is_not(tmp_path: Path) -> None:
    from gnnstab.records import StepRow
    from gnnstab.trace import TraceWriter

    shapes: dict[str, Callable[[int], float]] = {
        "rise": lambda i: 1.1**i,
        "jump": lambda i: 1.0 if i < 60 else 50.0,
    }
    for name, norm in shapes.items():
        path = tmp_path / f"{name}.gnnstab"
        with TraceWriter(path, meta={"source": "training"}) as writer:
            for i in range(100):
                writer.step(StepRow(i, 0.1 * i, 1.0, 1e-3, None, norm(i)))
        assert codes(gnnstab.diagnose(path), "GS603") == (["warning"] if name == "jump" else [])


@pytest.mark.parametrize("unit_input", [0.1, 0.9], ids=["by the weights", "by the input"])
@pytest.mark.parametrize(("last", "severity"), [(0.01, "info"), (1.2, "warning")])
def test_attention_that_a_short_run_has_made_sharp_while_it_learned(
    last: float, severity: str, unit_input: float
) -> None:
    """Whether so few steps have trained the weights nobody knows; the loss does."""
    loss = np.linspace(1.3, last, 50)
    seen = Series("attention.entropy", "conv", None, np.array([0, 40]), np.array([0.9, 0.2]))
    values = {"attention.entropy": 0.2, "attention.entropy_unit_input": unit_input, "degree.median": 8.0}
    signals = Signals(
        "trace",
        (LayerFacts("conv", "TransformerConv", 0, True),),
        tuple(Signal(name, value, "conv", detail={"mode": "train"}) for name, value in values.items()),
        (Series("loss", None, None, np.arange(50), loss), seen),
        context={"trained": None},
    )
    found = [f for rule in (AttentionExplosion(), AttentionSaturatedByInput()) for f in rule.check(signals)]
    assert [f.severity for f in found] == [severity]


@pytest.mark.parametrize("written", [True, False])
def test_a_weight_that_was_never_written_is_named_where_the_output_overflows(written: bool) -> None:
    """No update is looked at where the loss is not finite; the sizes of the weights are, all the same."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.Linear(16, 3)
    )
    if not written:
        torch.nn.init.uniform_(model[2].weight, -1.5e38, 1.5e38)
    data = torch.randn(12, 6) * 10
    diagnosis = gnnstab.diagnose(model, batch=(data,), loss=lambda output, batch: output.square().mean())
    named = [f for f in diagnosis.findings if f.code == "GS605"]
    assert [f.cause for f in named] == ["uninitialized-parameter"] * (not written)
    assert all("2.weight" in f.message for f in named)


@pytest.mark.parametrize(("mod", "severity"), [("scaled", "error"), (None, "info")])
def test_memory_that_the_forward_does_not_read_is_information(mod: str | None, severity: str) -> None:
    """PyG's layer has parameters for ways to count neighbours, of which it uses those of the way that it was asked for."""
    torch.manual_seed(0)
    layer = RGATConv(8, 8, num_relations=2, mod=mod)
    layer.l2.data.fill_(3e20)
    data = Data(torch.randn(20, 8), ring(20, lambda i: 5), edge_type=torch.arange(100) % 2)
    diagnosis = gnnstab.diagnose(Related(layer), batch=data, loss=lambda output, batch: output.square().mean())
    assert codes(diagnosis, "GS605") == [severity]


class Related(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.conv = layer

    def forward(self, data: Data) -> Tensor:
        out: Tensor = torch.tanh(self.conv(data.x, data.edge_index, data.edge_type))
        return out


class Normed(nn.Module):
    """Attention with wide weights behind its scores, on a normalised input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.LayerNorm(8), GATConv(8, 8, add_self_loops=False)
        with torch.no_grad():
            self.conv.att_src.mul_(8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.conv(self.norm(x), edge_index)
        return out


STAR = torch.tensor([[*range(1, 40), *[0] * 39], [*[0] * 39, *range(1, 40)]])
"""Node 0 hears all the others, and they hear it alone."""


@pytest.mark.parametrize(
    ("edges", "weighs"),
    [(ring(40, lambda i: 1), False), (ring(40, lambda i: 2), True), (ring(40, lambda i: 6), True), (STAR, True)],
    ids=["one", "two", "six", "star"],
)
def test_scores_of_targets_with_one_neighbour_are_not_judged(edges: Tensor, weighs: bool) -> None:
    torch.manual_seed(0)
    diagnosis = gnnstab.diagnose(Normed(), batch=(torch.randn(40, 8), edges))
    assert bool(codes(diagnosis, "GS301")) == bool(codes(diagnosis, "GS303")) == weighs


def settled(*, high: float) -> Signals:
    """A run over four batches whose loss has come down to .02 of its start, and whose latest medians lie ``high`` above the best."""
    loss = np.concatenate([np.geomspace(1.0, 0.02, 60), np.full(20, 0.02), np.full(20, 0.02 + high)])
    series = Series("loss", None, None, np.arange(len(loss)), loss)
    return Signals("trace", (), series=(series,))


def test_a_loss_is_at_its_best_where_next_to_nothing_is_missing() -> None:
    """1.6 times a best of .02 is less than a hundredth of the start above it."""
    assert trained_well(settled(high=0.009)) and not trained_well(settled(high=0.03))


@pytest.mark.parametrize(
    ("steps", "learns", "severity"),
    [([0, 1, 2, 100], True, "info"), ([0, 1, 2, 100], False, "warning"), ([0, 1, 2, 3], True, "warning")],
)
def test_no_jump_lies_between_two_distant_measurements(steps: list[int], learns: bool, severity: str) -> None:
    engine = LiveEngine()
    for step in range(100):
        engine.loss(step, math.exp(-0.05 * step) if learns else 1.0)
    key = SeriesKey("conv", "train", 0, "score")
    found = [
        finding
        for step in steps
        for finding in engine.update(step, (key,), np.array([7000.0 if step == steps[-1] else 4.0]))
    ]
    assert [(f.code, f.severity) for f in found] == [("GS301", severity)]
