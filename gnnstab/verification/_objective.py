"""What a short training minimises: the user's loss, or a stated synthetic task."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data.data import BaseData
from torch_geometric.utils import scatter

from gnnstab.errors import UsageError
from gnnstab.fixes.model_structure import attention_layers
from gnnstab.probe.batches.arguments import Arguments
from gnnstab.probe.batches.chosen import MOST_RUN
from gnnstab.probe.batches.loss import called
from gnnstab.probe.replaying.replica import eager
from gnnstab.randomness import seed_torch

UserLoss = Callable[[Any, Any], Tensor]

SYNTHETIC = "a synthetic task: own feature + 2 × mean feature of the neighbours, a linear read-out of {source}"


class Objective(NamedTuple):
    """A loss per batch, and what it trains besides the model."""

    head: nn.Module | None
    """Linear read-out of the synthetic task; None for the user's loss."""

    loss: Callable[[nn.Module, int], Tensor]
    """Scalar loss of a model on the batch with that number."""

    description: str

    unseen: Callable[[nn.Module], Tensor] | None = None
    """Mean loss of a model on what the training does not see; None where there is nothing of the kind."""

    batches: int = 1
    """Batches to train on, the first ones."""


def objective_for(
    model: nn.Module, calls: Sequence[Arguments], batches: Sequence[Any], loss: UserLoss | None, seed: int
) -> Objective:
    """The user's loss, or the synthetic task when there is none.

    ``calls`` are the arguments of each forward and ``batches`` what the loss gets as its second argument. Sets
    torch's generator to ``seed`` before it draws the random parts.

    Raises `UsageError` when the model shows neither node features nor edges to make a task from.
    """
    if loss is not None:
        return _by_user(loss, calls, batches)
    return _synthetic(model, calls, seed)


def _by_user(loss: UserLoss, calls: Sequence[Arguments], batches: Sequence[Any]) -> Objective:
    """The user's loss; of several batches the second half is kept from the training, to judge it by."""

    def compute(model: nn.Module, number: int) -> Tensor:
        args, kwargs = calls[number]
        return called(loss, eager(model)(*args, **kwargs), batches[number])

    said = f"your loss ({getattr(loss, '__name__', 'callable')})"
    trained = trained_on(len(calls))
    left = len(calls) - trained
    if not left:
        return Objective(None, compute, said)
    kept = range(trained, len(calls))[:MOST_RUN]
    last = "the last" if left == 1 else f"the last {left}"
    return Objective(
        None,
        compute,
        f"{said}, all batches but {last}",
        lambda model: torch.stack([compute(model, number) for number in kept]).mean(),
        trained,
    )


def trained_on(batches: int) -> int:
    """How many of the user's batches are trained on, the first ones; what is left judges the training.

    Half of them, since a single kept batch errs by far more than trainings from several seeds differ (docs/decisions/0006).
    """
    return batches - batches // 2


class GraphView(NamedTuple):
    """What one forward shows of its graph."""

    x: Tensor
    """(N, D) features that the first message-passing module saw."""

    edge_index: Tensor
    """(2, E)."""

    last: Tensor
    """(N, D') what the last attention layer of these nodes returned."""

    name: str
    """Of that layer."""

    output: Any
    """What the model returned."""

    source: Tensor | None = None
    """(M, D'') features of the source nodes, where these are of another kind."""


def _synthetic(model: nn.Module, calls: Sequence[Arguments], seed: int) -> Objective:
    seen = [look(model, call) for call in calls]
    # After the forward passes, which may have drawn dropout masks in one arm and none in the other.
    seed_torch(seed)
    projection = torch.randn(seen[0].x.size(-1), device=seen[0].x.device)
    targets = [_target(s.x, s, projection) for s in seen]
    by_output = all(
        isinstance(s.output, Tensor) and s.output.dim() == 2 and s.output.size(0) == s.x.size(0) for s in seen
    )
    width = (seen[0].output if by_output else seen[0].last).size(-1)
    head = nn.Linear(width, 1).to(targets[0].device)

    def compute(trained: nn.Module, number: int) -> Tensor:
        args, kwargs = calls[number]
        features = eager(trained)(*args, **kwargs) if by_output else look(trained, calls[number], grad=True).last
        return nn.functional.mse_loss(head(features.float()).squeeze(-1), targets[number])

    def unseen(trained: nn.Module) -> Tensor:
        losses = []
        for call, before in zip(others, seen, strict=True):
            now = look(trained, call)
            # The scale is that of the task which was learnt.
            goal = _target(now.x, before, projection)
            features = now.output if by_output else now.last
            losses.append(nn.functional.mse_loss(head(features.float()).squeeze(-1), goal))
        return torch.stack(losses).mean()

    source = "the output" if by_output else f"{seen[0].name}'s output"
    others = [other for call, s in zip(calls, seen, strict=True) if (other := shuffled(call, s.x.size(0))) is not None]
    drawn = unseen if len(others) == len(calls) else None
    return Objective(head, compute, SYNTHETIC.format(source=source), drawn, len(calls))


def shuffled(call: Arguments, nodes: int) -> Arguments | None:
    """The call with the rows of its (N, D) node features in another order, the graph as it is; None without such features.

    What a network has learnt by heart of single nodes is worth nothing there, and what it has learnt of the task is.
    """
    # Drawn from the number of nodes alone, so that both arms of a pair meet the same features.
    order = torch.randperm(nodes, generator=torch.Generator().manual_seed(nodes))

    def other(value: Any) -> Any:
        if isinstance(value, BaseData) and isinstance(getattr(value, "x", None), Tensor) and len(value.x) == nodes:
            value = copy.copy(value)
            value.x = value.x[order.to(value.x.device)]
        elif isinstance(value, Tensor) and value.dim() >= 2 and value.size(0) == nodes and value.is_floating_point():
            value = value[order.to(value.device)]
        return value

    args, kwargs = tuple(map(other, call[0])), {k: other(v) for k, v in call[1].items()}
    pairs = [*zip(args, call[0], strict=True), *((kwargs[k], call[1][k]) for k in kwargs)]
    return (args, kwargs) if any(new is not old for new, old in pairs) else None


def look(model: nn.Module, call: Arguments, *, grad: bool = False) -> GraphView:
    """One forward with hooks on the first message-passing module and the last attention layer; nothing is left behind."""
    from torch_geometric.nn import MessagePassing

    found: dict[str, Any] = {}
    returned: dict[str, Tensor] = {}

    def first(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if "x" not in found:
            x = kwargs["x"] if "x" in kwargs else args[0]
            found["x"] = (x[1] if isinstance(x, tuple) else x).detach()
            found["source"] = x[0].detach() if isinstance(x, tuple) and x[0] is not x[1] else None
            found["edges"] = next((v for v in (*args, *kwargs.values()) if is_edges(v)), None)
            found["name"] = name

    def last(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        returned[name] = output[0] if isinstance(output, tuple) else output

    passing = [(name, m) for name, m in model.named_modules() if isinstance(m, MessagePassing)]
    handles = [m.register_forward_pre_hook(partial(first, name), with_kwargs=True) for name, m in passing]
    handles += [m.register_forward_hook(partial(last, name)) for name, m in attention_layers(model)]
    try:
        with torch.set_grad_enabled(grad):
            output = eager(model)(*call[0], **call[1])
    finally:
        for handle in handles:
            handle.remove()
    layers = [name for name, _ in attention_layers(model) if name in returned]
    if found.get("source") is not None:
        # Of several kinds of nodes: a later layer of the same relation ends at the same ones.
        layers = [n for n in layers if n.split(".")[-1] == found["name"].split(".")[-1]]
        layers = [n for n in layers if len(returned[n]) == len(found["x"])]
    if found.get("edges") is None or not layers:
        raise UsageError("the model shows no node features and edge_index to make a synthetic task from; pass a loss")
    return GraphView(found["x"], found["edges"], returned[layers[-1]], layers[-1], output, found["source"])


def is_edges(value: Any) -> bool:
    """True for an integer tensor of shape (2, E)."""
    return isinstance(value, Tensor) and value.dim() == 2 and value.size(0) == 2 and not value.is_floating_point()


def _target(x: Tensor, seen: GraphView, projection: Tensor) -> Tensor:
    """Own feature + 2 × mean neighbour feature of one random projection of ``x``, standardised and scaled as of ``seen``.

    With the features of ``seen`` itself it has mean 0 and standard deviation 1.
    """
    mean, std = seen.x.float().mean(0), seen.x.float().std(0, unbiased=False).clamp(min=1e-6)
    others = None if seen.source is None else _standardised_mean(seen.source)

    def raw(features: Tensor) -> Tensor:
        own = (features.float() - mean) / std @ projection / projection.norm()
        source, target = seen.edge_index
        sent = (own if others is None else others)[source]
        total: Tensor = own + 2 * scatter(sent, target, dim=0, dim_size=own.numel(), reduce="mean")
        return total

    learnt = raw(seen.x)
    scaled: Tensor = (raw(x) - learnt.mean()) / learnt.std(unbiased=False).clamp(min=1e-6)
    return scaled


def _standardised_mean(features: Tensor) -> Tensor:
    """(M,) mean over the standardised columns, scaled like one column: source nodes may have other columns than their targets."""
    columns = features.float()
    columns = (columns - columns.mean(0)) / columns.std(0, unbiased=False).clamp(min=1e-6)
    scaled: Tensor = columns.mean(1) * columns.size(1) ** 0.5
    return scaled
