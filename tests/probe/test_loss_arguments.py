"""A loss may take the output and the batch, or the output alone."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.errors import GnnstabWarning, UsageError
from gnnstab.probe.batches.loss import of_output_and_batch


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = TransformerConv(4, 4)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.conv(x, edge_index)


def test_both_forms_are_called_alike() -> None:
    assert of_output_and_batch(lambda output, batch: (output, batch))(1, 2) == (1, 2)
    assert of_output_and_batch(lambda output: output)(1, 2) == 1
    assert of_output_and_batch(lambda *given: given)(1, 2) == (1, 2)
    assert of_output_and_batch(lambda output, weight=3: (output, weight))(1, 2) == (1, 2)


def test_a_loss_that_cannot_get_an_output_is_refused() -> None:
    def closure() -> None: ...

    with pytest.raises(
        UsageError, match=r"loss=closure can be called neither .* lambda output: criterion\(output, y\)"
    ):
        of_output_and_batch(closure)
    with pytest.raises(UsageError, match="loss=closure"):
        gnnstab.Monitor(Net(), loss=closure)


def test_labels_of_a_model_of_several_tensors_are_reached_from_around_the_loss(tmp_path) -> None:
    torch.manual_seed(0)
    model, x, edge_index = Net(), torch.randn(8, 4), torch.randint(0, 8, (2, 24))
    labels = torch.ones(8, 4)
    labels[2] = 0.0

    def distance(output: torch.Tensor) -> torch.Tensor:
        return -torch.log(labels * output.sigmoid()).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(
        model, optimizer=optimizer, loss=distance, trace=tmp_path / "run.gnnstab", on_finding="ignore"
    ) as monitor:
        value = distance(model(x, edge_index))
        assert math.isinf(value.item())
        monitor.loss(value)
        value.backward()
        optimizer.step()
    (root,) = monitor.diagnose().root_causes()
    assert root.cause == "undefined-operation"
    assert "log" in root.reason


def watched(loss, *, steps: int = 2) -> gnnstab.Monitor:
    torch.manual_seed(0)
    model, x, edge_index = Net(), torch.randn(8, 4), torch.randint(0, 8, (2, 24))
    y = torch.randint(0, 4, (8,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(
        model, optimizer=optimizer, loss=loss or (lambda output: F.cross_entropy(output, y))
    ) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            value = F.cross_entropy(model(x=x, edge_index=edge_index), y)
            value.backward()
            monitor.loss(value)
            optimizer.step()
    return monitor


def test_a_loss_that_does_not_fit_is_told_at_the_first_step_and_in_the_report() -> None:
    with pytest.warns(GnnstabWarning, match="loss=cross_entropy failed when it was called on a copy") as told:
        monitor = watched(F.cross_entropy)
    said = [str(w.message) for w in told if "failed when" in str(w.message)]
    assert len(said) == 1
    assert "as loss(output, batch), where batch is the dict of its keyword arguments x, edge_index" in said[0]
    assert "TypeError" in said[0] and "first update is not tried" in said[0]
    assert "looks on copies, left out (loss=cross_entropy failed" in str(monitor.diagnose())


def test_a_loss_that_fits_is_not_told(recwarn) -> None:
    assert "left out" not in str(watched(None).diagnose())
    assert not [w for w in recwarn if "failed when" in str(w.message)]
