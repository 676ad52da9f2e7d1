"""Optimizer settings and what came of them: small programs trained at several rates, labelled by how the training went.

The programs vary what trial steps must not depend on: layer, width, depth, inputs (dense, bag of words), normalisation, residual,
objective, optimizer with its usual settings, weight decay, frozen parts, precision. A label is read off the losses alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, SAGEConv, TransformerConv

LAYERS = {
    "gat": lambda i, o: GATConv(i, o // 4, heads=4),
    "gatv2": lambda i, o: GATv2Conv(i, o // 4, heads=4),
    "gcn": GCNConv,
    "sage": SAGEConv,
    "transformer": lambda i, o: TransformerConv(i, o // 4, heads=4),
}
OPTIMIZERS = ("adam", "adamw", "rmsprop", "sgd", "momentum")
USUAL = {"adam": 5e-3, "adamw": 2e-3, "rmsprop": 1e-3, "sgd": 0.03, "momentum": 5e-3}
"""Rates that tutorials use."""

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
STEPS = 150
UNSEEN = 2


@dataclass(frozen=True)
class Program:
    """One training, but for its rate."""

    seed: int
    layer: str
    width: int
    depth: int
    inputs: str
    norm: bool
    residual: bool
    task: str
    optimizer: str
    decay: float
    frozen: bool
    dtype: torch.dtype | None
    dropout: float
    minibatch: bool
    clip: float | None
    lr: float
    eps: float = 1e-8


class Net(nn.Module):
    """Encoder, layers with optional norm and residual, read-out per node."""

    def __init__(self, program: Program, columns: int, outputs: int) -> None:
        super().__init__()
        self.program = program
        self.embed = nn.Linear(columns, program.width)
        self.convs = nn.ModuleList(LAYERS[program.layer](program.width, program.width) for _ in range(program.depth))
        self.norms = nn.ModuleList(nn.LayerNorm(program.width) for _ in range(program.depth))
        self.head = nn.Linear(program.width, outputs)
        if program.frozen:
            self.embed.requires_grad_(False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """(N, columns), (2, E) → (N, outputs)."""
        x = torch.relu(self.embed(nn.functional.dropout(x, self.program.dropout, self.training)))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = conv(norm(x) if self.program.norm else x, edge_index)
            x = x + torch.relu(y) if self.program.residual else torch.relu(y)
        output: Tensor = self.head(x)
        return output


def programs(seed: int, count: int) -> Iterator[Program]:
    """Programs drawn at random, the optimizers in turn."""
    draw = random.Random(seed)
    for number in range(count):
        kind = OPTIMIZERS[number % len(OPTIMIZERS)]
        inputs = draw.choice(["dense", "dense", "words"])
        yield Program(
            seed=1000 * seed + number,
            layer=draw.choice(sorted(LAYERS)),
            width=draw.choice([8, 16, 32, 64, 128]),
            depth=draw.choice([1, 2, 2, 3, 4]),
            inputs=inputs,
            norm=draw.random() < 0.4,
            residual=draw.random() < 0.5,
            task=draw.choice(["classes", "classes", "regression"]),
            optimizer=kind,
            decay=5e-4 if inputs == "words" or draw.random() < 0.2 else 0.0,
            frozen=draw.random() < 0.15,
            dtype=torch.bfloat16 if draw.random() < 0.15 else None,
            dropout=draw.choice([0.0, 0.0, 0.5]) if inputs == "words" else 0.0,
            minibatch=draw.random() < 0.5,
            clip=None,
            lr=USUAL[kind],
        )


def build(program: Program) -> tuple[Net, torch.optim.Optimizer, list[Data]]:
    """The model, its optimizer and its batches, the same every time; the last `UNSEEN` batches are not trained on."""
    torch.manual_seed(program.seed)
    columns, outputs = (400, 6) if program.inputs == "words" else (12, 6)
    if program.task == "regression":
        outputs = 2
    prototypes = torch.randn(columns, 6)
    sizes = [48] * 30 if program.minibatch else [400]
    batches = [_batch(program, prototypes, columns, nodes) for nodes in [*sizes, *[100] * UNSEEN]]
    model = Net(program, columns, outputs)
    return model, optimizer_of(program, model), batches


def _batch(program: Program, prototypes: Tensor, columns: int, nodes: int) -> Data:
    x = torch.randn(nodes, columns)
    if program.inputs == "words":
        x = (torch.rand(nodes, columns) < 0.03).float()
        x = x / x.sum(1, keepdim=True).clamp(min=1)
    edges = torch.randint(0, nodes, (2, 5 * nodes))
    own = x @ prototypes
    mean = torch.zeros_like(own).index_add_(0, edges[1], own[edges[0]]) / 5
    goal = own + mean
    goal = (goal - goal.mean(0)) / goal.std(0)
    y = goal.argmax(1) if program.task == "classes" else goal[:, :2]
    return Data(x=x, edge_index=edges, y=y)


def optimizer_of(program: Program, model: nn.Module) -> torch.optim.Optimizer:
    """With the settings of the program."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    common: dict[str, Any] = {"lr": program.lr, "weight_decay": program.decay}
    if program.optimizer in ("sgd", "momentum"):
        return torch.optim.SGD(parameters, momentum=0.9 if program.optimizer == "momentum" else 0.0, **common)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}
    return kinds[program.optimizer](parameters, eps=program.eps, **common)


def loss(output: Tensor, batch: Data) -> Tensor:
    """Cross entropy for classes, mean squared error for numbers."""
    if batch.y.dtype == torch.long:
        return nn.functional.cross_entropy(output, batch.y)
    return nn.functional.mse_loss(output, batch.y)


def train(program: Program, steps: int = STEPS) -> tuple[float, float]:
    """The loss on what is not trained on, before and after a whole training; inf for one that was not finite."""
    model, optimizer, batches = build(program)
    seen, unseen = batches[:-UNSEEN], batches[-UNSEEN:]
    first = _unseen(model, unseen)
    for step in range(steps):
        batch = seen[step % len(seen)]
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=program.dtype) if program.dtype else nullcontext():
            value = loss(model(batch.x, batch.edge_index), batch)
        if not math.isfinite(float(value.detach())):
            return first, math.inf
        value.backward()
        if program.clip:
            nn.utils.clip_grad_norm_(model.parameters(), program.clip)
        optimizer.step()
    return first, _unseen(model, unseen)


def _unseen(model: nn.Module, batches: list[Data]) -> float:
    model.eval()
    with torch.no_grad():
        value = sum(float(loss(model(batch.x, batch.edge_index), batch)) for batch in batches) / len(batches)
    model.train()
    return value if math.isfinite(value) else math.inf


def labelled(program: Program) -> Iterator[tuple[Program, str]]:
    """The program at every rate, with what came of it.

    What is learned is the fall of the loss on unseen graphs. ``healthy``: at least nine tenths of what the best rate learns.
    ``too high``: less than half of what a lower rate learns. ``grey``: anything else, and everything where no rate learns a tenth
    of the first loss.
    """
    tried = [replace(program, lr=program.lr * factor) for factor in FACTORS]
    learned = [first - end for first, end in map(train, tried)]
    first = train(program, 0)[0]
    for number, (one, own) in enumerate(zip(tried, learned, strict=True)):
        lower = max(learned[:number], default=0.0)
        label = "grey"
        if max(learned) >= 0.1 * first:
            label = "healthy" if own >= 0.9 * max(learned) else "too high" if own < 0.5 * lower else "grey"
            label = "grey" if label == "too high" and lower < 0.1 * first else label
        yield one, label
