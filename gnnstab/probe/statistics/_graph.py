"""Degrees and graph sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gnnstab.probe.statistics._groups import compact, group_sizes
from gnnstab.probe.statistics.numbers import Measured, highest, lower_median, lowest, quiet


@quiet
def degree_measures(index: Tensor, size: int) -> dict[str, Measured]:
    """In-degree figures of ``size`` targets, from the target (E,) of every edge."""
    return from_degrees(group_sizes(index, size))


def from_degrees(degree: Tensor) -> dict[str, Measured]:
    """The same from known in-degrees (N,). The median is the lower one of the nodes with at least one edge."""
    connected = torch.where(degree > 0, degree, torch.nan)
    numbers = {
        "degree.median": lower_median(connected),
        "degree.mean": degree.mean(),
        "degree.max": highest(degree),
        "degree.isolated_share": (degree == 0).to(degree.dtype).mean(),
        "degree.at_most_one_share": (degree <= 1).to(degree.dtype).mean(),
    }
    return {name: Measured(value) for name, value in numbers.items()}


@quiet
def graph_measures(batch: Tensor) -> dict[str, Measured]:
    """Size of the smallest non-empty graph, from the graph id (N,) of every node."""
    sizes = group_sizes(compact(batch), batch.numel())
    return {"graph.smallest": Measured(lowest(torch.where(sizes > 0, sizes, math.inf)))}
