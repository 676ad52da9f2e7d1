"""The quick fix against the proper ones: clamping activations, measured side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from gnnstab.errors import FixError
from gnnstab.fixes import find
from gnnstab.fixes.model_structure import attention_layers, duplicate
from gnnstab.probe.batches.arguments import as_arguments
from gnnstab.probe.replaying.evaluating import in_mode
from gnnstab.probe.replaying.replica import eager
from gnnstab.randomness import keeps_random_state
from gnnstab.verification._fresh_copies import Factory, fresh_twin
from gnnstab.verification._sweep import Progress
from gnnstab.verification.fix_spec import fix_specs
from gnnstab.verification.measuring import items, observe
from gnnstab.verification.scaling import FACTORS, Scaling, scale

SIDE_BY_SIDE = ("activation-clamp", "norm-after-sum", "mean-aggregation-root", "pre-norm-residual", "qk-norm")
"""The clamp, and the proper fixes that it is compared with."""


@dataclass(frozen=True, slots=True)
class Side:
    """One variant: as it is, clamped, or properly fixed."""

    name: str
    stable_up_to: float
    """Largest measured in-degree up to which nothing fires at warning or above and everything is finite, in fp32;
    0 when not even the smallest is."""

    fp16_up_to: float
    """The same for non-finite values alone, under fp16; inf when none was met."""

    forward_time: float
    """Time of a forward pass over that of the model as it is."""

    clipped: float | None
    """Share of the clamp's entries that sit on its limit, on the given batch; None without a clamp."""

    scaling: Scaling | None
    error: str = ""
    """Why the fix finds no place; the other numbers are then NaN."""


@keeps_random_state
def compare(
    model: nn.Module,
    *,
    batch: Any,
    fixes: Sequence[Any] = SIDE_BY_SIDE,
    factors: Sequence[float] = FACTORS,
    factory: Factory | None = None,
    progress: Progress | None = None,
) -> tuple[Side, ...]:
    """Scale the model as it is and with each fix: stability, the largest in-degree that works, and the cost.

    All variants are fresh twins from one seed, since most fixes make trained weights useless.
    """
    twin = fresh_twin(model, 0, factory)
    signals = observe(twin, batch).signals
    base = _forward_time(twin, batch)

    def side(name: str, variant: nn.Module, limit: float | None = None) -> Side:
        both = ("fp32", "fp16")
        found = scale(variant, batch=batch, factors=factors, precisions=both, seeds=1, progress=progress)
        of = {precision: [p for p in found.points if p.precision == precision] for precision in both}
        finite = {p.degree: not p.non_finite for p in of["fp16"]}
        return Side(
            name,
            _up_to({p.degree: not p.non_finite and not set(p.codes) - {"GS402"} for p in of["fp32"]}),
            math.inf if all(finite.values()) else _up_to(finite),
            _forward_time(variant, batch) / base,
            None if limit is None else _clipped(variant, batch, limit),
            found,
        )

    sides = [side("as it is", twin)]
    for item in fix_specs(list(fixes)):
        options = {"batch": items(batch)[0], "signals": signals, **item.options}
        try:
            changed = find(item.fix).apply(twin, **options)
        except FixError as error:
            sides.append(Side(item.label, math.nan, math.nan, math.nan, None, None, str(error)))
        else:
            clamps = item.fix == "activation-clamp"
            sides.append(side(item.label, changed, float(item.options.get("limit", 10.0)) if clamps else None))
    return tuple(sides)


def _up_to(good: dict[float, bool]) -> float:
    """The largest in-degree before the first that is not good; 0 when the first is not."""
    reached = 0.0
    for degree in sorted(good):
        if not good[degree]:
            break
        reached = degree
    return reached


def _forward_time(model: nn.Module, batch: Any, repeats: int = 5) -> float:
    twin = in_mode(duplicate(model), False)
    args, kwargs = as_arguments(batch, twin)[0]
    times = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            eager(twin)(*args, **kwargs)
            times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def _clipped(model: nn.Module, batch: Any, limit: float) -> float:
    counts: list[float] = []

    def count(_: nn.Module, __: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        values = value.values() if isinstance(value, dict) else (value,)
        counts.extend((one.abs() >= limit).double().mean().item() for one in values)

    twin = in_mode(duplicate(model), False)
    for _, layer in attention_layers(twin):
        layer.register_forward_hook(count)
    args, kwargs = as_arguments(batch, twin)[0]
    with torch.no_grad():
        eager(twin)(*args, **kwargs)
    return float(max(counts))
