"""Programs that train well, and look at times as if they could not: none of them deserves a warning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, GraphNorm, SAGEConv, TransformerConv

from truth import batches as of
from truth.networks import (
    WIDTH,
    Auxiliary,
    Bounded,
    Copying,
    Dense,
    Gps,
    Hetero,
    Links,
    Mixed,
    Nodes,
    Planetoid,
    Policy,
    Pooled,
    Tgn,
    Unimp,
)  # fmt: skip

Loss = Callable[[Tensor, Any], Tensor]


def squared(output: Tensor, batch: Any) -> Tensor:
    return F.mse_loss(output, batch.y)


def entropy(output: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(output, batch.y)


def weighted(output: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(output, batch.y, weight=torch.tensor([1.0, 10.0]))


def asked(output: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(output[batch.asked], batch.y[batch.asked])


def binary(output: Tensor, batch: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, batch.y)


def policy(output: Tensor, batch: Any) -> Tensor:
    """The right action is rewarded, and so is a little entropy."""
    logs = output.log_softmax(-1)
    chosen = logs.gather(1, batch.action.unsqueeze(-1)).squeeze(-1)
    return -chosen.mean() + 0.01 * (logs.exp() * logs).sum(-1).mean()


def ranked(output: Tensor, batch: Any) -> Tensor:
    return -F.logsigmoid(output).mean()


def met(output: Tensor, batch: Any) -> Tensor:
    truth = torch.cat([torch.ones(output.size(0) // 2), torch.zeros(output.size(0) // 2)])
    return F.binary_cross_entropy_with_logits(output, truth)


@dataclass(frozen=True)
class Program:
    """One training as its user would write it."""

    model: Callable[[], nn.Module]
    batch: Callable[[int], Any] = of.nodes
    loss: Loss = squared
    optimizer: Callable[[Any], torch.optim.Optimizer] = field(default=partial(torch.optim.Adam, lr=3e-3))
    batches: int = 1
    """How many batches the steps go through in turn."""

    warm_up: int = 0
    clip: float = 0.0
    accumulate: int = 1
    bf16: bool = False
    average: float = 0.0
    """Decay of a copy of the weights that follows them."""

    more: dict[str, Any] = field(default_factory=dict)


def adam(lr: float = 3e-3, **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return partial(torch.optim.Adam, lr=lr, **options)


def conv(kind: type[nn.Module], *sizes: int, **options: Any) -> Callable[[], nn.Module]:
    return partial(kind, *(sizes or (WIDTH, WIDTH)), **options)


def frozen() -> nn.Module:
    """The encoder and the first layer stay as they were."""
    model = Nodes(layers=3)
    for part in (model.inp, model.convs[0]):
        part.requires_grad_(False)
    return model


def small() -> nn.Module:
    """Query, key and value at a tenth of the usual size, behind a norm."""
    model = Nodes(norm=nn.LayerNorm, pre=True)
    with torch.no_grad():
        for layer in model.convs:
            for part in (layer.lin_query, layer.lin_key, layer.lin_value):
                part.weight.mul_(0.1)
    return model


def orthogonal() -> nn.Module:
    model = Nodes(layers=3)
    for name, p in model.named_parameters():
        if p.dim() == 2 and "out" not in name:
            nn.init.orthogonal_(p)
    return model


CITATION = adam(5e-3, weight_decay=5e-4)
NARROW = conv(TransformerConv, WIDTH, 8, heads=2)

HEALTHY: dict[str, Program] = {
    "transformer": Program(Nodes),
    "four heads averaged": Program(partial(Nodes, conv=conv(TransformerConv, heads=4, concat=False))),
    "gat": Program(partial(Nodes, conv=conv(GATConv, WIDTH, 8, heads=2))),
    "gatv2": Program(partial(Nodes, conv=conv(GATv2Conv, WIDTH, 8, heads=2))),
    "gcn": Program(partial(Nodes, conv=conv(GCNConv))),
    "sage": Program(partial(Nodes, conv=conv(SAGEConv))),
    "gcn before attention": Program(Mixed),
    "gps": Program(Gps, of.graphs, entropy),
    "hgt": Program(partial(Hetero, "hgt"), of.hetero),
    "hetero transformer": Program(partial(Hetero, "transformer"), of.hetero),
    "hetero gat": Program(partial(Hetero, "gat"), of.hetero),
    "hetero sage": Program(partial(Hetero, "sage"), of.hetero),
    "unimp": Program(Unimp, of.unimp, asked),
    "tgn": Program(Tgn, of.events, binary, adam(1e-3), batches=4),
    "policy": Program(partial(Policy, 20), of.agents, policy, adam(7e-4, eps=1e-5), clip=10.0),
    "bag of words, gat": Program(partial(Planetoid, 1433, 7), of.words, entropy, CITATION),
    "bag of words, gcn": Program(partial(Planetoid, 1433, 7, "gcn"), of.words, entropy, adam(1e-2, weight_decay=5e-4)),
    "bag of words, transformer": Program(partial(Planetoid, 1433, 7, "transformer"), of.words, entropy, CITATION),
    "chain": Program(Nodes, of.chain),
    "chain, gat": Program(partial(Nodes, conv=conv(GATConv, WIDTH, 8, heads=2, add_self_loops=False)), of.chain),
    "large values behind a norm": Program(
        lambda: nn.Sequential(Normalised(), Nodes()), partial(of.nodes, scale=3000.0)
    ),
    "frozen part": Program(frozen),
    "dropout on sparse graphs": Program(
        partial(Nodes, conv=conv(TransformerConv, WIDTH, 8, heads=2, dropout=0.2)), partial(of.nodes, degree=2)
    ),
    "warm-up": Program(Nodes, warm_up=15),
    "momentum": Program(Nodes, optimizer=partial(torch.optim.SGD, lr=0.02, momentum=0.9)),
    "rmsprop": Program(Nodes, optimizer=partial(torch.optim.RMSprop, lr=1e-3)),
    "adamw": Program(Nodes, optimizer=partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.05), batches=4),
    "bf16": Program(Nodes, bf16=True),
    "clipping": Program(Nodes, clip=0.5, batches=3),
    "accumulation": Program(Nodes, accumulate=3, batches=6),
    "graph norm": Program(partial(Pooled, norm=GraphNorm), of.graphs, entropy),
    "layer norm": Program(partial(Nodes, norm=nn.LayerNorm, layers=3)),
    "batch norm": Program(partial(Nodes, norm=nn.BatchNorm1d, layers=3)),
    "deep pre-norm": Program(partial(Nodes, norm=nn.LayerNorm, layers=12, pre=True), optimizer=adam(1e-3)),
    "four layers without residual": Program(partial(Nodes, layers=4, residual=False)),
    "ranked links": Program(partial(Links, True), of.links, ranked),
    "scored links": Program(partial(Links, False), of.links, met, batches=3),
    "pooled": Program(Pooled, of.graphs, entropy),
    "imbalance": Program(partial(Nodes, out=2), partial(of.classes, shares=(0.9, 0.1)), weighted),
    "one-hot edges": Program(partial(Nodes, edges=4), of.one_hot_edges),
    "sharp and right": Program(partial(Copying, 12, 8), of.copies, entropy, adam(1e-2), batches=3),
    "small weights": Program(small),
    "orthogonal": Program(orthogonal),
    "tied": Program(partial(Nodes, layers=3, tied=True)),
    "auxiliary head": Program(Auxiliary),
    "averaged weights": Program(Nodes, average=0.99),
    "dense by hand": Program(Dense, of.dense),
    "tanh": Program(partial(Nodes, act=torch.tanh)),
    "bounded actions": Program(Bounded),
    "gelu and dropout": Program(partial(Nodes, act=F.gelu, dropout=0.3), optimizer=adam(1e-3), batches=4),
    "gated": Program(partial(Nodes, conv=conv(TransformerConv, WIDTH, 8, heads=2, beta=True), layers=3)),
}


class Normalised(nn.Module):
    """Standardises the columns of the input before the network sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8, affine=False)

    def forward(self, batch: Any) -> Any:
        batch = copy.copy(batch)
        batch.x = self.norm(batch.x)
        return batch


@dataclass
class Run:
    """A program that is set up, and the steps of its loop."""

    program: Program
    model: nn.Module
    batches: list[Any]
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, program: Program, seed: int = 0) -> Run:
        torch.manual_seed(seed)
        model = program.model()
        trained = [p for p in model.parameters() if p.requires_grad]
        seen = [program.batch(seed + i) for i in range(program.batches)]
        return cls(program, model, seen, program.optimizer(trained))

    def value(self, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.program.bf16):
            output = self.model(batch)
        return self.program.loss(output.float(), batch)

    def steps(self, count: int, tell: Callable[[Tensor], None] = lambda _: None) -> list[float]:
        """Trains and returns the losses."""
        program, losses = self.program, []
        rate = self.optimizer.param_groups[0]["lr"]
        average = copy.deepcopy(self.model) if program.average else None
        for step in range(count):
            for group in self.optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / (program.warm_up or 1))
            self.optimizer.zero_grad()
            for part in range(program.accumulate):
                batch = self.batches[(step * program.accumulate + part) % len(self.batches)]
                loss = self.value(batch) / program.accumulate
                loss.backward()
            if program.clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), program.clip)
            self.optimizer.step()
            tell(loss * program.accumulate)
            losses.append(float(loss.detach() * program.accumulate))
            if average is not None:
                with torch.no_grad():
                    for kept, new in zip(average.parameters(), self.model.parameters(), strict=True):
                        kept.lerp_(new, 1 - program.average)
        return losses
