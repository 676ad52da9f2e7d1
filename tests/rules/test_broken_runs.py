"""A run without one finite loss: what its gradients are says nothing of the wiring."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.records import Diagnosis
from gnnstab.rules.queries import times


def trained(*, log_of_zero: bool, frozen: bool) -> Diagnosis:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"conv": TransformerConv(4, 4), "head": torch.nn.Linear(4, 1)})
    x, edge_index = torch.randn(12, 4), torch.randint(0, 12, (2, 48))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def forward() -> torch.Tensor:
        h = model["conv"](x, edge_index)
        return model["head"](h.detach() if frozen else h)

    model.forward = forward  # type: ignore[assignment]
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(4):
            optimizer.zero_grad()
            out = model()
            loss = -torch.log((out - 9).clamp(0, 1)).mean() if log_of_zero else F.mse_loss(out, x[:, :1])
            loss.backward()
            monitor.loss(loss)
            optimizer.step()
    return monitor.diagnose()


def test_a_loss_that_was_never_finite_explains_missing_gradients() -> None:
    found = trained(log_of_zero=True, frozen=False)
    assert [cause.cause for cause in found.root_causes()] == ["undefined-operation"]
    (told,) = (f for f in found.findings if f.code == "GS604")
    assert told.severity == "info" and "conv.lin_key.weight" in told.message


def test_a_detach_is_an_error_where_the_loss_is_finite() -> None:
    found = trained(log_of_zero=False, frozen=True)
    assert "never-updated-parameter" in [cause.cause for cause in found.root_causes()]


@pytest.mark.parametrize(
    ("ratio", "words"), [(1.923, "1.92"), (193_490, "193 000"), (6.49e6, "6.49 million"), (1e12, "1e+12")]
)
def test_a_ratio_is_written_as_people_read_it(ratio: float, words: str) -> None:
    assert times(ratio) == words
