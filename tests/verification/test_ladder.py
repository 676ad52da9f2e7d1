"""The ladder: cumulative, through the user's own training function, honest about rungs without effect."""

import math

import pytest
import torch

from gnnstab.errors import UsageError
from gnnstab.verification.clamping import compare
from gnnstab.verification.ladder import DOCUMENT_ORDER, climb
from gnnstab.verification.wording import ladder_text, sides_text
from models.stacks import Stack, random_batch

RUNGS = (
    ("+ small residual", ["residual:weight=0.1"]),
    ("+ pre-norm", ["pre-norm-residual"]),
    ("+ sum", ["norm-after-sum"]),
)


def train(model, *, seed, **settings):
    """A training function as a user would write it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.get("lr", 1e-3))
    losses = []
    for _ in range(2):
        loss = model(**random_batch(16, 5, 8)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_says_at_which_rung_it_becomes_stable_and_which_did_nothing():
    torch.manual_seed(0)
    model = Stack(14, 8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rungs = (RUNGS[0], RUNGS[1], RUNGS[2])
    found = climb(model, batch=random_batch(16, 5, 8), train=train, rungs=rungs, seeds=1)
    baseline, small, normed, last = found.rungs
    assert (baseline.stable, small.stable, normed.stable) == (False, False, True)
    assert small.helped is False
    assert normed.helped is True
    assert found.stable_from is normed
    assert found.without_effect == (small,)
    assert normed.fixes == ("residual(weight=0.1)", "pre-norm-residual")
    assert last.error.startswith("Stack has no module that aggregates")
    assert last.fixes == normed.fixes
    assert "train, 2 losses" in found.objective
    assert math.isfinite(normed.loss)
    text = ladder_text(found)
    assert "Stable from the rung “+ pre-norm” on." in text
    assert "Did nothing: + small residual." in text
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_the_documents_order():
    assert [name for name, _ in DOCUMENT_ORDER] == [
        "+ dropout + beta",
        "+ residual",
        "+ initialisation",
        "+ learning rate",
        "+ GraphNorm",
        "+ score cap",
        "+ aggregation",
    ]
    with pytest.raises(UsageError, match="at least one rung"):
        climb(Stack(2, 8), batch=random_batch(8, 3, 8), rungs=())


def test_the_clamp_beside_the_proper_fixes():
    sides = compare(
        Stack(2, 8),
        batch=random_batch(16, 5, 8),
        fixes=["activation-clamp:limit=0.01", "norm-after-sum"],
        factors=(1, 2),
    )
    plain, clamp, refused = sides
    assert plain.clipped is None
    assert clamp.clipped > 0.5
    assert clamp.forward_time > 0
    assert plain.stable_up_to > 0
    assert "no module that aggregates" in refused.error
    assert "activation-clamp" in sides_text(sides)
