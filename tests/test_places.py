"""Kind of fault × place: a broken program is told by the name of the place, its repaired twin and healthy programs are not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.nn import (
    BatchNorm,
    GATConv,
    GATv2Conv,
    GCNConv,
    GraphNorm,
    SAGEConv,
    TransformerConv,
    global_mean_pool,
    to_hetero,
)

import gnnstab
from gnnstab.records import Diagnosis, Finding
from trained import trained

NODES, WIDTH = 60, 16


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_graph(nodes: int = NODES, degree: int = 6, seed: int = 0) -> Tensor:
    source = torch.randint(0, nodes, (nodes * degree,), generator=seeded(seed))
    return torch.stack([source, torch.arange(nodes).repeat_interleave(degree)])


def complete_graph(nodes: int) -> Tensor:
    i = torch.arange(nodes)
    edges = torch.cartesian_prod(i, i).t()
    return edges[:, edges[0] != edges[1]]


def data(**other: Any) -> Data:
    x = torch.randn(NODES, 8, generator=seeded(1))
    found = Data(x=x, edge_index=random_graph(), y=torch.tanh(x[:, 0] + 0.5 * x[:, 1]))
    for name, value in other.items():
        found[name] = value
    return found


class Net(nn.Module):
    """Two layers with a residual, edge features where the batch has them, and one hook for what a test breaks."""

    def __init__(
        self,
        inside: Callable[[Tensor], Tensor] | None = None,
        edges: int | None = None,
        convs: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inp = nn.Linear(8, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.convs = nn.ModuleList(convs or [TransformerConv(WIDTH, WIDTH, edge_dim=edges) for _ in range(2)])
        self.mid = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, 1)
        self.inside = inside or (lambda h: h)

    def forward(self, batch: Data) -> Tensor:
        h = self.norm(F.relu(self.inp(batch.x)))
        for conv in self.convs:
            h = h + F.relu(conv(h, batch.edge_index, batch.get("edge_attr")))
        return self.out(self.inside(self.mid(h))).squeeze(-1)


def loss(output: Tensor, batch: Data) -> Tensor:
    return F.mse_loss(output, batch.y)


def look(model: nn.Module, batch: Any, **options: Any) -> Diagnosis:
    return gnnstab.diagnose(model, batch=batch, **{"loss": loss, **options})


def loud(diagnosis: Diagnosis, code: str = "") -> list[Finding]:
    return [f for f in diagnosis.findings if f.severity != "info" and f.code.startswith(code)]


def train(model: nn.Module, batch: Any, steps: int = 8, parameters: Any = None) -> Diagnosis:
    optimizer = torch.optim.Adam(parameters or model.parameters(), lr=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trained(model, batch, loss, steps, optimizer=optimizer)


BOTH = pytest.mark.parametrize("face", [look, train], ids=["diagnose", "monitor"])


def test_a_sound_program_is_left_alone() -> None:
    assert loud(look(Net(), data())) == []
    assert loud(train(Net(), data())) == []


# Size.


def edge_features(scale: float) -> Tensor:
    return torch.rand(NODES * 6, 3, generator=seeded(5)) * scale


@BOTH
def test_edge_features_in_raw_units(face: Callable[..., Diagnosis]) -> None:
    (finding, *_) = loud(face(Net(edges=3), data(edge_attr=edge_features(400.0))), "GS406")
    assert finding.layer == "edge_attr" and "`edge_attr`" in finding.message and "convs.0" in finding.message
    diagnosis = face(Net(edges=3), data(edge_attr=edge_features(400.0)))
    assert [c.cause for c in diagnosis.root_causes()] == ["feature-scale"]
    assert loud(face(Net(edges=3), data(edge_attr=edge_features(1.0)))) == []
    # With a loop for every node the layer hands its weights a longer tensor than it was given.
    looped = [GATv2Conv(WIDTH, WIDTH, edge_dim=3), GATConv(WIDTH, WIDTH, edge_dim=3)]
    (finding,) = [f for f in loud(face(Net(convs=looped), data(edge_attr=edge_features(400.0)))) if not f.explained_by]
    assert finding.code == "GS406" and finding.layer == "edge_attr"


class Timed(Net):
    """Adds an encoding of a time to the node states."""

    def __init__(self, normalised: bool) -> None:
        super().__init__()
        self.time = nn.Linear(1, 8)
        self.scale = nn.LayerNorm(8) if normalised else nn.Identity()

    def forward(self, batch: Data) -> Tensor:
        delta = (batch.delta - batch.delta.mean()) / batch.delta.std() if hasattr(self, "by_hand") else batch.delta
        return super().forward(Data(x=batch.x + self.scale(self.time(delta)), edge_index=batch.edge_index))


def test_a_time_delta_in_seconds() -> None:
    batch = data(delta=torch.rand(NODES, 1, generator=seeded(6)) * 86400)
    (finding,) = loud(look(Timed(False), batch), "GS406")
    assert finding.layer == "delta"
    # A normalisation directly behind the linear map takes the scale away again, and so does one by hand.
    assert loud(look(Timed(True), batch), "GS406") == []
    by_hand = Timed(False)
    by_hand.by_hand = True
    assert loud(look(by_hand, batch), "GS406") == []


def test_a_size_that_meets_a_normalisation_first_is_no_fault() -> None:
    class Normed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.BatchNorm1d(8)

        def forward(self, batch: Data) -> Tensor:
            return super().forward(Data(x=self.first(batch.x), edge_index=batch.edge_index))

    batch = data()
    batch.x = batch.x * 1e4
    # A linear map and a ReLU in front of a LayerNorm are normalised as well.
    assert loud(look(Net(), batch), "GS406") == []
    assert loud(train(Normed(), batch), "GS406") == []
    (finding,) = loud(look(Stack(lambda: SAGEConv(WIDTH, WIDTH)), batch), "GS406")
    assert finding.layer == "x"


def test_targets_of_another_scale() -> None:
    batch = data()
    broken = data(y=batch.y * 3e4)
    (finding,) = loud(look(Net(), broken), "GS406")
    assert finding.layer == "y" and "targets" in finding.message
    assert loud(look(Net(), batch), "GS406") == []


def test_what_is_no_measured_value_is_not_judged() -> None:
    ids = torch.arange(NODES).float()[:, None] * 7
    one_hot = F.one_hot(torch.arange(NODES) % 8, 8).float()
    words = torch.zeros(NODES, 8)
    words[:, :3] = torch.randint(0, 30, (NODES, 3), generator=seeded(2)).float()
    for x in (one_hot, words, ids.expand(-1, 8).clone()):
        batch = data(x=x, agent=ids, count=ids.long(), mask=torch.ones(NODES, dtype=torch.bool))
        assert loud(look(Net(), batch), "GS4") == []


def test_ids_beside_small_features_do_not_make_the_input_large() -> None:
    class Looked(Net):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(8 * NODES, 8)

        def forward(self, batch: Data) -> Tensor:
            x = batch.x[:, :8] + self.embed(batch.x[:, 8].long())
            return super().forward(Data(x=x, edge_index=batch.edge_index))

    batch = data()
    batch.x = torch.cat([batch.x, torch.arange(NODES).float()[:, None] * 8], 1)
    assert loud(look(Looked(), batch)) == []


def test_bag_of_words_with_weight_decay_trained() -> None:
    """The settings that PyG's examples use on citation graphs."""

    class Citations(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = GCNConv(300, 16), GCNConv(16, 4)

        def forward(self, batch: Data) -> Tensor:
            h = F.relu(self.one(F.dropout(batch.x, 0.5, self.training), batch.edge_index))
            return self.two(F.dropout(h, 0.5, self.training), batch.edge_index)

    y = torch.arange(NODES) % 4
    words = (torch.rand(NODES, 300, generator=seeded(8)) < 0.02).float()
    for kind in range(4):
        words[y == kind, 20 * kind : 20 * kind + 20] = (
            torch.rand(NODES // 4, 20, generator=seeded(kind)) < 0.3
        ).float()
    batch = Data(x=words / words.sum(1, keepdim=True).clamp(min=1), edge_index=random_graph(), y=y)
    model = Citations()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    entropy = lambda out, b: F.cross_entropy(out, b.y)  # noqa: E731
    assert loud(trained(model, batch, entropy, 60, optimizer=optimizer)) == []
    after = look(model, batch, loss=entropy, optimizer=optimizer)
    assert loud(after) == []


# Not finite.


@pytest.mark.parametrize("name", ["x", "edge_attr", "y"])
def test_nan_in_a_tensor_of_the_batch(name: str) -> None:
    batch = data(edge_attr=edge_features(1.0))
    broken = batch.clone()
    broken[name] = broken[name].clone()
    broken[name][5] = float("nan")
    (finding,) = loud(look(Net(edges=3), broken), "GS407")
    assert finding.layer == name and finding.severity == "error" and "rows 5" in finding.message
    assert finding.cause == "non-finite-data"
    assert loud(look(Net(edges=3), batch), "GS407") == []


def test_targets_that_a_mask_leaves_out_may_be_nan() -> None:
    batch = data(mask=torch.arange(NODES) < 30)
    batch.y[30:] = float("nan")
    masked = look(Net(), batch, loss=lambda out, b: F.mse_loss(out[b.mask], b.y[b.mask]))
    assert loud(masked) == []
    assert [f.layer for f in masked.findings if f.code == "GS407" and f.severity == "info"][:1] == ["y"]


# Dead, clamped, saturated.


def test_a_dead_relu_behind_a_norm() -> None:
    def behind(bias: float) -> Net:
        norm = nn.LayerNorm(WIDTH)
        nn.init.constant_(norm.bias, bias)
        return Net(inside=nn.Sequential(norm, nn.ReLU()))

    (finding,) = loud(look(behind(-20.0), data()), "GS701")
    assert finding.layer == "inside.0" and finding.cause == "dead-units"
    assert loud(look(behind(0.0), data()), "GS701") == []


class Embedded(nn.Module):
    """Ids looked up, a ReLU on the embedding; all closed but for the first ``opened`` ids."""

    def __init__(self, opened: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(NODES, 8)
        self.net = Net()
        if opened is not None:
            with torch.no_grad():
                self.embed.weight[opened:] -= 10.0

    def forward(self, batch: Data) -> Tensor:
        return self.net(Data(x=F.relu(self.embed(batch.kind)), edge_index=batch.edge_index))


@pytest.mark.parametrize("opened", [0, 1])
def test_a_dead_and_a_nearly_dead_embedding(opened: int) -> None:
    batch = data(kind=torch.arange(NODES))
    found = loud(look(Embedded(opened), batch), "GS701")
    assert [f.layer for f in found][:1] == ["embed"]
    assert loud(look(Embedded(None), batch), "GS701") == []


@pytest.mark.parametrize(
    "clamp",
    [
        lambda h: h.clamp(-0.1, 0.1),
        lambda h: torch.minimum(h, torch.tensor(-0.2)),
        lambda h: F.hardtanh(h, -0.05, 0.05),
    ],
)
def test_a_clamp_within(clamp: Callable[[Tensor], Tensor]) -> None:
    (finding,) = loud(look(Net(inside=clamp), data()), "GS703")
    assert finding.layer == "mid" and finding.value > 0.1


def test_a_clamp_at_the_output_and_one_that_never_acts() -> None:
    class Cut(Net):
        limit = 0.05

        def forward(self, batch: Data) -> Tensor:
            return super().forward(batch).clamp(-self.limit, self.limit)

    (finding,) = loud(look(Cut(), data()), "GS703")
    assert finding.layer == "out" and "in front of the output" in finding.message
    wide = Cut()
    wide.limit = 100.0
    assert loud(look(wide, data()), "GS703") == []
    assert loud(look(Net(inside=lambda h: h.clamp(min=0)), data()), "GS703") == [], "that is a ReLU"
    assert loud(look(Net(inside=lambda h: (4 * h).clamp(0, 1)), data()), "GS703") == [], "that is a hard sigmoid"
    assert loud(look(Net(inside=lambda h: (4 * h).clamp(0.1, 1)), data()), "GS703") != []


def test_a_saturated_tanh() -> None:
    (finding,) = loud(look(Net(inside=lambda h: torch.tanh(30 * h)), data()), "GS702")
    assert finding.layer == "mid"
    assert loud(look(Net(inside=torch.tanh), data()), "GS702") == []


# Alike.


class Stack(nn.Module):
    """Layers without a path of a node to itself, unless asked for one."""

    def __init__(self, kind: Callable[..., nn.Module], layers: int = 2, identity: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.identity = identity
        self.inp = nn.Linear(8, WIDTH)
        self.convs = nn.ModuleList([kind() for _ in range(layers)])
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, batch: Data) -> Tensor:
        h = self.inp(batch.x)
        for conv in self.convs:
            new = torch.tanh(conv(h, batch.edge_index))
            h = h + new if self.identity else new
        return self.out(h).squeeze(-1)


@BOTH
@pytest.mark.parametrize(
    "kind",
    [
        lambda: TransformerConv(WIDTH, WIDTH, root_weight=False),
        lambda: GATConv(WIDTH, WIDTH),
        lambda: GCNConv(WIDTH, WIDTH),
    ],
    ids=["TransformerConv", "GATConv", "GCNConv"],
)
def test_nodes_of_a_complete_graph(face: Callable[..., Diagnosis], kind: Callable[..., nn.Module]) -> None:
    batch = data(edge_index=complete_graph(NODES))
    found = [f for f in loud(face(Stack(kind, 3), batch), "GS704") if f.cause == "indistinguishable-nodes"]
    assert len(found) == 1 and "alike" in found[0].message and str(found[0].layer).startswith("convs.")
    twin = loud(face(Stack(kind, 3, identity=True), batch), "GS704")
    assert twin == []


def test_an_input_that_is_the_same_for_every_node() -> None:
    ring = torch.stack([torch.arange(NODES), (torch.arange(NODES) + 1) % NODES])
    batch = data(x=torch.full((NODES, 8), 0.3), edge_index=ring)
    (finding,) = loud(look(Stack(lambda: SAGEConv(WIDTH, WIDTH)), batch), "GS704")
    assert "already in the input `x`" in finding.message
    # A sum over neighbourhoods of different size tells nodes apart.
    star = torch.stack([torch.arange(1, NODES), torch.zeros(NODES - 1, dtype=torch.long)])
    batch.edge_index = torch.cat([ring, star], 1)
    batch.y = (torch.arange(NODES) == 0).float()  # What the edges can tell.
    assert loud(look(Stack(lambda: SAGEConv(WIDTH, WIDTH, aggr="sum")), batch), "GS704") == []


# Without a gradient.


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


@BOTH
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


# Normalised away, post-norm.


def graphs(shift: float) -> Batch:
    found = []
    for i in range(24):
        mean = torch.randn(1, generator=seeded(100 + i)) * shift
        x = torch.randn(12, 8, generator=seeded(i)) + mean
        found.append(Data(x=x, edge_index=random_graph(12, 4, seed=i), y=mean + 0.0))
    return Batch.from_data_list(found)


class Pooled(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.inp = nn.Linear(8, WIDTH)
        self.conv = TransformerConv(WIDTH, WIDTH)
        self.norm = norm
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, batch: Batch) -> Tensor:
        h = self.inp(batch.x)
        h = self.conv(h, batch.edge_index)
        h = self.norm(h, batch.batch) if isinstance(self.norm, GraphNorm) else self.norm(h)
        return self.out(global_mean_pool(F.relu(h), batch.batch)).squeeze(-1)


def test_a_norm_that_takes_away_what_the_pooling_needs() -> None:
    (finding,) = loud(look(Pooled(GraphNorm(WIDTH)), graphs(2.0)), "GS108")
    assert finding.layer == "norm" and finding.cause == "normalization-misuse" and "mean" in finding.message
    assert loud(look(Pooled(nn.BatchNorm1d(WIDTH)), graphs(2.0)), "GS108") == []
    # Where the targets do not follow the mean, nobody needs it.
    unrelated = graphs(2.0)
    unrelated.y = torch.randn(24, generator=seeded(77))
    assert loud(look(Pooled(GraphNorm(WIDTH)), unrelated), "GS108") == []


class Blocks(nn.Module):
    def __init__(self, depth: int, *, post: bool) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.post = post
        self.inp, self.out = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 1)
        self.convs = nn.ModuleList([TransformerConv(WIDTH, WIDTH) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(depth)])

    def forward(self, batch: Data) -> Tensor:
        h = self.inp(batch.x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = norm(h + conv(h, batch.edge_index)) if self.post else h + conv(norm(h), batch.edge_index)
        return self.out(h).squeeze(-1)


def test_normalisations_behind_the_residual_sum() -> None:
    post, pre = look(Blocks(10, post=True), data()), look(Blocks(10, post=False), data())
    (signal,) = [s for s in post.signals if s.name == "place.post_norms"]
    assert signal.value == 10 and signal.detail["names"][:2] == ["norms.0", "norms.1"]
    wrapped = Blocks(10, post=True)
    wrapped.norms = nn.ModuleList(BatchNorm(WIDTH) for _ in range(10))
    (signal,) = [s for s in look(wrapped, data()).signals if s.name == "place.post_norms"]
    assert signal.value == 10, "PyG's own holds one of torch"
    assert not [s for s in pre.signals if s.name == "place.post_norms"]
    # Fresh, their gradient reaches the first layer: nothing has gone wrong yet.
    assert loud(post, "GS106") == loud(pre, "GS106") == []


def test_a_post_norm_stack_at_a_rate_that_a_pre_norm_one_bears() -> None:
    broken, twin = (trained(Blocks(16, post=post), data(), loss, 60, 0.02) for post in (True, False))
    (finding,) = loud(broken, "GS106")
    assert "post-norm" in finding.message
    assert [c.cause for c in broken.root_causes()] == ["normalization-misuse"]
    assert loud(twin) == []


# The run is left as it was.


def test_the_looks_change_nothing_of_the_run() -> None:
    def run(watched: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model, batch = Net(inside=lambda h: F.dropout(h, 0.3)), data()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        monitor = gnnstab.Monitor(model, optimizer=optimizer, schedule=1, on_finding="ignore")
        with monitor if watched else warnings.catch_warnings():
            for _ in range(5):
                optimizer.zero_grad()
                loss(model(batch), batch).backward()
                optimizer.step()
        if watched:
            assert any(s.name == "place.rms" for s in monitor.diagnose().signals)
        return [p.detach().clone() for p in model.parameters()] + [torch.get_rng_state()]

    assert all(map(torch.equal, run(True), run(False)))
