"""Where the first non-finite value of a forward pass comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gnnstab.characters import counted
from gnnstab.errors import UsageError, let_through
from gnnstab.layers.lazy import unwritten
from gnnstab.probe.replaying._stages import Observer, StageTensor, instrument, observe_inputs
from gnnstab.probe.replaying.replica import ForwardInputs, replica, run_replica, unwrap
from gnnstab.records import Event
from gnnstab.stored import is_finite

SHOWN = 16
"""At most this many node ids, edge positions and parameter names go into an event."""


class StageRow(NamedTuple):
    """One line of the stage-by-stage table; minimum, maximum and RMS are over the finite entries, NaN for none."""

    layer: str | None
    """Module path; None for the model's own input."""

    call: int
    stage: str
    minimum: float
    maximum: float
    rms: float
    non_finite: int
    dtype: str
    """``float16``, …"""

    name: str = ""
    """Of the model's argument, where the row is an input of the model."""


class _Enough(BaseException):
    """Ends a replay at the first non-finite tensor; no ``except Exception`` of the model may stop it."""


def walk(model: nn.Module, inputs: ForwardInputs, *, only_event: bool = False) -> tuple[list[StageRow], Event | None]:
    """Every stage of every attention layer and every leaf module's output in the order of execution, and the first non-finite value.

    Runs once on a copy (see `locate_non_finite`). A forward that fails after a non-finite value is expected: the rows
    up to the failure are returned. ``only_event``: stop at the first non-finite value, with the rows up to it.

    Raises:
        UsageError: The model cannot be copied, or its forward fails while everything is finite.
    """
    rows: list[StageRow] = []
    event: Event | None = None
    last: StageTensor | None = None

    def observe(seen: StageTensor) -> None:
        nonlocal event, last
        if event is None and not torch.isfinite(seen.tensor).all():
            event = _event(seen, model, last, 0, inputs.mode)
            if only_event:
                raise _Enough
        last = seen
        if seen.detailed:
            rows.append(_row(seen))

    try:
        _replay(model, inputs, observe)
    except _Enough:
        pass
    except UsageError:
        if event is None:
            raise
    return rows, event


def locate_non_finite(model: nn.Module, inputs: ForwardInputs, step: int = 0) -> Event | None:
    """Re-run the forward on a copy and tell where the first NaN or Inf comes into being; None when there is none.

    The copy carries no hooks and no ``message`` overrides of the user's; model, buffers, mode, inputs and random
    generators stay as they are. ``step`` and the mode of the inputs only label the event.

    ``origin`` is ``made-here`` when everything that fed the stage was finite, its parameters included, and ``came-in``
    otherwise.

    Raises:
        UsageError: The model cannot be copied, or its forward fails before anything non-finite was seen.
    """
    _, event = walk(model, inputs, only_event=True)
    return None if event is None else replace(event, step=step)


def _replay(model: nn.Module, inputs: ForwardInputs, observe: Observer) -> None:
    inner, prefix = unwrap(model)
    twin = replica(inner)
    instrument(twin, observe, prefix)
    observe_inputs(inner, inputs.args, inputs.kwargs, observe)
    try:
        run_replica(twin, inputs)
    except Exception as error:
        let_through(error)
        raise UsageError(f"the replayed forward of {type(inner).__name__} failed: {error}") from error


def _row(seen: StageTensor) -> StageRow:
    values = seen.tensor.detach().double().flatten()
    finite = values[values.isfinite()]
    low, high, rms = math.nan, math.nan, math.nan
    if finite.numel():
        low, high, rms = finite.min().item(), finite.max().item(), finite.square().mean().sqrt().item()
    missing = values.numel() - finite.numel()
    argument = seen.note if seen.layer is None and seen.stage == "input" else ""
    return StageRow(seen.layer, seen.call, seen.stage, low, high, rms, missing, _name(seen.tensor.dtype), argument)


def _event(seen: StageTensor, model: nn.Module, previous: StageTensor | None, step: int, mode: str) -> Event:
    bad = ~torch.isfinite(seen.tensor)
    broken = non_finite_state(model)
    own = [] if seen.module is None else non_finite_state(seen.module)
    detail: dict[str, Any] = {
        "dtype": _name(seen.tensor.dtype),
        "limit": float(torch.finfo(seen.tensor.dtype).max),
        "shape": list(seen.tensor.shape),
        "non_finite": int(bad.sum()),
        "weights_finite": not broken,
        "largest_before": _largest(seen.fed),
    }
    if broken:
        detail["non_finite_parameters"] = broken[:SHOWN]
    if seen.note:
        detail["reason" if seen.stage == "output" else "argument"] = seen.note
    if seen.ends is not None:
        first = bad.reshape(len(bad), -1).any(1).nonzero().flatten()[:SHOWN]
        detail["edge_ends"] = seen.ends[:, first].t().tolist()
    if seen.stage == "input" and seen.layer is not None and previous is not None:
        detail["finite_before"] = _place(previous)
    if seen.stage == "score":
        detail.update(_overflow(seen))
    made_here = seen.stage != "input" and not own and all(torch.isfinite(t).all() for t in seen.fed)
    return Event(
        step=step,
        kind="non-finite",
        layer=seen.layer,
        mode=mode,
        call=seen.call,
        stage=seen.stage,
        origin="made-here" if made_here else "came-in",
        **_where(seen, bad),
        message=_sentence(seen, detail, own, made_here),
        detail=detail,
    )


def non_finite_state(module: nn.Module) -> list[str]:
    """Names of the parameters and buffers of ``module`` that hold a NaN or an Inf."""
    named, lazy = [*module.named_parameters(), *module.named_buffers()], unwritten(module)
    return [name for name, t in named if name not in lazy and not is_finite(t)]


def _where(seen: StageTensor, bad: Tensor) -> dict[str, Any]:
    """Nodes, edges and heads of the non-finite entries."""
    if bad.dim() == 0:
        return {}
    rows = bad.flatten(1).any(1).nonzero().flatten() if bad.dim() > 1 else bad.nonzero().flatten()
    places: dict[str, Any] = {}
    if seen.rows == "nodes" and (bad.dim() == 2 or seen.heads):
        places["nodes"] = tuple(rows[:SHOWN].tolist())
    elif seen.rows == "edges":
        places["edges"] = tuple(rows[:SHOWN].tolist())
        if seen.targets is not None:
            places["nodes"] = tuple(sorted(set(seen.targets[rows].tolist()))[:SHOWN])
    if seen.heads and bad.numel():
        per_head = bad.reshape(bad.shape[0], seen.heads, -1).any(2).any(0)
        places["heads"] = tuple(per_head.nonzero().flatten().tolist())
    return places


def _largest(tensors: Sequence[Tensor]) -> float | None:
    """Largest finite |entry| of all tensors; None when there is none."""
    sizes = [t[t.isfinite()].abs().max().item() for t in tensors if t.isfinite().any()]
    return max(sizes) if sizes else None


def _overflow(seen: StageTensor) -> dict[str, Any]:
    """What q·k was before it broke: its largest finite value as computed, and its largest value in float64."""
    query, *keys = seen.fed
    total = seen.tensor.double() * math.sqrt(query.shape[-1])
    key = torch.stack([one.double() for one in keys]).sum(0)
    # Edge by edge where there is a key for each query; of torch's own attention every query meets every key.
    products = query.double() * key if query.shape == key.shape else query.double() @ key.mT
    exact = products.sum(-1) if query.shape == key.shape else products
    return {
        "largest_before": _largest([total]),
        "largest_exact": _largest([exact]),
        "non_finite_edges": int((~seen.tensor.isfinite()).flatten(1).any(1).sum()),
    }


def _sentence(seen: StageTensor, detail: Mapping[str, Any], own: Sequence[str], made_here: bool) -> str:
    """One sentence that a user understands."""
    weights = "all weights are finite" if detail["weights_finite"] else "some weights are not finite"
    entries, place = detail["non_finite"], _place(seen)
    count = counted(entries, "non-finite entry")
    if seen.stage == "input" and seen.layer is None:
        return f"the model's own input {seen.note or 'tensor'} already holds {count}"
    if seen.stage == "input":
        source = detail.get("finite_before", "the model's input")
        return f"{place} already holds {count}: the code between {source} and this layer made them; {weights}"
    if own:
        return f"{place} holds {count} because {', '.join(own[:SHOWN])} of this layer is not finite"
    if not made_here:
        return f"{place} holds {count} that came in with what it was computed from; {weights}"
    limit, dtype = f"{detail['limit']:.6g}", detail["dtype"]
    if seen.stage == "score":
        edges = detail["non_finite_edges"]
        return (
            f"{place}: the q·k sum passed {limit} ({dtype}) on {counted(edges, 'edge')}, "
            f"reaching {detail['largest_exact']:.3g} in exact arithmetic; {weights}"
        )
    largest = "nothing" if detail["largest_before"] is None else f"at most {detail['largest_before']:.3g}"
    missing = f" ({seen.note})" if seen.note else ""
    return f"{place} holds {count} made here: what fed it was finite, {largest} in {dtype} (limit {limit}); {weights}{missing}"


def _place(seen: StageTensor) -> str:
    """``the score of gnn2.1``, ``the model's input``, with the call where there are several."""
    owner = "the model" if seen.layer is None else (seen.layer or "the layer")
    return f"the {seen.stage} of {owner}" + (f" (call {seen.call})" if seen.call else "")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
