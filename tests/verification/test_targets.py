"""What a fix has to move, and in which direction."""

import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import TransformerConv

import gnnstab
from faults.detectors import by_gnnstab, prepared
from faults.injections import INJECTIONS
from faults.splits import single
from gnnstab.verification.targets import goal_of
from side_by_side import brief_trials
from test_contradictions import contradictions


@pytest.mark.parametrize("index", [0, 2])
def test_a_network_whose_nodes_became_alike_is_healthy_above_the_line_that_it_fell_below(index):
    """Of the first one half of the differences are gone, of the second nineteen in twenty: two lines of one rule."""
    _, faulty = single("development", next(i for i in INJECTIONS if i.cause == "oversmoothing"), index)
    # Whether it is a warning, as trial steps decide, moves no goal.
    with brief_trials():
        diagnosis = by_gnnstab(*prepared(faulty))
    assert contradictions(diagnosis) == []
    (finding,) = [f for f in diagnosis.findings if f.code == "GS704"]
    goal = goal_of(finding)
    assert goal.rises
    assert not goal.crossed(finding.value)
    assert goal.crossed(0.8)
    assert goal.effect(finding.value, 0.8) > 1


class _Reader(nn.Module):
    """Graph attention with a ReLU behind each layer, and a mean over each of eight graphs."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(TransformerConv(6 if i == 0 else 16, 4, heads=4) for i in range(3))
        self.out = nn.Linear(16, 3)

    def forward(self, data):
        x = data.x
        for layer in self.layers:
            x = layer(x, data.edge_index).relu()
        return self.out(x.view(8, -1, 16).mean(1))


def _graphs(seed):
    """Eight graphs of 12 nodes, and a class that the means of two features give."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(96, 6, generator=generator)
    edges = torch.randint(0, 12, (2, 8, 48), generator=generator) + 12 * torch.arange(8)[:, None]
    means = x.view(8, 12, 6).mean(1)
    return Data(x, edges.reshape(2, -1), y=(means[:, 0] > 0).long() + (means[:, 1] > 0).long())


def _ill(*, sharp, dead):
    """The network with queries that saturate its first layers, or with a last layer that no node opens."""
    torch.manual_seed(0)
    model = _Reader()
    with torch.no_grad():
        for layer in model.layers[:2] if sharp else ():
            layer.lin_query.weight.mul_(300)
        if dead:
            model.layers[2].lin_skip.bias.fill_(-50.0)
    return model


def _cross_entropy(output, batch):
    return nn.functional.cross_entropy(output, batch.y)


def test_layers_that_come_to_life_may_learn_by_heart_what_dead_ones_cannot():
    batches = [_graphs(seed) for seed in range(4)]
    (verdict,) = gnnstab.verify(
        _ill(sharp=False, dead=True), "reinit-layers", batch=batches, loss=_cross_entropy, seeds=3, lr=0.01
    )
    assert verdict.verdict == "confirmed"
    assert verdict.unseen_change[0] > 0.1 > verdict.best_change[0]
    assert verdict.loss_after < 0.1 * verdict.loss_before


def test_a_fix_is_judged_by_a_symptom_of_what_it_is_for():
    batches = [_graphs(seed) for seed in range(2)]
    model = _ill(sharp=True, dead=True)
    fixes = ["reinit-layers", "qk-clip", "graph-norm"]
    dead, sharp, other = gnnstab.verify(model, fixes, batch=batches, loss=_cross_entropy, seeds=1, steps=2)
    assert [v.signal for v in (dead, sharp, other)] == ["place.dead_share", "attention.entropy", "attention.entropy"]
    assert dead.before == 1.0 > 0.5 > dead.after
    assert dead.new_findings == ()
    assert sharp.after > sharp.before
    (alone,) = gnnstab.verify(_ill(sharp=True, dead=False), "reinit-layers", batch=batches, seeds=1, steps=2)
    assert alone.signal == "attention.entropy", "nothing is dead: what the model has decides"
