"""What a copy would change of the run is refused in every mode of its forward, whatever it did in another."""

from __future__ import annotations

import functools
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

from gnnstab.errors import UsageError
from gnnstab.own_draws import OwnDraws
from gnnstab.probe.operations._watch import OperationMode
from gnnstab.probe.optimizer.optimizer_steps import Bench
from gnnstab.probe.replaying import loss_apart
from gnnstab.probe.replaying import replica as replicas
from gnnstab.probe.replaying._own_state import OwnState
from gnnstab.probe.replaying.reach import code_around, shared_with
from gnnstab.probe.replaying.replica import GUARDS, eager, replica


@functools.lru_cache
def elsewhere() -> nn.Linear:
    return nn.Linear(4, 4)


COUNT = torch.zeros(())


class Reads(nn.Module):
    """A layer of somebody else's, which no attribute leads to."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = elsewhere()(x)
        return out


class Counts(nn.Module):
    """Counts its forwards in training where no attribute leads to, past every closure."""

    def forward(self, x: Tensor) -> Tensor:
        return x + COUNT.add_(1) if self.training else x


def test_reading_is_allowed_and_gradients_are_refused_afterwards() -> None:
    elsewhere()  # The run has filled the cache: what a trial is the first to put there is thrown away.
    twin = replica(Reads())
    with torch.no_grad():
        assert eager(twin)(torch.ones(2, 4)).shape == (2, 4)
    with pytest.raises(UsageError, match="sends gradients to a tensor of shape"):
        eager(twin)(torch.ones(2, 4))


def test_writing_is_refused_after_a_forward_that_did_not_write() -> None:
    twin = replica(Counts()).eval()
    assert eager(twin)(torch.ones(2)).tolist() == [1.0, 1.0]
    with pytest.raises(UsageError, match="writes into a tensor of shape"):
        eager(twin.train())(torch.ones(2))
    assert float(COUNT) == 0


def test_a_copy_of_a_copy_is_not_guarded_again_and_another_copy_of_the_model_is() -> None:
    model = Reads().eval()
    twin = replica(model)
    with torch.no_grad():
        eager(twin)(torch.ones(2, 4))
    assert GUARDS[replica(twin)].seen == {(False, False)}
    assert GUARDS[replica(model)].seen == set()


class Named(nn.Linear):
    """A name of it is made by a counter of its class when it runs."""

    made = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).made += 1
        return super().forward(x)


def test_copies_of_a_bench_are_asked_about_once_and_all_of_them_are_put_back() -> None:
    model = Named(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    bench = Bench(model, optimizer, [((torch.ones(3, 2),), {})], [None], lambda output, _: output.square().mean())
    with patch.object(replicas, "shared_with", side_effect=replicas.shared_with) as asked:
        bench.trial(2, edit=lambda twin: nn.init.zeros_(twin.weight))
        assert bench.trial(2).losses == bench.trial(2).losses
        bench.twin()
    assert asked.call_count == 1
    assert Named.made == 0


class Switch(nn.Module):
    """Has no numbers of its own, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


SWITCH = Switch()


class Switched(nn.Linear):
    """Calls a module that no attribute leads to."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(SWITCH(x))


@pytest.mark.parametrize("model", [Named(2, 1), Reads(), Switched(2, 1), TransformerConv(2, 2, edge_dim=1)])
def test_one_walk_finds_what_is_shared_and_what_is_put_back(model: nn.Module) -> None:
    twin, code = replica(model), list[object]()
    assert not shared_with(twin, model, code=code)
    assert {*map(id, code)} == {*map(id, code_around(twin))}


@pytest.mark.parametrize("mode", [OwnState, OwnDraws, OperationMode])
def test_an_operation_under_a_mode_goes_through_no_function_of_the_compiler(mode: type) -> None:
    assert mode.__torch_dispatch__.__code__.co_filename.partition("gnnstab")[1]  # type: ignore[attr-defined]


def test_what_the_first_copy_of_a_bench_was_refused_the_next_one_is_refused_too() -> None:
    model = Counts()
    model.inner = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    bench = Bench(model, optimizer, [((torch.ones(3, 2),), {})], [None], lambda output, _: output.square().mean())
    for _ in range(2):
        with pytest.raises(UsageError, match="writes into a tensor of shape"):
            bench.trial(1)
    assert float(COUNT) == 0


def test_a_loss_that_keeps_nothing_is_searched_once_in_a_trial() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    kept = nn.BatchNorm1d(1)
    plain = loss_apart.apart(lambda output, _: output.square().mean())
    keeping = loss_apart.apart(lambda output, _: kept(output).square().mean())
    for loss, often in ((plain, False), (keeping, True)):
        bench = Bench(model, optimizer, [((torch.randn(3, 2),), {})], [None], loss)
        with patch.object(loss_apart, "stateful", side_effect=loss_apart.stateful) as asked:
            bench.trial(3)
        assert (asked.call_count > 1) is often
    assert int(kept.num_batches_tracked) == 0
