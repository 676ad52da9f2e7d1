"""`diagnose(verify=True)` trains as the user does: rate and eps of the optimizer, or of the Adam of a checkpoint, reach `verify`."""

import pytest
import torch

import gnnstab
from gnnstab.errors import UsageError
from models.stacks import Stack, random_batch

ADAM = {"lr": 3e-4, "eps": 1e-5}


@pytest.fixture
def asked(monkeypatch):
    """What `prove` is called with."""
    calls = []

    def prove(diagnosis, model, **options):
        calls.append(options)
        return diagnosis

    monkeypatch.setattr("gnnstab.verification.prove", prove)
    return calls


def numbers(asked):
    (options,) = asked
    return {k: v for k, v in options.items() if k in ADAM}


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_rate_and_eps_of_the_optimizer(asked, kind):
    model, batch = Stack(2, 8), random_batch(12, 4, 8)
    gnnstab.diagnose(model, batch=batch, optimizer=kind(model.parameters(), **ADAM), verify=True)
    assert numbers(asked) == ADAM


def test_rate_and_eps_of_the_optimizer_in_a_checkpoint(asked, tmp_path):
    model, batch, path = Stack(2, 8), random_batch(12, 4, 8), tmp_path / "run.pt"
    optimizer = torch.optim.Adam(model.parameters(), **ADAM)
    model(**batch).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    gnnstab.diagnose(path, model=lambda: Stack(2, 8), batch=batch, verify=True)
    assert numbers(asked) == ADAM


def test_no_numbers_of_another_optimizer_or_of_groups_that_differ(asked):
    model, batch = Stack(2, 8), random_batch(12, 4, 8)
    first, second = list(model.parameters())[:2], list(model.parameters())[2:]
    groups = torch.optim.Adam([{"params": first, "lr": 1e-2}, {"params": second}], **ADAM)
    for optimizer in (torch.optim.SGD(model.parameters(), lr=0.1), groups):
        gnnstab.diagnose(model, batch=batch, optimizer=optimizer, verify=True)
        assert numbers(asked) == {}
        asked.clear()


def test_the_short_training_says_the_numbers_that_it_used():
    model, batch = Stack(14, 8), random_batch(16, 5, 8)
    options = {"batch": batch, "seeds": 1, "steps": 1, **ADAM}
    (verdict,) = gnnstab.verify(model, "pre-norm-residual", **options)
    assert "Adam(lr=0.0003, eps=1e-05)" in verdict.objective


def test_without_a_model_there_is_nothing_to_verify(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(Stack(2, 8).state_dict(), path)
    with pytest.raises(UsageError, match="needs a model"):
        gnnstab.diagnose(path, verify=True)
