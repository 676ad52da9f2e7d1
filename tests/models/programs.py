"""Small programs that make a NaN or Inf in one line each, with the line mended beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import TransformerConv

NODES = 12


class Net(nn.Module):
    """One attention layer between two linear ones; ``middle`` and ``end`` are what a case puts in."""

    def __init__(
        self,
        middle: Callable[[Tensor, Any], Tensor] | None = None,
        end: Callable[[Tensor, Any], Any] | None = None,
        checkpointed: bool = False,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.conv = TransformerConv(8, 4, heads=2, edge_dim=3)
        self.last = nn.Linear(8, 4)
        self.middle, self.end, self.checkpointed = middle, end, checkpointed

    def forward(self, data: Any) -> Any:
        h = self.first(data.x)
        h = self.conv(h, data.edge_index, data.edge_attr)
        if self.middle is not None:
            middle = self.middle
            h = checkpoint(middle, h, data, use_reentrant=False) if self.checkpointed else middle(h, data)
        out = self.last(h)
        return out if self.end is None else self.end(out, data)


class Encoded(Net):
    """Adds an encoding to the features first."""

    def forward(self, data: Any) -> Any:
        data = data.clone()
        data.x = data.x + torch.linspace(0, 1, NODES)[:, None]
        return super().forward(data)


class Padded(Net):
    """Every second node attends to those that the batch leaves open; of the others nothing is read."""

    def __init__(self) -> None:
        super().__init__(middle=self._read)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def _read(self, h: Tensor, data: Any) -> Tensor:
        out, _ = self.attend(h[:, None], h[:, None], h[:, None], key_padding_mask=data.closed)
        return h + out[:, 0].masked_fill(data.closed, 0.0)


def batch(**changed: Any) -> Data:
    """A graph whose every node has two neighbours; ``changed`` replaces or adds tensors."""
    g = torch.Generator().manual_seed(3)
    nodes = torch.arange(NODES)
    edges = torch.cat([torch.stack([nodes, (nodes + k) % NODES]) for k in (1, 2)], 1)
    given = {
        "x": torch.randn(NODES, 4, generator=g),
        "edge_index": edges,
        "edge_attr": torch.randn(edges.size(1), 3, generator=g),
        "y": torch.randn(NODES, 4, generator=g),
        "mask": torch.ones(NODES, 4, dtype=torch.bool),
    }
    return Data(**{**given, **changed})


def spoilt(tensor: Tensor, *rows: int, value: float = float("nan")) -> Tensor:
    """A copy with one bad entry in each of these rows."""
    tensor = tensor.clone()
    for row in rows:
        tensor[row].view(-1)[0] = value
    return tensor


def mse(out: Any, b: Any) -> Tensor:
    return F.mse_loss(out, b.y)


class Doubled(torch.autograd.Function):
    """A custom function whose backward divides by what the forward has saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, saved: Tensor) -> Tensor:
        ctx.save_for_backward(saved)
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (saved,) = ctx.saved_tensors
        return 2 * grad / saved, None


@dataclass(frozen=True)
class Program:
    """A broken program and its repaired twin; each function is told which of the two it is."""

    model: Callable[[bool], nn.Module]
    batch: Callable[[bool], Any]
    loss: Callable[[bool], Callable[[Any, Any], Tensor]]
    operation: str
    """Name of the first bad operation, or the one at which the value came in."""

    cause: str
    place: str
    says: str
    """A regular expression that the finding must match."""


def _plain(broken: bool) -> nn.Module:
    return Net()


def _good(broken: bool) -> Data:
    return batch()


def _loss(bad: Callable[[Any, Any], Tensor], good: Callable[[Any, Any], Tensor]) -> Any:
    return lambda broken: bad if broken else good


def _of_loss(bad: Any, good: Any, operation: str, cause: str, place: str, says: str, **more: Any) -> Program:
    return Program(_plain, _good, _loss(bad, good), operation, cause, place, says, **more)


def _of_data(name: str, row: int, says: str, operation: str, place: str = "model") -> Program:
    return Program(
        _plain,
        lambda broken: batch(**({name: spoilt(batch()[name], row)} if broken else {})),
        lambda broken: mse,
        operation,
        "non-finite-data",
        place,
        says,
    )


def _of_model(bad: Any, good: Any, operation: str, cause: str, place: str, says: str, **more: Any) -> Program:
    return Program(
        lambda broken: Net(bad if broken else good, **more), _good, lambda broken: mse, operation, cause, place, says
    )


def _with_bad_parameter(broken: bool) -> nn.Module:
    net = Net()
    if broken:
        with torch.no_grad():
            net.last.weight[1, 2] = float("nan")
    return net


def _all_masked(out: Tensor, b: Any) -> Tensor:
    open_ = torch.ones_like(out, dtype=torch.bool)
    open_[5] = False
    return (out.masked_fill(~open_, float("-inf")).softmax(-1) - b.y).square().mean()


def _masked_with_one_left(out: Tensor, b: Any) -> Tensor:
    open_ = torch.ones_like(out, dtype=torch.bool)
    open_[5, 1:] = False
    return (out.masked_fill(~open_, float("-inf")).softmax(-1) - b.y).square().mean()


def _multiplied(out: Tensor, b: Any) -> Tensor:
    distance = (b.y[:, :1] - b.y[:, :1].T).abs().masked_fill(torch.eye(NODES, dtype=torch.bool), float("inf"))
    return (distance * (1 - torch.eye(NODES))).mean() * out.square().mean()


def _filled(out: Tensor, b: Any) -> Tensor:
    distance = (b.y[:, :1] - b.y[:, :1].T).abs().masked_fill(torch.eye(NODES, dtype=torch.bool), 0.0)
    return distance.mean() * out.square().mean()


def _normal(scale: Any) -> Any:
    def loss(out: Tensor, b: Any) -> Tensor:
        return -torch.distributions.Normal(out, scale(out), validate_args=False).log_prob(b.y).mean()

    return loss


def _written(h: Tensor, data: Any) -> Tensor:
    h = h.clone()
    h[3] = h[3] / (h[3] - h[3]).detach()
    return h


def _visits() -> Tensor:
    return torch.tensor([1.0] * (NODES - 1) + [800.0])[:, None]


def _softplus_by_hand(out: Tensor, data: Any) -> Tensor:
    return (1 + (out.abs() * data.visits).exp()).log() / data.visits


def _bias(closed: int) -> Tensor:
    """Penalties that are added to scores; of two rows the first entries are closed."""
    bias = -0.2 * torch.arange(4.0).repeat(NODES, 1)
    bias[[3, 8], :closed] = -torch.inf
    return bias


def _hetero(broken: bool) -> HeteroData:
    data = HeteroData()
    plain = batch()
    data["user"].x, data["item"].x = plain.x, plain.x.flip(0).clone()
    data["user", "buys", "item"].edge_index = plain.edge_index
    data["item"].y = spoilt(plain.y, 7) if broken else plain.y
    return data


class HeteroNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = TransformerConv((4, 4), 2, heads=2)

    def forward(self, data: Any) -> Tensor:
        return self.conv((data["user"].x, data["item"].x), data["user", "buys", "item"].edge_index)


PROGRAMS: dict[str, Program] = {
    "log of a probability that is zero": _of_loss(
        lambda o, b: -(o * 300).softmax(-1).log().mean(),
        lambda o, b: -(o * 300).log_softmax(-1).mean(),
        "log", "undefined-operation", "loss", r"softmax` gave 0 for \d+ of 48 entries; log\(0\) = −inf.*log_softmax",
    ),
    "log of a negative number": _of_loss(
        lambda o, b: (o - 100).log().mean(),
        lambda o, b: (o - 100).abs().log().mean(),
        "log", "undefined-operation", "loss", r"log\(−\d+(\.\d+)?\) = NaN",
    ),
    "zero over zero": _of_loss(
        lambda o, b: ((o * 0).sum(1) / (b.y * 0).sum(1)).mean(),
        lambda o, b: ((o * 0).sum(1) / (b.y * 0).sum(1).clamp_min(1e-6)).mean(),
        "div", "undefined-operation", "loss", r"0 / 0 = NaN at 12 of 12 entries",
    ),
    "a mask that selects nothing": _of_loss(
        lambda o, b: F.mse_loss(o[b.y > 1e9], b.y[b.y > 1e9]) + o.mean(),
        lambda o, b: (o[b.y > 1e9] - b.y[b.y > 1e9]).square().sum() / max(int((b.y > 1e9).sum()), 1) + o.mean(),
        "mse_loss", "undefined-operation", "loss", r"mean over nothing.*of shape \(0,\)|takes the mean of a tensor without",
    ),
    "targets that are all left out": _of_loss(
        lambda o, b: F.cross_entropy(o, torch.full((len(o),), -100)) + o.mean(),
        lambda o, b: F.cross_entropy(o, torch.zeros(len(o), dtype=torch.long)) + o.mean(),
        "nll_loss_forward", "undefined-operation", "loss", r"every target is -100.*Leave out",
    ),
    "the derivative of a root at zero": _of_loss(
        lambda o, b: (o * b.mask.logical_not()).sqrt().sum() + o.mean(),
        lambda o, b: (o * b.mask.logical_not() + 1e-12).sqrt().sum() + o.mean(),
        "div", "undefined-operation", "backward", r"backward of the loss \(SqrtBackward0\).*eps inside",
    ),
    "the derivative of a distance at zero": _of_loss(
        lambda o, b: (o - o.detach()).square().sum(-1).sqrt().mean(),
        lambda o, b: ((o - o.detach()).square().sum(-1) + 1e-12).sqrt().mean(),
        "div", "undefined-operation", "backward", r"SqrtBackward0",
    ),
    "the derivative of acos at one": _of_loss(
        lambda o, b: F.cosine_similarity(o, o, dim=-1).clamp(max=1).acos().mean() + (o / o.detach()).acos().mean(),
        lambda o, b: (o / o.detach()).clamp(-1 + 1e-6, 1 - 1e-6).acos().mean(),
        "rsqrt", "undefined-operation", "backward", r"AcosBackward0.*clamp the operand",
    ),
    "the derivative of a power at zero": _of_loss(
        lambda o, b: (o - o.detach()).square().pow(0.3).sum(),
        lambda o, b: ((o - o.detach()).square() + 1e-6).pow(0.3).sum(),
        "pow", "undefined-operation", "backward", r"PowBackward0.*power below 1",
    ),
    "where after a division": _of_loss(
        lambda o, b: torch.where(o > 0, o / F.relu(o), o).mean(),
        lambda o, b: torch.where(o > 0, o / torch.where(o > 0, o, 1.0), o).mean(),
        "div", "undefined-operation", "backward", r"0 / 0 = NaN.*torch\.where",
    ),
    "infinity minus infinity": _of_loss(
        lambda o, b: ((o * 1e30).square() - (o * 1e30).square()).mean() + 0 * o.mean(),
        lambda o, b: (o.square() - o.square()).mean() + 0 * o.mean(),
        "pow", "", "loss", r"1e\+?30|inf",
    ),
    "exp without a shift": _of_loss(
        lambda o, b: ((o * 1e3).exp() / (o * 1e3).exp().sum(-1, keepdim=True)).mean(),
        lambda o, b: (o * 1e3).softmax(-1).mean(),
        "exp", "undefined-operation", "loss", r"exp\(\d+(\.\d+)?\) = inf.*ends at 88\.7.*subtract the maximum",
    ),
    "a normal distribution without width": _of_loss(
        _normal(lambda o: F.relu(o - 50)), _normal(lambda o: F.softplus(o) + 1e-3),
        "div", "undefined-operation", "loss", r"/ 0 = −inf",
    ),
    "a row in which everything is masked": _of_loss(
        _all_masked, _masked_with_one_left, "softmax", "masking", "loss", r"in 1 row every score is −inf",
    ),
    "a mask that is multiplied": _of_loss(
        _multiplied, _filled, "mul", "masking", "loss", r"inf · 0 = NaN.*masked_fill",
    ),
    "half precision in the loss": _of_loss(
        lambda o, b: ((o.half() * 30 + 300) ** 2).mean(),
        lambda o, b: ((o.float() * 30 + 300) ** 2).mean(),
        "pow", "precision", "loss", r"in float32; float16 ends at 65504.*loss in float32",
    ),
    "half precision in the backward alone": _of_loss(
        lambda o, b: (((o.half() * 1e-3) * 3e3).float() * 1e2).sum() * 10,
        lambda o, b: ((o.float() * 1e-3) * 3e3 * 1e2).sum() * 10,
        "mul", "precision", "backward", r"MulBackward0.*in float32",
    ),
    "a small number that half precision does not hold": _of_loss(
        lambda o, b: ((o * 0).half() + 1e-8).log().float().mean(),
        lambda o, b: ((o * 0) + 1e-8).log().mean(),
        "log", "precision", "loss", r"log\(0\) = −inf.*the same step is finite in float32",
    ),
    "raw features into an exponential": Program(
        lambda broken: Net(end=lambda out, data: out.exp()),
        lambda broken: batch(x=batch().x * 1000 + 300 if broken else batch().x),
        lambda broken: mse, "exp", "feature-scale", "model", r"with `x` standardised the same step is finite",
    ),
    "raw distances into an exponential": Program(
        lambda broken: Net(end=lambda out, data: out.exp()),
        lambda broken: batch(edge_attr=batch().edge_attr * 2000 + 500 if broken else batch().edge_attr),
        lambda broken: mse, "exp", "feature-scale", "model", r"with `edge_attr` standardised the same step is finite",
    ),
    "a softplus written by hand": Program(
        lambda broken: Net(end=_softplus_by_hand if broken else lambda out, data: F.softplus(out * data.visits) / data.visits),
        lambda broken: batch(visits=_visits()),
        lambda broken: mse, "exp", "undefined-operation", "model", r"in float64 the same step is finite.*use softplus",
    ),
    "rows of −inf in a mask that is added": Program(
        lambda broken: Net(end=lambda out, data: (out + data.bias).softmax(-1)),
        lambda broken: batch(bias=_bias(4 if broken else 1)),
        lambda broken: mse, "softmax", "masking", "model", r"in 2 rows every score is −inf.*those of `bias`",
    ),
    "padding alone, hidden after the attention": Program(
        lambda broken: Padded(),
        lambda broken: batch(closed=torch.arange(NODES)[:, None] % 2 == (0 if broken else 2)),
        lambda broken: mse, "softmax", "masking", "model", r"in 12 rows every score is −inf",
    ),
    "−inf in features that an encoding is added to": Program(
        lambda broken: Encoded(),
        lambda broken: batch(x=(batch().x.relu() if broken else batch().x.abs()).log()),
        lambda broken: mse, "addmm", "non-finite-data", "model", r"`x` holds Inf in rows",
    ),
    "the entropy of a policy that is masked with −inf": Program(
        lambda broken: Net(end=lambda out, data: out.masked_fill(data.y > 0.9, -torch.inf)),
        _good,
        _loss(
            lambda o, b: (o.softmax(-1) * o.softmax(-1).log()).sum(-1).mean(),
            lambda o, b: -torch.special.entr(o.softmax(-1).clamp_min(1e-9)).sum(-1).mean(),
        ),
        "log", "undefined-operation", "loss", r"softmax` gave 0 .*log\(0\) = −inf.*entr\(p\)",
    ),
    "NaN in the targets": _of_data("y", 9, r"`y` holds NaN in row 9, column 0 and came in at", "mse_loss", "loss"),
    "NaN in the edge features": _of_data("edge_attr", 4, r"`edge_attr` holds NaN in row 4, column 0", "mm"),
    "NaN in the features": _of_data("x", 2, r"`x` holds NaN in row 2, column 0", "addmm"),
    "an infinity in an additive mask beside others": Program(
        lambda broken: Net(end=lambda out, data: out + data.bias),
        lambda broken: batch(bias=spoilt(torch.zeros(NODES, 4) + torch.arange(4.0), *([6] if broken else []))),
        lambda broken: mse, "add", "non-finite-data", "model", r"`bias` holds NaN in row 6, column 0",
    ),
    "NaN in a parameter": Program(
        _with_bad_parameter, _good, lambda broken: mse, "addmm", "uninitialized-parameter", "model", r"last",
    ),
    "written in place": _of_model(
        _written, lambda h, data: h.clone(), "div", "undefined-operation", "model", r"/ 0 = .?inf.*line \d+ of programs\.py",
    ),
    "a custom function's backward": _of_model(
        lambda h, data: Doubled.apply(h, torch.zeros_like(h)),
        lambda h, data: Doubled.apply(h, torch.ones_like(h)),
        "div", "undefined-operation", "backward", r"DoubledBackward.*programs\.py: `return 2 \* grad / saved",
    ),
    "under activation checkpointing": _of_model(
        lambda h, data: (h - h.detach()).square().sqrt() + h,
        lambda h, data: ((h - h.detach()).square() + 1e-12).sqrt() + h,
        "div", "undefined-operation", "backward", r"SqrtBackward0.*programs\.py", checkpointed=True,
    ),
    "targets of one kind of nodes": Program(
        lambda broken: HeteroNet(), _hetero, lambda broken: lambda o, b: F.mse_loss(o, b["item"].y),
        "mse_loss", "non-finite-data", "loss", r"`item\.y` holds NaN in row 7",
    ),
    "memory that was never written": _of_model(
        lambda h, data: torch.full_like(h, float("nan")).index_copy(0, torch.arange(NODES - 1), h[:-1]),
        lambda h, data: torch.zeros_like(h).index_copy(0, torch.arange(NODES - 1), h[:-1]),
        "full_like", "undefined-operation", "model", r"full_like` writes NaN",
    ),
}  # fmt: skip
