"""What a loss counts outside of itself is counted by the run alone: a call on a copy puts it back."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gnnstab.probe.replaying._outside import Outside
from side_by_side import Net, Run, graph, unnoticed

X, EDGES = graph()
Y = torch.randn(len(X), 1, generator=torch.Generator().manual_seed(5))
Count = Callable[[], float]
TOTAL = 0


def in_a_cell() -> Count:
    number = 0

    def count() -> float:
        nonlocal number
        number += 1
        return number

    return count


def in_a_global() -> Count:
    global TOTAL
    TOTAL = 0

    def count() -> float:
        global TOTAL
        TOTAL += 1
        return TOTAL

    return count


def in_a_table() -> Count:
    table: dict[str, dict[str, int]] = {"seen": {}}

    def count() -> float:
        table["seen"]["n"] = table["seen"].get("n", 0) + 1
        return table["seen"]["n"]

    return count


def in_a_queue() -> Count:
    last: deque[float] = deque(maxlen=50)

    def count() -> float:
        last.append(len(last))
        return sum(last)

    return count


def in_an_array() -> Count:
    numbers = np.zeros(3)

    def count() -> float:
        numbers[1] += 1
        return float(numbers.sum())

    return count


class Counter:
    """Its own number, and one of its class."""

    of_all = 0

    def __init__(self) -> None:
        Counter.of_all = self.number = 0

    def count(self) -> float:
        self.number += 1
        return self.number

    def count_all(self) -> float:
        Counter.of_all += 1
        return Counter.of_all


def by_a_method() -> Count:
    return Counter().count


def in_a_class() -> Count:
    return Counter().count_all


WAYS = (in_a_cell, in_a_global, in_a_table, in_a_queue, in_an_array, by_a_method, in_a_class)


def trained(run: Run, model: Net, loss: Any, watched: Any) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with run.watching(model, optimizer=optimizer, loss=watched):
        for _ in range(6):
            optimizer.zero_grad()
            value = loss(model(X, EDGES))
            value.backward()
            run.keep(value, *(p.grad for p in model.parameters()))
            optimizer.step()
            if run.monitor is not None:
                run.monitor.loss(value)


@pytest.mark.parametrize("way", WAYS)
def test_a_loss_that_counts(way: Callable[[], Count]) -> None:
    def loop(run: Run) -> None:
        torch.manual_seed(3)
        count = way()

        def loss(output: Tensor) -> Tensor:
            return (output - Y).square().mean() * (1 + 0.1 * count())

        trained(run, Net(), loss, loss)

    unnoticed(loop)


def test_what_nobody_assigns_and_what_did_not_change_stays_the_same_object() -> None:
    held: dict[str, list[int]] = {"rows": [1, 2]}
    here = types.SimpleNamespace()

    def reads() -> int:
        return len(held["rows"])

    outside = Outside([reads, here])
    rows = held["rows"]
    outside.put_back()
    assert held["rows"] is rows and rows == [1, 2]
    rows.append(3)
    held["more"] = []
    outside.put_back()
    assert held == {"rows": [1, 2]} and held["rows"] is rows
