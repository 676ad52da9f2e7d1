"""A change of the training is judged from fresh weights, at the rate that was asked for."""

import shlex

import pytest
import torch
from gnnstab.cli.group import run
from torch import nn

import gnnstab
from models.stacks import Stack, random_batch

STEPS = {"seeds": 3, "steps": 30}


class Scaled(Stack):
    """A stack whose last factor no ``reset_parameters`` draws."""

    def __init__(self):
        super().__init__(2, 16)
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x, edge_index):
        return self.factor * super().forward(x, edge_index)


def make():
    return Stack(2, 16)


def loss(output, batch):
    return (output - torch.linspace(-1, 1, 16)).square().mean()


def trained(kind=make, lr=2.0):
    """A model that 40 steps of Adam at this rate have made, and its batch."""
    torch.manual_seed(0)
    model, batch = kind(), random_batch(24, 4, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(40):
        optimizer.zero_grad()
        loss(model(**batch), batch).backward()
        optimizer.step()
    return model, batch, optimizer


def test_a_lower_rate_is_proven_for_weights_that_the_higher_one_has_ruined_and_refuted_for_a_rate_that_is_none():
    model, batch, _ = trained()
    (verdict,) = gnnstab.verify(model, "lower-lr", batch=batch, loss=loss, lr=2.0, factory=make, **STEPS)
    assert verdict.verdict == "confirmed", verdict
    assert verdict.signal == "optimizer.loss_rise"
    assert verdict.after < 1.5 < verdict.before
    assert "3 pairs of fresh twins with and without it, initialised by your factory" in verdict.arms
    assert "/= 3" not in verdict.change, "the rate that was measured"
    assert verdict.step_time is None, "the same operations"
    (calm,) = gnnstab.verify(model, "lower-lr", batch=batch, loss=loss, lr=1e-3, factory=make, **STEPS)
    assert calm.verdict in ("inconclusive", "no-effect")
    assert calm.signal != "optimizer.loss_rise"


def test_weights_that_cannot_be_drawn_anew_are_no_proof_against_a_rate():
    model, batch, _ = trained(Scaled)
    with torch.no_grad():
        model.factor.fill_(float("nan"))
    options = {"batch": batch, "loss": loss, "lr": 2.0, **STEPS}
    (kept,) = gnnstab.verify(model, "lower-lr", **options)
    assert kept.verdict == "not-tested", kept
    assert "no reset_parameters draws factor anew" in kept.reason
    (always,) = gnnstab.verify(model, "lower-lr", factory=lambda: model, **options)
    assert "your factory gives the same weights every time" in always.reason
    assert gnnstab.verify(model, "lower-lr", factory=Scaled, **options)[0].verdict == "confirmed"


@pytest.mark.parametrize(("rate", "rises"), [("2.0", True), ("0.002", False)])
def test_a_rate_that_is_asked_for_reaches_the_look_for_symptoms(capsys, tmp_path, rate, rises):
    torch.save(random_batch(24, 4, 16), tmp_path / "batch.pt")
    line = f"verify --model {__name__}:make --batch {tmp_path / 'batch.pt'} --loss {__name__}:loss --lr {rate} --seeds 3 --steps 30"
    code = run(shlex.split(f"{line} --fix lower-lr"))
    out = capsys.readouterr().out
    assert ("confirmed" in out) == ("optimizer.loss_rise" in out) == rises, out
    assert code == (not rises)
    if rises:
        assert run(shlex.split(f"{line} --steps 5")) in (0, 1)
        assert "trying the recommended lower-lr" in capsys.readouterr().err
