"""What a copy would change of the run is refused in every mode of its forward, whatever it did in another."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from gnnstab.errors import UsageError
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
