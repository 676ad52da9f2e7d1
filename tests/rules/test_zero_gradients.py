"""A loss behind an operation without a derivative: gradients exist and are exactly 0."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, TransformerConv

import gnnstab
from gnnstab.records import Diagnosis
from trained import trained


class Counting(nn.Module):
    """Predicts a count for every node, as a whole number or as it is."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.conv, self.head, self.whole = GATConv(6, 8), nn.Linear(8, 1), whole

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = 3 + 2 * self.head(torch.tanh(self.conv(x, edge_index)))
        return torch.round(out) if self.whole else out


def graph() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(30, 6, generator=generator), torch.randint(0, 30, (2, 150), generator=generator)


def loss(output: Tensor, batch: object) -> Tensor:
    return (output - 2.6).square().mean()


def asked(model: nn.Module) -> Diagnosis:
    return gnnstab.diagnose(model, batch=graph(), loss=loss)


def watched(model: nn.Module) -> Diagnosis:
    return trained(model, graph(), loss, steps=20)


@pytest.mark.parametrize("face", [asked, watched])
def test_a_rounded_prediction_is_named_and_its_twin_is_not(face: Callable[[nn.Module], Diagnosis]) -> None:
    torch.manual_seed(0)
    (finding,) = [f for f in face(Counting(True)).findings if f.code == "GS604"]
    assert finding.severity in ("warning", "error")
    assert "exactly 0" in finding.message and "round" in finding.message
    assert not [f for f in face(Counting(False)).findings if f.code == "GS604"]


def test_a_loss_that_is_zero_needs_no_gradient() -> None:
    torch.manual_seed(0)

    def satisfied(output: Tensor, batch: object) -> Tensor:
        return (output - 100).clamp(min=0).mean()

    found = gnnstab.diagnose(Counting(False), batch=graph(), loss=satisfied).findings
    assert not [f for f in found if f.code == "GS604"]


class Liked(nn.Module):
    """Embeddings of users and items, whose product is the rating; nothing has a slope where all of them are 0."""

    def __init__(self, drawn: bool) -> None:
        super().__init__()
        self.table, self.conv = nn.Embedding(30, 6), GATConv(6, 6, bias=False)
        if not drawn:
            nn.init.zeros_(self.table.weight)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        z = self.table.weight + self.conv(self.table.weight, edge_index)
        return (z * z.roll(1, 0)).sum(-1)


class Branch(nn.Module):
    """A branch whose last map begins at 0, as residual branches often do, or all of whose maps do."""

    def __init__(self, drawn: bool) -> None:
        super().__init__()
        self.inp, self.conv, self.last, self.out = nn.Linear(6, 8), GATConv(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        nn.init.zeros_(self.last.weight)
        if not drawn:
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.inp(x)
        return self.out(h + self.last(self.conv(h, edge_index))).squeeze(-1)


class Around(nn.Module):
    """A branch whose two maps begin at 0 and hold each other there, while the way around them trains; its twin begins with one of them."""

    def __init__(self, drawn: bool) -> None:
        super().__init__()
        self.inp, self.conv, self.out = nn.Linear(6, 8), GATConv(8, 8), nn.Linear(8, 1)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        for layer in (self.last,) if drawn else (self.first, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.inp(x)
        return self.out(h + self.last(torch.tanh(self.first(self.conv(h, edge_index))))).squeeze(-1)


@pytest.mark.parametrize(("make", "named"), [(Liked, "table.weight"), (Branch, "inp.weight"), (Around, "first.weight")])
@pytest.mark.parametrize("face", [asked, watched])
def test_weights_of_zero_are_the_root_of_gradients_of_zero(
    make: Callable[[bool], nn.Module], named: str, face: Callable[[nn.Module], Diagnosis]
) -> None:
    torch.manual_seed(0)
    found = face(make(False))
    (told,) = [f for f in found.findings if f.code == "GS201"]
    assert named in told.message
    assert [cause.cause for cause in found.root_causes()] == ["unsuitable-init"]
    assert not face(make(True)).at_least("warning")


class Closed(nn.Module):
    """An encoder behind whose ReLU nothing is left, since its bias begins far below 0."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.encode, self.conv, self.out = nn.Linear(6, 8), GATConv(8, 8), nn.Linear(8, 1)
        self.deep = nn.Linear(8, 8, bias=False)
        nn.init.constant_(self.encode.bias, bias)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = torch.relu(self.encode(x))
        return self.out(torch.tanh(self.conv(self.deep(h), edge_index))).squeeze(-1)


def test_parameters_behind_a_closed_relu_follow_from_it() -> None:
    torch.manual_seed(0)
    found = watched(Closed(-25.0))
    assert [cause.cause for cause in found.root_causes()] == ["dead-units"]
    assert [f.explained_by for f in found.findings if f.code == "GS604" and f.severity == "error"] == ["GS701"]
    assert not watched(Closed(-0.3)).at_least("warning")


class Tower(nn.Module):
    """Blocks that join one after the other, each behind a gate that begins at 0; what has not joined passes no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerConv(4, 4) for _ in range(2))
        self.gates, self.head, self.open = nn.Parameter(torch.zeros(2)), nn.Linear(4, 1), 1

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            more = (0.1 + self.gates[i]) * block(x, edge_index)
            x = x + (more if i < self.open else more.detach())
        out: Tensor = self.head(x)
        return out


@pytest.mark.parametrize("cleared", [False, True])
@pytest.mark.parametrize("opened", [True, False])
def test_a_gradient_that_comes_between_two_measurements_is_a_gradient(opened: bool, cleared: bool) -> None:
    torch.manual_seed(0)
    model, x, ring = Tower(), torch.randn(12, 4), torch.stack([torch.arange(12), torch.arange(12).roll(1)])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, schedule=20, on_finding="ignore") as monitor:
        for step in range(20):
            model.open = 1 + (opened and step >= 10)
            model(x, ring).square().mean().backward()
            optimizer.step()
            if cleared or step < 19:
                optimizer.zero_grad()
    silent = [f for f in monitor.diagnose().findings if f.code == "GS604" and f.severity != "info"]
    assert bool(silent) is not opened


def told_at_the_end(loss: Callable[[Tensor, int], Tensor], steps: int = 40) -> list[str]:
    """What a run is told for gradients that are all 0 at its end; ``loss`` is given the logits of two choices, and the step."""
    torch.manual_seed(0)
    model, (x, edges) = GATConv(6, 2), graph()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for step in range(steps):
            optimizer.zero_grad()
            value = loss(model(x, edges), step)
            value.backward()
            optimizer.step()
            monitor.loss(value)
    return [f.message for f in monitor.diagnose().findings if f.code == "GS604" and f.severity != "info"]


def rewarded(logits: Tensor, step: int) -> Tensor:
    """A policy that becomes one-hot in step 20; rewards come and go."""
    sharper = logits + torch.tensor([1e4, 0.0]) * (step >= 20)
    return 2 - (sharper.log_softmax(-1)[:, 0] * (-1) ** step).mean() - sharper.softmax(-1)[:, 1].mean()


def kept_apart(logits: Tensor, step: int) -> Tensor:
    """A margin that is kept from step 20 on."""
    return (1 - logits[:, 0] - 1e4 * (step >= 20)).clamp(min=0).mean()


def test_gradients_that_end_at_zero_while_the_loss_has_been_lower() -> None:
    (told,) = told_at_the_end(rewarded)
    assert "from step 20 to the end (20 steps)" in told and "one-hot" in told
    assert told_at_the_end(kept_apart) == []
