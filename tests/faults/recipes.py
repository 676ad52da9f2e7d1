"""A recipe says how to build one network, its graphs and its training; the same recipe always builds the same case."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GraphNorm, MessagePassing

from faults.families import FAMILIES, sharpen
from faults.graphs import GRAPHS, spread

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a case."""

    seed: int = 0
    structure: str = "stack"
    """``stack``, ``pre-norm``, ``jumping`` (concatenated layer outputs), ``wide-heads`` (concat=True and a projection),
    ``block`` (pre-norm attention, then a pre-norm feed-forward part), ``shared`` (one convolution called in every layer)."""

    attention: str = "TransformerConv"
    """One of `FAMILIES`."""

    layers: int = 3
    width: int = 16
    heads: int = 1
    activation: str = "relu"
    residual: float = 0.0
    norm: str = ""
    """Normalisation after every convolution: ``graph``, ``layer`` or none."""

    beta: bool = False
    dropout: float = 0.0
    root_weight: bool = True
    edge_dim: int | None = None
    embedding: str = ""
    """``sum``, ``mean``, ``mean+root`` or none: a message-passing embedding before the convolutions."""

    init: str = "default"
    """``default``, ``xavier:GAIN`` or ``orthogonal:GAIN`` on every linear map of the convolutions."""

    clamp: float = math.inf
    detach: bool = False
    """Cuts the gradient before the last convolution."""

    graph: str = "random"
    nodes: int = 32
    degree: int = 6
    graphs: int = 2
    isolated: float = 0.0
    """Share of nodes that lose their incoming edges."""

    features: int = 6
    column_scale: float = 1.0
    scale: float = 1.0
    identifier: bool = False
    """Adds a column that counts the nodes: large, useless and harmless."""

    lr: float = 3e-3
    eps: float = 1e-8
    optimizer: str = "adam"
    """``adam`` or ``sgd``."""

    doubling: int = 0
    """Steps after which the learning rate doubles, again and again; 0 for a constant one. Read by the lead-time runs."""

    sharpening: float = 0.0
    """Growth of the query weights with every step, as a drift would. Read by the lead-time runs."""

    precision: str = "fp32"
    warm_up: int = 0
    """Training steps before the diagnosis; 0 judges fresh weights."""

    edits: tuple[tuple[str, float], ...] = ()
    """Edits of the finished model or data: names in `EDITS` with a strength."""

    faults: tuple[tuple[str, float], ...] = field(default=(), compare=False)
    """Cause and strength of what was injected."""

    def but(self, **changes: Any) -> Recipe:
        """The same recipe with some fields changed."""
        return replace(self, **changes)


class Embedding(MessagePassing):
    """Message-passing embedding of the raw features."""

    def __init__(self, kind: str, features: int, width: int) -> None:
        super().__init__(aggr="add" if kind == "sum" else "mean")
        self.lin = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width))
        self.lin_root = nn.Linear(features, width) if kind.endswith("root") else None

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out = self.propagate(edge_index, x=x)
        return out if self.lin_root is None else out + self.lin_root(x)

    def message(self, x_j: Tensor) -> Tensor:
        return self.lin(x_j)


class Network(nn.Module):
    """One class for all structures; what a recipe does not ask for is not built."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        width, features = recipe.width, recipe.features + int(recipe.identifier)
        self.embed = Embedding(recipe.embedding, features, width) if recipe.embedding else nn.Linear(features, width)
        concat = recipe.structure == "wide-heads"
        shared = recipe.structure == "shared"
        family = FAMILIES[recipe.attention]
        convs = [family.make(recipe) for _ in range(1 if shared else recipe.layers)]
        self.convs = nn.ModuleList(convs)
        self.calls = convs * recipe.layers if shared else convs
        self.project = nn.ModuleList(
            nn.Linear(width * recipe.heads, width) for _ in range(recipe.layers if concat else 0)
        )
        before = recipe.structure in ("pre-norm", "block")
        self.forwards = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(recipe.layers if recipe.structure == "block" else 0)
        )
        self.norms = nn.ModuleList(self._norm() for _ in range(recipe.layers if before or recipe.norm else 0))
        self.activation = ACTIVATIONS[recipe.activation]()
        self.head = nn.Linear(width * (recipe.layers if recipe.structure == "jumping" else 1), 1)

    def _norm(self) -> nn.Module:
        return GraphNorm(self.recipe.width) if self.recipe.norm == "graph" else nn.LayerNorm(self.recipe.width)

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None, batch: Tensor | None = None
    ) -> Tensor:
        recipe = self.recipe
        x = self.embed(x, edge_index) if recipe.embedding else self.embed(x)
        states = []
        for i, conv in enumerate(self.calls):
            if recipe.detach and i == len(self.calls) - 1:
                x = x.detach()
            x = self._layer(i, conv, x, edge_index, edge_attr, batch)
            states.append(x)
        return self.head(torch.cat(states, dim=-1) if recipe.structure == "jumping" else x)

    def _layer(
        self, i: int, conv: nn.Module, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, batch: Tensor | None
    ) -> Tensor:
        recipe = self.recipe
        edges = (edge_index,) if recipe.edge_dim is None else (edge_index, edge_attr)
        if FAMILIES[recipe.attention].batched:
            edges = (edge_index, batch)
        if recipe.structure == "pre-norm":
            return x + self.activation(conv(self._normed(i, x, batch), *edges))
        if self.forwards:
            x = x + conv(self._normed(i, x, batch), *edges)
            return x + self.forwards[i](x)
        out = conv(x, *edges)
        if self.project:
            out = self.project[i](out)
        if recipe.norm:
            out = self._normed(i, out, batch)
        out = self.activation(out).clamp(-recipe.clamp, recipe.clamp)
        return out + recipe.residual * x if recipe.residual else out

    def _normed(self, i: int, x: Tensor, batch: Tensor | None) -> Tensor:
        norm = self.norms[i]
        return norm(x, batch) if isinstance(norm, GraphNorm) else norm(x)


@dataclass
class Case:
    """A built recipe: what a user would hold in hands."""

    recipe: Recipe
    model: Network
    data: Data
    test: Data

    def arguments(self, data: Data | None = None) -> dict[str, Tensor]:
        """Keyword arguments of the forward."""
        data = data or self.data
        return {"x": data.x, "edge_index": data.edge_index, "edge_attr": data.edge_attr, "batch": data.batch}

    @property
    def loss(self) -> Callable[[Tensor, Any], Tensor]:
        """Mean squared error of the node targets; it holds these alone, since all that a loss reaches is copied whenever a trial calls it."""
        wanted = self.data.y
        return lambda output, batch: (output.float().squeeze(-1) - wanted).square().mean()


def build(recipe: Recipe) -> Case:
    """Build model and graphs; a function of the recipe alone, the caller's RNG is untouched."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = Network(recipe)
        initialise(model, recipe.init)
        case = Case(recipe, model, graph(recipe, 1), graph(recipe, 2))
        for name, strength in recipe.edits:
            EDITS[name](case, strength)
    return case


def graph(recipe: Recipe, stream: int) -> Data:
    """Graphs of the recipe's kind with the node-regression target: own feature + 2 × mean neighbour feature."""
    generator = torch.Generator().manual_seed(1000 * recipe.seed + stream)
    edges, batch = [], []
    for g in range(recipe.graphs):
        edges.append(GRAPHS[recipe.graph](recipe.nodes, recipe.degree, generator) + g * recipe.nodes)
        batch.append(torch.full((recipe.nodes,), g))
    edge_index, n = torch.cat(edges, dim=1), recipe.nodes * recipe.graphs
    if recipe.isolated:
        lonely = torch.rand(n, generator=generator) < recipe.isolated
        edge_index = edge_index[:, ~lonely[edge_index[1]]]
    x = torch.randn(n, recipe.features, generator=generator)
    y = x[:, 0] + 2 * spread(x[:, 1], edge_index, n)
    x = x * recipe.scale
    x[:, -1] *= recipe.column_scale
    if recipe.identifier:
        x = torch.cat([x, torch.arange(n).float().unsqueeze(-1) / n * 12], dim=-1)
    edge_attr = torch.rand(edge_index.size(1), recipe.edge_dim or 1, generator=generator)
    return Data(x=x, edge_index=edge_index, edge_attr=edge_attr, y=(y - y.mean()) / y.std(), batch=torch.cat(batch))


def initialise(model: Network, init: str) -> None:
    """Re-initialise the weights of the convolutions."""
    if init == "default":
        return
    kind, gain = init.split(":")
    for conv in model.convs:
        for name, parameter in conv.named_parameters():
            if name.endswith("weight") and parameter.dim() == 2 and "lin_beta" not in name:
                fill = nn.init.xavier_uniform_ if kind == "xavier" else nn.init.orthogonal_
                fill(parameter, gain=float(gain))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


def _sharpen(case: Case, strength: float) -> None:
    for conv in case.model.convs:
        sharpen(conv, FAMILIES[case.recipe.attention], strength)


def _kill(case: Case, strength: float) -> None:
    case.model.convs[len(case.model.convs) // 2].lin_skip.bias.data -= strength


def _poison(case: Case, strength: float) -> None:
    for data in (case.data, case.test):
        rows = torch.arange(0, data.num_nodes, max(int(1 / strength), 1))
        data.x[rows, 0] = float("nan")


def _uninitialised(case: Case, strength: float) -> None:
    conv = case.model.convs[0]
    if strength >= 1:
        conv.lin_value.weight.data[0] = float("nan")
    else:
        conv.lin_value.weight.data.sign_().mul_(1e25)


def _saturate_gate(case: Case, strength: float) -> None:
    for conv in case.model.convs:
        # A gate stuck at "skip only": the messages, and with them the neighbours, are cut off.
        conv.lin_beta.weight.data *= strength


def _common_offset(case: Case, strength: float) -> None:
    """A key bias adds the same number to all scores of a target: softmax does not see it in fp32, half precision rounds it."""
    for conv in case.model.convs:
        typical_query = float(conv.lin_query.weight.data.square().mean().sqrt()) * conv.in_channels**0.5
        conv.lin_key.bias.data += strength / typical_query


EDITS: dict[str, Callable[[Case, float], None]] = {
    "sharpen": _sharpen,
    "kill": _kill,
    "poison": _poison,
    "uninitialised": _uninitialised,
    "saturate-gate": _saturate_gate,
    "common-offset": _common_offset,
}
