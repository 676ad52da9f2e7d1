"""Kind of fault × place: a broken program is told by the name of the place, its repaired twin and healthy programs are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import (
    GATConv,
    GATv2Conv,
    GCNConv,
    SAGEConv,
    TransformerConv,
)

import gnnstab
from gnnstab.records import Diagnosis, Finding
from side_by_side import brief_trials, without_trials
from trained import take_step, trained

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


def train(model: nn.Module, batch: Any, steps: int = 8, parameters: Any = None, *, trials: int | None = 0) -> Diagnosis:
    """``trials``: most steps of each trial on a copy when the run has ended, None for all: places are seen without them, and `look` takes whole ones."""
    optimizer = torch.optim.Adam(parameters or model.parameters(), lr=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ExitStack() as few:
            if trials is not None:
                few.enter_context(brief_trials(trials or 2))
            if trials == 0:
                few.enter_context(without_trials())
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


# The run is left as it was.


def test_the_looks_change_nothing_of_the_run() -> None:
    def run(watched: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model, batch = Net(inside=lambda h: F.dropout(h, 0.3)), data()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        monitor = gnnstab.Monitor(model, optimizer=optimizer, schedule=1, on_finding="ignore")
        with monitor if watched else warnings.catch_warnings():
            for _ in range(5):
                take_step(optimizer, loss(model(batch), batch))
        if watched:
            assert any(s.name == "place.rms" for s in monitor.diagnose().signals)
        return [p.detach().clone() for p in model.parameters()] + [torch.get_rng_state()]

    assert all(map(torch.equal, run(True), run(False)))
