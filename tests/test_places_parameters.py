"""Parameters that nothing trains: broken programs, their repaired twins, both faces."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import MessagePassing, TransformerConv, to_hetero

import gnnstab
from gnnstab.records import Diagnosis
from test_places import (
    BOTH,
    NODES,
    WIDTH,
    Net,
    Stack,
    data,
    edge_features,
    look,
    loss,
    loud,
    random_graph,
    seeded,
    train,
)
from trained import trained


class Scaled(Net):
    """A weight on the output that may pass through numbers of Python."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.fixed = fixed
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in range(2)])

    def forward(self, batch: Data) -> Tensor:
        factor = self.scales[0] * self.scales[1]
        return super().forward(batch) * (factor if self.fixed else torch.tensor(factor.tolist()))


@BOTH
def test_parameters_behind_an_operation_without_gradient(face: Callable[..., Diagnosis]) -> None:
    (finding,) = loud(face(Scaled(False), data()), "GS604")
    assert "scales.0" in finding.message and "scales.1" in finding.message
    assert loud(face(Scaled(True), data()), "GS604") == []


class Listed(Net):
    def __init__(self, kept: Callable[[list[nn.Module]], Any]) -> None:
        super().__init__()
        self.extra = kept([nn.Linear(8, 8) for _ in range(2)])

    def forward(self, batch: Data) -> Tensor:
        x = batch.x
        for layer in self.extra:
            x = x + layer(x).tanh()
        return super().forward(Data(x=x, edge_index=batch.edge_index))


@BOTH
def test_layers_in_a_plain_list(face: Callable[..., Diagnosis]) -> None:
    (finding,) = loud(face(Listed(list), data()), "GS604")
    assert "extra[0].weight" in finding.message and "ModuleList" in finding.message
    assert loud(face(Listed(nn.ModuleList), data()), "GS604") == []


def test_a_module_that_is_never_called() -> None:
    model = Net()
    model.forgotten = nn.Linear(3, 3)
    for diagnosis in (look(model, data()), train(model, data())):
        (finding,) = [f for f in diagnosis.findings if f.code == "GS604"]
        assert "forgotten.weight" in finding.message and "not called" in finding.message
        assert finding.severity == "info"


class Edged(nn.Module):
    """An embedding of the edges that is updated behind every layer; ``way`` is what becomes of the embedding of the nodes."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 1)
        self.updates = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.table, self.way = nn.Parameter(torch.rand(NODES, 1)), way

    def forward(self, batch: Data) -> Tensor:
        x, edge_index = batch.x, batch.edge_index
        h = self.embed(x)
        if self.way == "no_grad":
            with torch.no_grad():
                h = self.embed(x)
        h = {"detach": h.detach(), "round": h.detach().round()}.get(self.way, h)
        e = x[edge_index[0]].repeat(1, WIDTH // 8)
        for update in self.updates:
            h = h + torch.zeros_like(h).index_add(0, edge_index[1], e) / 8
            new = update(e).tanh()
            e = e if self.way in ("every", "first") else new
        if self.way == "first":
            h = h + torch.zeros_like(h).index_add(0, edge_index[1], new) / 8
        result = self.out(h)
        self.table.data = result.detach()
        return result.squeeze(-1)


@pytest.mark.parametrize("way", ["as it is", "detach", "round", "no_grad"])
@pytest.mark.parametrize("face", [look, train])
def test_what_no_loss_can_reach_is_information_and_a_cut_is_not(face: Any, way: str) -> None:
    found = [f for f in face(Edged(way), data()).findings if f.code == "GS604"]
    told = {part: f.severity for f in found for part in ("embed", "updates.1", "table") if part in f.message}
    cut = {} if way == "as it is" else {"embed": "error"}
    assert told == {"updates.1": "info", "table": "info", **cut}


@pytest.mark.parametrize("way", ["every", "first"])
@pytest.mark.parametrize("face", [look, train], ids=["diagnose", "monitor"])
def test_a_result_that_is_thrown_away_in_front_of_the_last_layer(face: Any, way: str) -> None:
    diagnosis = face(Edged(way), data())
    assert "updates.0.weight" in loud(diagnosis, "GS604")[0].message
    assert [c.cause for c in diagnosis.root_causes()] == ["never-updated-parameter"]
    assert loud(face(Edged(way), data(others=random_graph(seed=9))), "GS604") == [], "a relation that nothing reads"


def test_a_parameter_replaced_after_the_optimizer_was_built() -> None:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    assert loud(look(model, data(), optimizer=optimizer), "GS604") == []
    model.out = nn.Linear(WIDTH, 1)
    (finding,) = loud(look(model, data(), optimizer=optimizer), "GS604")
    assert finding.severity == "error" and "out.weight" in finding.message and "replaced" in finding.message
    found = loud(
        train(model, data(), parameters=[p for n, p in model.named_parameters() if not n.startswith("out")]), "GS604"
    )
    assert "out.weight" in found[0].message and found[0].severity == "warning"


class Copies(torch.optim.Adam):
    """Moves copies in double precision, and writes them back into the model: as of mixed precision by hand."""

    def __init__(self, model: nn.Module, back: bool) -> None:
        self.own = list(model.parameters()) if back else []
        self.copies = [p.detach().double().requires_grad_() for p in model.parameters()]
        super().__init__(self.copies, lr=1e-3)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for copy, own in zip(self.copies, self.own, strict=False):
            copy.grad = own.grad.double() if own.grad is not None else None
        super().step(closure)
        with torch.no_grad():
            for copy, own in zip(self.copies, self.own, strict=False):
                own.copy_(copy)


@pytest.mark.parametrize("back", [True, False])
def test_weights_that_move_although_no_optimizer_holds_them(back: bool) -> None:
    model = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = loud(trained(model, data(), loss, 8, optimizer=Copies(model, back)), "GS604")
    assert [finding.signal for finding in found] == ([] if back else ["place.not_held"])


def test_a_table_with_sparse_gradients_trains() -> None:
    class Looked(Net):
        def __init__(self) -> None:
            super().__init__()
            self.inp = nn.Embedding(NODES, 8, sparse=True)  # type: ignore[assignment]
            self.widen = nn.Linear(8, WIDTH)

        def forward(self, batch: Data) -> Tensor:
            h = self.norm(self.widen(self.inp(torch.arange(NODES)[:: 1 + self.convs.training])))
            h = torch.zeros(NODES, WIDTH).index_add(0, torch.arange(len(h)), h)
            for conv in self.convs:
                h = h + conv(h, batch.edge_index)
            return self.out(self.mid(h)).squeeze(-1)

    model = Looked()
    dense = [p for name, p in model.named_parameters() if name != "inp.weight"]
    optimizers = [torch.optim.SparseAdam([model.inp.weight], lr=1e-2), torch.optim.Adam(dense, lr=1e-2)]
    with gnnstab.Monitor(model, optimizer=optimizers, on_finding="ignore", schedule="every step") as monitor:
        for _ in range(8):
            for optimizer in optimizers:
                optimizer.zero_grad()
            value = loss(model(data()), data())
            value.backward()
            monitor.loss(value)
            for optimizer in optimizers:
                optimizer.step()
    assert "inp.weight" not in str(loud(monitor.diagnose(), "GS604"))


def test_attention_over_one_neighbour_has_no_gradient_by_nature() -> None:
    ring = torch.stack([torch.arange(NODES), (torch.arange(NODES) + 1) % NODES])
    diagnosis = train(Net(), data(edge_index=ring))
    assert loud(diagnosis, "GS604") == []


@pytest.mark.parametrize("reads", ["one neighbour", "all"])
def test_scores_that_no_output_depends_on_have_no_gradient_by_nature(reads: str) -> None:
    """The model answers for nodes of in-degree 1 in a graph that has others; its twin for all, with scores cut off from the loss."""

    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = TransformerConv(8, WIDTH), nn.Linear(WIDTH, 1)
            if reads == "all":
                for part in (self.conv.lin_query, self.conv.lin_key):
                    part.register_forward_hook(lambda module, args, output: output.detach())

        def forward(self, batch: Data) -> Tensor:
            return self.out(self.conv(batch.x, batch.edge_index)).squeeze(-1)[chosen]

    single = torch.arange(NODES // 2)
    source, target = random_graph()
    edges = torch.stack([source, target])[:, target >= NODES // 2]
    batch = data(edge_index=torch.cat([edges, torch.stack([single + 1, single])], dim=1))
    chosen = single if reads == "one neighbour" else torch.arange(NODES)
    diagnosis = trained(Read(), batch, lambda output, b: F.mse_loss(output, b.y[chosen]))
    silent = [f for f in loud(diagnosis, "GS604") if "lin_query" in f.message]
    assert bool(silent) is (reads == "all")


@pytest.mark.parametrize("face", [look, partial(train, trials=None)], ids=["diagnose", "monitor"])
@pytest.mark.parametrize(("slowest", "told"), [(1e-6, []), (1.0, ["rel_t"])])
def test_a_time_encoding_is_made_for_the_size_of_its_input(
    face: Callable[..., Diagnosis], slowest: float, told: list[str]
) -> None:
    class Clock(Net):
        def __init__(self) -> None:
            super().__init__(edges=WIDTH)
            self.time = nn.Linear(1, WIDTH)
            with torch.no_grad():
                self.time.weight.copy_(torch.logspace(0, math.log10(slowest), WIDTH)[:, None])

        def forward(self, batch: Data) -> Tensor:
            own = Data(x=batch.x, edge_index=batch.edge_index, edge_attr=torch.cos(self.time(batch.rel_t[:, None])))
            return super().forward(own)

    seconds = 2e5 * torch.rand(NODES * 6, generator=seeded(4))
    assert [f.layer for f in loud(face(Clock(), data(rel_t=seconds)), "GS406")] == told


@pytest.mark.usefixtures("brief")
def test_what_is_left_out_on_purpose_is_no_fault() -> None:
    frozen = Net()
    frozen.inp.requires_grad_(False)
    assert loud(look(frozen, data()), "GS604") == []
    head = Net()
    with torch.no_grad():  # A body that another run has trained: not as drawn.
        for parameter in head.convs.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(7)))
    assert loud(train(head, data(), parameters=list(head.out.parameters())), "GS604") == []
    drawn = Net()
    (finding,) = loud(train(drawn, data(), parameters=list(drawn.out.parameters())), "GS604")
    assert finding.signal == "place.not_held" and "convs.0" in finding.message
    bare = Stack(lambda: TransformerConv(WIDTH, WIDTH, root_weight=False), identity=True)
    assert loud(look(bare, data()), "GS604") == []
    assert loud(train(bare, data()), "GS604") == []


def test_a_relation_that_the_read_out_does_not_use() -> None:
    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = TransformerConv((-1, -1), WIDTH), TransformerConv((-1, -1), 1)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.two(self.one(x, edge_index).relu(), edge_index)

    batch = HeteroData()
    batch["a"].x, batch["b"].x = torch.randn(20, 4), torch.randn(30, 4)
    for source, target, seed in (("a", "b", 1), ("b", "a", 2)):
        edges = torch.randint(0, 20, (2, 80), generator=seeded(seed))
        batch[source, "to", target].edge_index = edges
    model = to_hetero(Base(), batch.metadata())
    arguments = {"x": batch.x_dict, "edge_index": batch.edge_index_dict}
    with torch.no_grad():
        model(**arguments)
    found = look(model, arguments, loss=lambda out, _: out["a"].square().mean())
    assert loud(found, "GS604") == []


class Late(Net):
    """A scale of the output that the forward makes when it first knows how wide it is."""

    def forward(self, batch: Data) -> Tensor:
        out = super().forward(batch)
        if not hasattr(self, "scale"):
            self.scale = nn.Linear(1, 1)
        return self.scale(out[:, None])[:, 0]


@pytest.mark.usefixtures("brief")
@BOTH
def test_parameters_that_the_forward_makes_after_the_optimizer(face: Callable[..., Diagnosis]) -> None:
    def seen(model: nn.Module) -> list[str]:
        if face is look:
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            found = gnnstab.diagnose(model, batch=data(), loss=loss, optimizer=optimizer)
        else:
            found = train(model, data())
        return [f.message for f in loud(found, "GS604")]

    (message,) = seen(Late())
    assert "scale.weight" in message and "run it once before" in message
    ran = Late()
    ran(data())
    assert seen(ran) == []
    assert loud(look(Late(), data()), "GS604") == []  # When its optimizer is built is not known.


class Blended(nn.Module):
    """A branch whose share is a parameter."""

    def __init__(
        self, begins: float, squash: Callable[[Tensor], Tensor] = torch.sigmoid, trainable: bool = True
    ) -> None:
        super().__init__()
        self.branch, self.squash = nn.Linear(WIDTH, WIDTH), squash
        self.gate = nn.Parameter(torch.full((WIDTH,), begins), requires_grad=trainable)

    def forward(self, h: Tensor) -> Tensor:
        share = self.squash(2 * self.gate[None])
        return (1 - share) * h + share * torch.tanh(self.branch(h))


@BOTH
@pytest.mark.parametrize(("begins", "squash"), [(-9.0, torch.sigmoid), (8.5, torch.sigmoid), (-4.0, torch.tanh)])
def test_a_gate_that_is_a_parameter_and_shut_or_open(
    face: Callable[..., Diagnosis], begins: float, squash: Callable[[Tensor], Tensor]
) -> None:
    diagnosis = face(Net(inside=Blended(begins, squash)), data())
    (finding,) = loud(diagnosis, "GS104")
    assert finding.layer == "inside.gate" and "parameter inside.gate" in finding.message
    (cause,) = [c for c in diagnosis.root_causes() if c.cause == "saturated-gate"]
    assert any(fix.change == "nn.init.zeros_(model.inside.gate)" for fix in cause.fixes)
    assert loud(face(Net(inside=Blended(0.0, squash)), data())) == []


@BOTH
@pytest.mark.parametrize(("begins", "trainable"), [(-2.5, True), (2.5, True), (-9.0, False)])
def test_a_gate_that_begins_almost_shut_as_is_usual_or_is_no_parameter(
    face: Callable[..., Diagnosis], begins: float, trainable: bool
) -> None:
    assert loud(face(Net(inside=Blended(begins, trainable=trainable)), data()), "GS104") == []


class OfEdges(MessagePassing):
    """A layer that adds a map of the features of the edges to what it passes on, where it is given them."""

    def __init__(self) -> None:
        super().__init__(node_dim=0, aggr="mean")
        self.lin, self.lin_edge = nn.Linear(WIDTH, WIDTH), nn.Linear(3, WIDTH)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None) -> Tensor:
        return self.propagate(edge_index, x=self.lin(x), edge_attr=edge_attr)

    def message(self, x_j: Tensor, edge_attr: Tensor | None) -> Tensor:
        return x_j if edge_attr is None else x_j + self.lin_edge(edge_attr)


class Pipes(Net):
    """``way``: which of the layers are given the features of the edges, or how else these are read."""

    def __init__(self, way: str) -> None:
        super().__init__(convs=[OfEdges(), OfEdges()])
        self.way = way

    def forward(self, batch: Data) -> Tensor:
        h, steps = self.norm(F.relu(self.inp(batch.x))), batch.edge_attr
        if self.way == "rounded":
            h = h + torch.zeros(NODES, 1).index_add(0, batch.edge_index[1], steps.detach().sum(1, keepdim=True).round())
        for position, conv in enumerate(self.convs):
            fed = self.way == "all" or (self.way == "first" and position == 0)
            h = h + F.relu(conv(h, batch.edge_index, steps if fed else None))
        return self.out(self.mid(h)).squeeze(-1)


@pytest.mark.usefixtures("brief")
@BOTH
@pytest.mark.parametrize("way", ["none", "all", "first", "rounded"])
def test_features_of_the_edges_that_no_layer_is_given(face: Callable[..., Diagnosis], way: str) -> None:
    """Layers that hold a map for them, beside features that no output depends on; where anything reads these, it may be meant."""
    found = loud(face(Pipes(way), data(edge_attr=edge_features(1.0))), "GS604")
    assert ["convs.0.lin_edge.weight" in f.message for f in found] == ([True] if way == "none" else [])


def test_features_of_another_width_than_the_map_of_the_layers() -> None:
    assert loud(look(Pipes("none"), data(edge_attr=edge_features(1.0)[:, :2])), "GS604") == []
