"""Where a gradient stops, weights nobody would draw, rows that are alike: broken programs, their repaired twins, both faces."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.records import Diagnosis, Finding
from test_places import NODES, WIDTH, Net, data, look, loss, loud, random_graph, train
from trained import take_step, trained

Face = Callable[[nn.Module, Data], Diagnosis]
FACES = pytest.mark.parametrize("face", [look, train], ids=["diagnose", "monitor"])


def one(diagnosis: Diagnosis, code: str) -> Finding:
    """The one finding that is loud and not explained by another."""
    (finding,) = [f for f in loud(diagnosis) if f.explained_by is None]
    assert finding.code == code
    assert [c.cause for c in diagnosis.root_causes()] == [finding.cause]
    return finding


class Levels(nn.Module):
    """Three levels of every state, with a gradient or without."""

    def __init__(self, straight: bool) -> None:
        super().__init__()
        self.straight = straight

    def forward(self, h: Tensor) -> Tensor:
        levels = torch.sign(h) * (h.abs() > 0.1)
        return h + (levels - h).detach() if self.straight else levels


@FACES
def test_an_operation_without_a_derivative(face: Face) -> None:
    finding = one(face(Skipping(Levels(False)), data()), "GS604")
    assert "sign behind code" in finding.message and "code.weight" in finding.message
    assert loud(face(Skipping(Levels(True)), data())) == []


class Skipping(Net):
    """A code beside the road, so that the other parameters train."""

    def __init__(self, levels: nn.Module) -> None:
        super().__init__()
        self.mid = nn.Identity()
        self.code = nn.Linear(8, WIDTH)
        self.levels = levels

    def forward(self, batch: Data) -> Tensor:
        h = self.norm(F.relu(self.inp(batch.x))) + self.levels(self.code(batch.x))
        for conv in self.convs:
            h = h + F.relu(conv(h, batch.edge_index))
        return self.out(h).squeeze(-1)


class Zipped(Net):
    """Layers that run beside their norms, of which a list that was filled too early holds none."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(norms))

    def forward(self, batch: Data) -> Tensor:
        h = self.norm(F.relu(self.inp(batch.x)))
        for conv, norm in zip(self.convs, self.norms, strict=False):
            h = h + F.relu(conv(norm(h), batch.edge_index))
        return self.out(self.mid(h)).squeeze(-1)


@FACES
def test_no_attention_layer_is_ever_called(face: Face) -> None:
    finding = one(face(Zipped(0), data()), "GS604")
    assert "calls none of the 2 attention layers" in finding.message
    assert loud(face(Zipped(2), data())) == []


class Scaled(nn.Module):
    """A learned temperature within limits."""

    def __init__(self, high: float) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))
        self.high = high

    def forward(self, h: Tensor) -> Tensor:
        return h / F.hardtanh(self.temperature, 0.01, self.high)


@FACES
def test_a_parameter_beyond_its_limits(face: Face) -> None:
    finding = one(face(Net(inside=Scaled(0.5)), data()), "GS604")
    assert "clamp behind inside.temperature" in finding.message
    assert loud(face(Net(inside=Scaled(5.0)), data())) == []


class Slots(nn.Module):
    """Attention over four slots by hand."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ask, self.value, self.dim = nn.Linear(WIDTH // 4, 1), nn.Linear(WIDTH // 4, WIDTH), dim

    def forward(self, h: Tensor) -> Tensor:
        slots = h.unflatten(-1, (4, WIDTH // 4))
        return (torch.softmax(self.ask(slots), self.dim) * self.value(slots)).sum(1)


@FACES
def test_a_softmax_over_one_entry(face: Face) -> None:
    finding = one(face(Net(inside=Slots(-1)), data()), "GS604")
    assert "softmax behind inside.ask" in finding.message
    assert loud(face(Net(inside=Slots(1)), data())) == []


class Drawn(nn.Module):
    """A layer's output with noise of a learned deviation around a learned shift."""

    def __init__(self, draw: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.shift, self.spread = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.full((WIDTH,), 0.1))
        self.draw = draw

    def forward(self, h: Tensor) -> Tensor:
        return h + self.draw(self.shift.expand_as(h), self.spread.abs().expand_as(h))


@FACES
@pytest.mark.parametrize(
    ("draw", "named"),
    [
        (torch.normal, "torch.normal"),
        (lambda shift, spread: torch.bernoulli((shift + spread).sigmoid()), "torch.bernoulli"),
        (lambda shift, spread: torch.poisson((shift + spread).exp()), "torch.poisson"),
        (lambda shift, spread: shift + spread * torch.randn_like(shift), None),
    ],
)
def test_parameters_of_a_draw(face: Face, draw: Callable[[Tensor, Tensor], Tensor], named: str | None) -> None:
    said = face(Net(inside=Drawn(draw)), data())
    if named is None:
        assert loud(said) == []
    else:
        finding = one(said, "GS604")
        assert f"{named} behind inside" in finding.message and "inside.shift, inside.spread" in finding.message
        assert finding.cause == "never-updated-parameter"


class Normed(Net):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.last = norm

    def forward(self, batch: Data) -> Tensor:
        return self.last(super().forward(batch).unsqueeze(-1)).squeeze(-1)


@FACES
def test_a_norm_of_a_single_number(face: Face) -> None:
    finding = one(face(Normed(nn.LayerNorm(1)), data()), "GS108")
    assert finding.layer == "last" and "single entry" in finding.message
    assert loud(face(Normed(nn.Identity()), data())) == []


class Gated(nn.Module):
    def __init__(self, bias: float, squash: Callable[[Tensor], Tensor] = torch.sigmoid) -> None:
        super().__init__()
        self.gate, self.branch, self.squash = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), squash
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.squash(self.gate(h)) * torch.tanh(self.branch(h))


@FACES
@pytest.mark.parametrize(
    ("bias", "squash"),
    [(-35.0, torch.sigmoid), (35.0, torch.sigmoid), (-6.0, partial(torch.clamp, min=0, max=1)), (8.0, F.hardsigmoid)],
)
def test_a_gate_that_was_made_shut_or_open(face: Face, bias: float, squash: Callable[[Tensor], Tensor]) -> None:
    finding = one(face(Net(inside=Gated(bias, squash)), data()), "GS104")
    assert finding.cause == "saturated-gate" and finding.layer == "inside.gate" and f"{bias:g}" in finding.message
    assert loud(face(Net(inside=Gated(0.5, squash)), data())) == []


class Positive(Net):
    def __init__(self, bias: float) -> None:
        super().__init__()
        nn.init.constant_(self.out.bias, bias)

    def forward(self, batch: Data) -> Tensor:
        return F.relu(super().forward(batch))


@FACES
def test_a_single_relu_at_the_output(face: Face) -> None:
    batch = data()
    batch.y = batch.y.abs()  # Such an output reaches nothing below zero.
    finding = one(face(Positive(-60.0), batch), "GS701")
    assert finding.layer == "out" and "in front of the output" in finding.message
    assert loud(face(Positive(1.0), batch)) == []


class Branch(nn.Module):
    """A branch that begins with a factor of 0 and may learn another one."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.factor = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()), nn.Parameter(torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.factor * self.map(h)


class Moved(Net):
    """A step that begins at zero; a small part of the output is what it makes of a number at the edge of what has an angle."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, batch: Data) -> Tensor:
        step = super().forward(batch)
        return step + 0.01 * torch.acos((1 + step).clamp(-0.9999, 0.9999))


@pytest.mark.parametrize("model", [lambda: Net(inside=Branch()), Moved], ids=["factor", "map"])
def test_a_factor_of_zero_that_learns_is_how_a_branch_begins(model: Callable[[], nn.Module]) -> None:
    assert loud(look(model(), data())) == []


class Wide(Net):
    def __init__(self, factor: float, norm: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH) if norm else nn.Identity()
        with torch.no_grad():
            self.inp.weight.mul_(factor)


class MadeGood(nn.Module):
    """A wide map and, behind a ReLU, one that is as narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            self.up.weight.mul_(80.0)
            self.down.weight.div_(80.0)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.down(self.up(h).relu())


@FACES
def test_a_weight_that_no_initialisation_draws(face: Face) -> None:
    finding = one(face(Wide(80.0), data()), "GS201")
    assert finding.layer == "inp" and finding.cause == "unsuitable-init"
    assert loud(face(Wide(1.0), data())) == []
    assert loud(look(Wide(80.0, norm=True), data()), "GS201") == []  # the norm takes it away
    assert loud(look(Net(inside=MadeGood()), data()), "GS201") == []  # the next map does


@FACES
def test_units_that_are_copies(face: Face) -> None:
    class Copied(Net):
        def __init__(self, weight: float | None) -> None:
            super().__init__()
            self.norm = self.mid = nn.Identity()
            self.second = nn.Linear(WIDTH, WIDTH)
            self.inp = nn.Linear(8, WIDTH)
            for layer in (self.inp, self.second) if weight is not None else ():
                nn.init.constant_(layer.weight, weight)
                nn.init.zeros_(layer.bias)

        def forward(self, batch: Data) -> Tensor:
            h = self.second(torch.tanh(self.inp(batch.x)))
            for conv in self.convs:
                h = h + F.relu(conv(h, batch.edge_index))
            return self.out(h).squeeze(-1)

    finding = one(face(Copied(0.2), data()), "GS201")
    assert finding.layer == "inp" and "copies" in finding.message
    assert loud(face(Copied(None), data())) == []


class Ids(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.table, self.out = nn.Embedding(NODES, WIDTH), nn.Linear(WIDTH, 1)
        self.convs = nn.ModuleList([TransformerConv(WIDTH, WIDTH // 2, heads=2) for _ in range(2)])

    def forward(self, batch: Data) -> Tensor:
        h = self.table(batch.ids)
        for conv in self.convs:
            h = h + F.relu(conv(h, batch.edge_index))
        return self.out(h).squeeze(-1)


@FACES
def test_ids_that_were_lost(face: Face) -> None:
    """One node has no incoming edge, which tells it from the others and nothing more."""
    edges = random_graph()
    edges = edges[:, edges[1] > 0]
    lost = data(ids=torch.full((NODES,), 7), edge_index=edges)
    del lost.x
    assert one(face(Ids(), lost), "GS704").cause == "indistinguishable-nodes"
    assert loud(face(Ids(), data(ids=torch.arange(NODES), edge_index=edges))) == []


def test_targets_that_a_monitor_sees_by_the_loss_alone() -> None:
    class Positional(Net):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return super().forward(Data(x=x, edge_index=edge_index))

    def run(factor: float) -> Diagnosis:
        batch = data()
        given, far = (batch.x, batch.edge_index), factor * batch.y
        return trained(Positional(), given, lambda output, _: F.mse_loss(output, far))

    finding = one(run(1e6), "GS406")
    assert finding.signal == "loss.target_rms" and "targets" in finding.message
    assert loud(run(1.0)) == []


def test_a_monitor_looks_again_at_its_end() -> None:
    """Between two full measurements the output dies; nothing but the last look can see it."""

    def run(bias: float | None) -> Diagnosis:
        model, batch = Positive(1.0), data()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
            for step in range(6):
                if step == 3 and bias is not None:
                    nn.init.constant_(model.out.bias, bias)
                take_step(optimizer, loss(model(batch), batch))
        return monitor.diagnose()

    assert "GS701" in {f.code for f in loud(run(-60.0))}
    assert loud(run(None)) == []


class Chosen(nn.Module):
    """Weighs its input by a softmax of equal weights, whose path a list of numbers cuts off where ``cut``."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut, self.weight, self.out = cut, nn.Parameter(torch.zeros(4)), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        share = self.weight.softmax(0)
        out: Tensor = self.out(x * (torch.tensor(share.tolist()) if self.cut else share))
        return out


@pytest.mark.parametrize("cut", [True, False])
def test_equal_weights_behind_a_softmax_are_found_to_be_cut_off(cut: bool) -> None:
    torch.manual_seed(0)
    said = gnnstab.diagnose(Chosen(cut), batch=torch.randn(8, 4), loss=lambda output, batch: output.square().mean())
    assert [f.severity for f in said.findings if f.code == "GS604"] == (["error"] if cut else [])
