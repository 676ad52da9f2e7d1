"""A normalisation that takes away how large the numbers of a graph are: they are doubled on a copy, and the output stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gnnstab.errors import let_through
from gnnstab.probe.places import _numbers as numbers
from gnnstab.probe.places._alone import Passes, Row, moved
from gnnstab.probe.replaying.evaluating import by_running_statistics
from gnnstab.probe.replaying.replica import mapped, tensors_in
from gnnstab.records.vocabulary import PLACE_SIZE_RESPONSE

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

_VARIES = 0.1
"""Standard deviation of ln(size) over the graphs from which on sizes differ."""

_GONE = 0.1
"""Share of it behind a normalisation up to which that has taken the sizes away."""


def rows(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    seen: ForwardView,
    gradient: Tensor | None,
    rng: Any,
) -> Iterator[Row]:
    """Change of the output when the numbers of every second graph are doubled; ``model`` is a copy and left so.

    Only where a normalisation has made graphs of different sizes equally large. ``follows``: correlation over the graphs between the
    size and ``gradient`` (graphs, …), what comes back from the loss to the output, which holds what the output lacks; ``graphs``.
    """
    graphs = seen.graphs
    if graphs is None or gradient is None or len(gradient) != int(graphs.max()) + 1:
        return
    erased = next(_erased(seen, graphs), None)
    if erased is None or not by_running_statistics(model):
        return
    name, size = erased
    twice = 1.0 + (graphs % 2)

    def own(tensor: Tensor) -> bool:
        return tensor.is_floating_point() and tensor.dim() > 0 and len(tensor) == len(graphs)

    def changed(tensor: Tensor) -> Tensor:
        return tensor * twice.view(-1, *(1,) * (tensor.dim() - 1)).to(tensor.dtype) if own(tensor) else tensor

    if not any(own(tensor) for _, tensor in tensors_in([*args, *kwargs.values()])):
        return  # Nodes that ids alone describe have no numbers to double.

    run = Passes(model, rng)
    try:
        response = moved(run(args, kwargs), run(*mapped((args, dict(kwargs)), changed)))
    except Exception as error:  # A stranger's forward may refuse other numbers, and says so in any way.
        let_through(error)
        return
    wanted = gradient.detach().double().flatten(1) if gradient.dim() > 1 else gradient.detach().double()[:, None]
    column = wanted[:, wanted.var(0).argmax()]
    follows = float(torch.corrcoef(torch.stack([size, column]))[0, 1].abs().nan_to_num(0.0))
    yield PLACE_SIZE_RESPONSE, name, response, {"follows": follows, "graphs": len(gradient)}


def _erased(seen: ForwardView, graphs: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Normalisations that give back graphs of one size, and ln of the size of each graph before."""
    for call in seen.calls.all:
        pair = [
            next((t for t in ts if t.dim() == 2 and len(t) == len(graphs)), None)
            for ts in (call.entering, call.leaving)
        ]
        before, after = (None if t is None else _sizes(t, graphs) for t in pair)
        if call.normalises and before is not None and after is not None:
            spread = float(before.std())
            if spread > _VARIES and float(after.std()) < _GONE * spread:
                yield call.name, before


def _sizes(states: Tensor, graphs: Tensor) -> Tensor:
    """ln of the RMS (graphs,) of the numbers of every graph."""
    squares = states.detach().double().square().mean(1, keepdim=True)
    first = torch.zeros(int(graphs.max()) + 1, dtype=torch.long, device=graphs.device)
    first[graphs] = torch.arange(len(graphs), device=graphs.device)
    return numbers.graph_means(squares, graphs)[first, 0].clamp(min=1e-300).log() / 2
