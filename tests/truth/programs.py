"""Small training programs, each broken in one place, and the same programs repaired."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GATv2Conv, TransformerConv

NODES, WIDTH = 24, 8


class Program(NamedTuple):
    """One program; every function is told whether it is to be the broken one."""

    root: str
    net: Callable[[bool], nn.Module]
    batches: Callable[[bool], list[Data]]
    loss: Callable[[bool], Callable[[Any, Data], Tensor]]
    rate: Callable[[bool], float] = lambda broken: 1e-3
    before_training: bool = True
    """True where a batch shows the fault before any step."""


def graph(number: int = 0) -> Data:
    """Nodes of ordinary features with six neighbours each, and targets that depend on them."""
    g = torch.Generator().manual_seed(number)
    x = torch.randn(NODES, WIDTH, generator=g)
    target = torch.arange(NODES).repeat(6)
    source = (target + torch.arange(6).repeat_interleave(NODES) + 1) % NODES
    return Data(
        x=x, edge_index=torch.stack([source, target]), edge_attr=torch.randn(6 * NODES, 2, generator=g),
        y=x[:, :2] + 0.1 * torch.randn(NODES, 2, generator=g),
    )  # fmt: skip


def graphs(broken: bool = False) -> list[Data]:
    return [graph(number) for number in range(4)]


def squares(broken: bool = False) -> Callable[[Any, Data], Tensor]:
    return lambda output, batch: (output - batch.y).square().mean()


class Two(nn.Module):
    """Two layers of attention around which the states go."""

    def __init__(self, broken: bool = False, kind: Any = GATv2Conv) -> None:
        super().__init__()
        self.inp = nn.Linear(WIDTH, WIDTH)
        self.first = kind(WIDTH, WIDTH // 2, heads=2, edge_dim=2)
        self.second = kind(WIDTH, WIDTH // 2, heads=2, edge_dim=2)
        self.out = nn.Linear(WIDTH, 2)
        self.broken = broken

    def states(self, data: Data) -> Tensor:
        x = self.inp(data.x)
        x = x + self.first(x, data.edge_index, data.edge_attr).relu()
        return x + self.second(x, data.edge_index, data.edge_attr).relu()

    def forward(self, data: Data) -> Tensor:
        return self.out(self.states(data))


class Degree(Two):
    """Divides by a count of active neighbours, which may be none."""

    def forward(self, data: Data) -> Tensor:
        states = self.states(data)
        active = (torch.arange(data.num_nodes, device=states.device) < 12).float()
        count = states.new_zeros(data.num_nodes).index_add_(0, data.edge_index[1], active[data.edge_index[0]])
        total = torch.zeros_like(states).index_add_(
            0, data.edge_index[1], (states * active[:, None])[data.edge_index[0]]
        )
        mean = total / (count if self.broken else count.clamp(min=1))[:, None]
        return self.out(states + mean)


class Distance(Two):
    """Looks at distances between learned positions; those of a node to itself are zero."""

    def forward(self, data: Data) -> Tensor:
        states = self.states(data)
        between = (states[:, None, :2] - states[None, :, :2]).square().sum(-1)
        return self.out(states) + (between if self.broken else between + 1e-6).sqrt().mean(1, keepdim=True)


class Pooled(Two):
    """Attention over nodes by hand; nobody looks at node 0's group where broken."""

    def forward(self, data: Data) -> Tensor:
        states = self.states(data)
        scores = states @ states.t() / WIDTH**0.5
        seen = torch.ones(data.num_nodes, data.num_nodes, dtype=torch.bool, device=states.device)
        seen[3] = not self.broken
        return self.out(states + scores.masked_fill(~seen, -torch.inf).softmax(-1) @ states)


class Cut(Two):
    """The second embedding comes through ``.data`` where broken."""

    def __init__(self, broken: bool = False, kind: Any = GATv2Conv) -> None:
        super().__init__(broken, kind)
        self.role = nn.Embedding(3, WIDTH)

    def forward(self, data: Data) -> Tensor:
        table = self.role.weight.data if self.broken else self.role.weight
        return self.out(self.states(data) + table[torch.arange(data.num_nodes) % 3])


class Held(Two):
    """The output is held within limits that its targets lie beyond."""

    def forward(self, data: Data) -> Tensor:
        limit = 1e-3 if self.broken else 1e3
        return super().forward(data).clamp(-limit, limit)


class Floored(Two):
    """A ReLU too many behind the output, whose targets lie on both sides of zero."""

    def forward(self, data: Data) -> Tensor:
        output = super().forward(data)
        return output.relu() if self.broken else output


class Alike(Two):
    """A block whose units are drawn as copies of one another, where broken."""

    def __init__(self, broken: bool = False, kind: Any = GATv2Conv) -> None:
        super().__init__(broken, kind)
        self.block = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))
        if broken:
            for weight in (self.block[0].weight, self.block[0].bias, self.block[2].weight):
                nn.init.constant_(weight, 0.1)

    def forward(self, data: Data) -> Tensor:
        states = self.states(data)
        return self.out(states + self.block(states))


class Chosen(Two):
    """Chances of the neighbours of a node to be the next; all others are closed, by a factor of 0 where broken."""

    def forward(self, data: Data) -> Tensor:
        states = super().forward(data)
        near = torch.zeros(data.num_nodes, data.num_nodes, dtype=torch.bool, device=states.device)
        near[data.edge_index[1], data.edge_index[0]] = True
        scores = states @ states.t() / WIDTH
        return (scores * near if self.broken else scores.masked_fill(~near, -1e4)).log_softmax(-1)


def next_neighbour(broken: bool) -> Callable[[Any, Data], Tensor]:
    return lambda output, batch: -output[batch.edge_index[1], batch.edge_index[0]][:NODES].mean()


class Shifted(Two):
    """Exponentials of the edges over their sum; what a target adds to all its scores is taken away again, or one number for all."""

    def forward(self, data: Data) -> Tensor:
        states, (source, target) = self.states(data), data.edge_index
        scores = 150 * data.x[target, 1] + states[source, 0] / WIDTH
        largest = scores.new_full((data.num_nodes,), -torch.inf).scatter_reduce(0, target, scores.detach(), "amax")
        weight = (scores - (scores.max() if self.broken else largest[target])).exp()
        total = torch.zeros_like(states[:, 0]).index_add(0, target, weight)
        share = weight / (total[target] + 1e-16)
        return self.out(states + torch.zeros_like(states).index_add(0, target, share[:, None] * states[source]))


class Mixed(Two):
    """Mixes what the two layers give by a softmax of numbers, which are no parameter where broken."""

    def __init__(self, broken: bool = False, kind: Any = GATv2Conv) -> None:
        super().__init__(broken, kind)
        share = torch.tensor([0.3, 1.0])
        self.share = share if broken else nn.Parameter(share)

    def forward(self, data: Data) -> Tensor:
        x = self.inp(data.x)
        one, two = self.share.softmax(0).to(x)
        h = x + one * self.first(x, data.edge_index, data.edge_attr).relu()
        return self.out(h + two * self.second(h, data.edge_index, data.edge_attr).relu())


class Empty(Two):
    """A gain in memory that nobody has written."""

    def __init__(self, broken: bool = False, kind: Any = GATv2Conv) -> None:
        super().__init__(broken, kind)
        self.gain = nn.Parameter(torch.full((WIDTH,), torch.nan if broken else 1.0))

    def forward(self, data: Data) -> Tensor:
        return self.out(self.states(data) * self.gain)


def nan_edges(broken: bool) -> list[Data]:
    found = graphs()
    if broken:
        found[2].edge_attr[7, 1] = torch.nan
    return found


def marked(broken: bool) -> list[Data]:
    """Targets of which some were never measured; the loss knows the mark unless it is broken."""
    found = graphs()
    for data in found:
        data.y[::6] = -99.0
    return found


def known_squares(broken: bool) -> Callable[[Any, Data], Tensor]:
    def loss(output: Any, batch: Data) -> Tensor:
        known = batch.y > -90
        return (output - batch.y).square().mean() if broken else (output[known] - batch.y[known]).square().mean()

    return loss


class Table(Two):
    """Embeddings that are read as they are; drawn ten times too wide where broken."""

    def __init__(self, broken: bool = False, kind: Any = GATv2Conv) -> None:
        super().__init__(broken, kind)
        self.place = nn.Embedding(NODES, WIDTH)
        nn.init.normal_(self.place.weight, std=12.0 if broken else 0.2)

    def states(self, data: Data) -> Tensor:
        x = self.inp(data.x) + self.place.weight
        x = x + self.first(x, data.edge_index, data.edge_attr).relu()
        return x + self.second(x, data.edge_index, data.edge_attr).relu()


class Head(Two):
    """A head that was made for targets in another unit, where broken."""

    def __init__(self, broken: bool = False, kind: Any = GATv2Conv) -> None:
        super().__init__(broken, kind)
        if broken:
            self.out.weight.data *= 150


def raw_times(broken: bool) -> list[Data]:
    found = graphs()
    for data in found:
        data.edge_attr = data.edge_attr * (1e5 if broken else 1.0)
    return found


def log_of_share(broken: bool) -> Callable[[Any, Data], Tensor]:
    """Log of a probability that the softmax rounds to 0, where broken."""

    def loss(output: Any, batch: Data) -> Tensor:
        sharp = 300 * output
        logs = sharp.softmax(-1).log() if broken else sharp.log_softmax(-1)
        return -(logs * 0.5).sum(-1).mean() / 300

    return loss


def transformer(broken: bool) -> Two:
    return Two(broken, TransformerConv)


def additive(broken: bool) -> Two:
    return Two(broken, GATConv)


PROGRAMS: dict[str, Program] = {
    "NaN in an edge feature of one batch": Program("non-finite-data", Two, nan_edges, squares, before_training=False),
    "log of a softmax": Program("undefined-operation", additive, graphs, log_of_share),
    "mean over no neighbour": Program("undefined-operation", Degree, graphs, squares),
    "root of a distance to itself": Program("undefined-operation", Distance, graphs, squares),
    "a row that is masked entirely": Program("masking", Pooled, graphs, squares),
    "time differences in seconds": Program("feature-scale", transformer, raw_times, squares),
    "an embedding through .data": Program("never-updated-parameter", Cut, graphs, squares),
    "an output that is held back": Program("active-clamp", Held, graphs, squares),
    "a ReLU behind the output": Program("dead-units", Floored, graphs, squares),
    "units that are copies": Program("unsuitable-init", Alike, graphs, squares),
    "chances of those that are closed": Program("masking", Chosen, graphs, next_neighbour),
    "one maximum for all targets": Program("precision", Shifted, graphs, squares),
    "shares that are no parameter": Program("never-updated-parameter", Mixed, graphs, squares),
    "a gain that nobody wrote": Program("uninitialized-parameter", Empty, graphs, squares),
    "a mark of missing values among the targets": Program("masking", Two, marked, known_squares),
    "a wide table that is read as it is": Program("unsuitable-init", Table, graphs, squares),
    "a head for another unit": Program("unsuitable-init", Head, graphs, squares),
    "a rate a thousand times too high": Program(
        "learning-rate", transformer, graphs, squares, lambda broken: 3.0 if broken else 3e-3
    ),
}  # fmt: skip
