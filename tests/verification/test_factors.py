"""Factors in the code: on scores they are sharp attention, on states a fault of the initialisation, and small ones are none."""

import torch
from torch import nn
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import softmax

from gnnstab.verification.interventions._factors import _Factors
from models.stacks import random_batch


class Eager(MessagePassing):
    """Weighs its neighbours, whose states it multiplies by ``gain``, by a score times ``factor``."""

    def __init__(self, factor, gain):
        super().__init__(aggr="add")
        torch.manual_seed(0)
        self.factor, self.gain, self.ask, self.answer = factor, gain, nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x, edge_index):
        x = self.gain * self.ask(x)
        return x + self.propagate(edge_index, q=x, k=self.answer(x))

    def message(self, q_i, k_j, index):
        scores = (q_i * k_j).sum(-1) * self.factor
        return k_j * softmax(scores, index)[:, None]


def causes(factor, gain):
    model = Eager(factor, gain)
    with _Factors(model) as seen:
        model(**random_batch())
    seen.close()
    return [seen.cause(product) for product in seen.found]


def test_what_a_factor_is_put_on_says_what_it_is_called():
    assert causes(40.0, 1.0) == ["attention-explosion"]
    assert causes(0.01, 30.0) == ["unsuitable-init"]
    assert causes(0.25, 1.0) == []
