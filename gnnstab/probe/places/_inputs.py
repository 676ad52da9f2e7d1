"""The tensors of a batch: NaN and Inf, the size of measured values, and whether that size reaches a weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gnnstab.probe.batches.roles import columns, is_target, value_columns
from gnnstab.probe.places import _autograd as autograd
from gnnstab.probe.places import _numbers as numbers
from gnnstab.probe.places._calls import Call
from gnnstab.probe.places._normalised import row_norm

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

_MUCH = 0.3
"""Share of a tensor's RMS at the entry of a module from which on the tensor is said to arrive there."""

_LARGE = 10.0
"""RMS from which on a column of whole numbers that is given to a weight is judged like measured values; counts and codes are less."""


def rows(seen: ForwardView, given: Mapping[str, Tensor]) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """Numbers of every tensor; ``given`` are its values before the forward, which may change them in place."""
    clocks = _clocks(seen)
    entries = [
        _Entry(call)
        for call in seen.calls.all
        if call.learns and call.entering and call.name not in clocks and not normalised_next(seen, call)
    ]
    size = max((numbers.rms(numbers.sampled(t)) for t in seen.outputs), default=math.nan)
    entries_out: Any = max((t.numel() for t in seen.outputs), default=0)
    if math.isfinite(size):
        detail = {"entries": entries_out}
        if len(seen.outputs) == 1 and (common := row_norm(seen.outputs[0])) is not None:
            detail |= {"row_norm": common, "columns": seen.outputs[0].shape[1]}
        yield "place.output", "output", size, detail
    for name, tensor in given.items():
        if not tensor.numel():
            continue
        if tensor.is_floating_point():
            bad = ~tensor.isfinite()
            if bool(bad.any()):
                yield (
                    "place.non_finite",
                    name,
                    float(bad.sum()),
                    {
                        "rows": _rows(bad),
                        "target": is_target(name) or name not in seen.arguments,
                        "minus_inf": bool(tensor[bad].isneginf().all()),
                    },
                )
            yield from _scale(seen, name, tensor, entries, size, clocks)


def _scale(
    seen: ForwardView, name: str, tensor: Tensor, entries: list[_Entry], output: float, clocks: frozenset[str]
) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    flat = columns(numbers.sampled(tensor))
    values = value_columns(numbers.sampled(tensor))
    learning = [call for call in seen.calls.fed(seen.batch[name]) if call.learns and call.name not in clocks]
    fed = [call for call in learning if not normalised_next(seen, call)]
    if fed:
        # Whole numbers that a weight multiplies as they are: no ids, or ids that should have been looked up.
        values = values | (torch.nan_to_num(flat, 0.0, 0.0, 0.0).square().mean(0).sqrt() > _LARGE)
    whole = not bool(values.any())
    judged = flat if whole else flat[:, values]
    rms = numbers.rms(judged)
    if math.isnan(rms):
        return
    ratio, column = numbers.column_ratio(judged)
    detail = {
        "whole": whole,
        "target": is_target(name),
        "fed": [call.name for call in fed][:20],
        "arrives": bool(fed) or any(entry.carries(rms) for entry in entries),
        "output_rms": output if math.isfinite(output) else None,
    }
    if name in seen.written:
        detail["written"] = seen.written[name]
    yield "place.rms", name, rms, detail
    if math.isfinite(ratio):
        place = int(torch.arange(flat.shape[1], device=flat.device)[values][column]) if not whole else column
        reached = bool(fed) or any(entry.ratio >= _MUCH * ratio for entry in entries)
        yield (
            "place.column_ratio",
            name,
            ratio,
            {**detail, "arrives": reached, "column": place, "columns": judged.shape[1]},
        )


class _Entry:
    """The largest RMS and column ratio that a computing module was given, its output not normalised at once."""

    def __init__(self, call: Call) -> None:
        flats = [columns(numbers.sampled(t)) for t in call.entering if t.numel()]
        self.rms = max((numbers.rms(flat) for flat in flats), default=math.nan)
        ratios = [numbers.column_ratio(flat)[0] for flat in flats]
        self.ratio = max((r for r in ratios if math.isfinite(r)), default=math.nan)

    def carries(self, rms: float) -> bool:
        return rms > 0 and self.rms >= _MUCH * rms


def _clocks(seen: ForwardView) -> frozenset[str]:
    """Linear maps whose output goes into nothing but sines and cosines, slow ones among them: encodings made for the size of their input."""
    maps = {
        t.grad_fn: (call.name, t)
        for call in seen.calls.all
        if isinstance(call.module, nn.Linear)
        for t in call.leaving
        if t.grad_fn is not None and t.numel()
    }
    users: dict[Any, set[str]] = {}
    for user in autograd.walk(seen.outputs) if maps else ():
        for above, _ in user.next_functions:
            if above in maps:
                users.setdefault(above, set()).add(type(user).__name__.rstrip("0123456789"))
    turned = (maps[node] for node, kinds in users.items() if kinds <= {"CosBackward", "SinBackward"})
    return frozenset(
        name for name, angles in turned if float(columns(angles.detach()).square().mean(0).sqrt().min()) < _SLOW
    )


_SLOW = 2 * math.pi
"""Angle below which a sine still tells more from less."""


def normalised_next(seen: ForwardView, call: Call) -> bool:
    """True for a linear map whose output goes into a normalisation, which takes the scale away again, at most a ReLU between.

    It must go nowhere else: of a residual stream the branch is normalised, and the stream keeps its scale.
    """
    if not isinstance(call.module, nn.Linear):
        return False
    left = {t.grad_fn for t in call.leaving if t.grad_fn is not None}
    norms = [c for c in seen.calls.all if c.normalises and any(before(t.grad_fn) in left for t in c.entering)]
    behind = {t.grad_fn for c in norms for t in c.leaving}
    return bool(norms) and left.isdisjoint(autograd.walk_nodes([t.grad_fn for t in seen.outputs], closed=behind))


def before(node: Any) -> Any:
    """The node of a tensor, or what stands before it where scale goes through unchanged."""
    while type(node).__name__.startswith(("ReluBackward", "LeakyReluBackward", "NativeDropoutBackward")):
        node = node.next_functions[0][0]
    return node


def _rows(bad: Tensor) -> list[int]:
    return [int(row) for row in bad.reshape(len(bad), -1).any(1).nonzero().flatten()[:8]] if bad.dim() else [0]
