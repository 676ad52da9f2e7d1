"""The ways in which a program counts outside of a model: each returns a function that counts on and says how far."""

from __future__ import annotations

import array
import ctypes
import decimal
import hashlib
import mmap
import multiprocessing
import os
import random
import sqlite3
import sys
import threading
import types
import warnings
from collections import ChainMap, OrderedDict, deque
from collections import Counter as Tally
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor

from counting_in_libraries import IN_LIBRARIES, Count

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


def in_a_default() -> Count:
    def count(seen: list[int] = [0]) -> float:  # noqa: B006  # One list for all calls is what is tested.
        seen[0] += 1
        return seen[0]

    return count


def on_a_function() -> Count:
    def count() -> float:
        count.calls = getattr(count, "calls", 0) + 1  # type: ignore[attr-defined]
        return float(count.calls)  # type: ignore[attr-defined]

    return count


def by_name() -> Count:
    def count() -> float:
        globals()["BY_NAME"] = globals().get("BY_NAME", 0) + 1
        return float(globals()["BY_NAME"])

    globals().pop("BY_NAME", None)
    return count


def in_other_containers() -> Count:
    held = (Tally[str](), types.SimpleNamespace(n=0), array.array("d", [0.0]))
    shared, number = multiprocessing.Value("i", 0), ctypes.c_double(0)
    os.environ["GNNSTAB_TEST_STEP"] = "0"

    def count() -> float:
        tally, space, numbers = held
        tally["x"] += 1
        space.n += 1
        numbers[0] += 1
        shared.value += 1
        number.value += 1
        os.environ["GNNSTAB_TEST_STEP"] += "0"
        return tally["x"] + space.n + numbers[0] + shared.value + number.value + len(os.environ["GNNSTAB_TEST_STEP"])

    return count


class Behind:
    """A number behind a property."""

    def __init__(self) -> None:
        self._n = 0

    @property
    def n(self) -> int:
        return self._n

    @n.setter
    def n(self, value: int) -> None:
        self._n = value


def in_its_own_module_by_name() -> Count:
    sys.modules[__name__].NUMBER = 0  # type: ignore[attr-defined]

    def count() -> float:
        here: Any = sys.modules[__name__]
        here.NUMBER += 1
        return float(here.NUMBER)

    return count


def in_containers_of_containers() -> Count:
    held = ChainMap({"n": 0}), np.array([0, {"n": 0}], dtype=object), memoryview(array.array("q", [0]))

    def count() -> float:
        chained, objects, view = held
        chained["n"] += 1
        objects[0] += 1
        objects[1]["n"] += 1
        view[0] += 1
        return float(chained["n"] + objects[0] + objects[1]["n"] + view[0])

    return count


def behind_a_property() -> Count:
    held = Behind()

    def count() -> float:
        held.n += 1
        return held.n

    return count


class Slots:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0


def in_a_slot() -> Count:
    held = Slots()

    def count() -> float:
        held.n += 1
        return held.n

    return count


def in_a_module() -> Count:
    settings.STEP = 0

    def count() -> float:
        settings.STEP += 1
        return float(settings.STEP)

    return count


CALLS = {"n": 0}


@torch.library.custom_op("gnnstab_tests::counted", mutates_args=())
def counted(x: Tensor) -> Tensor:
    CALLS["n"] += 1
    return x * CALLS["n"]


def in_an_operator() -> Count:
    CALLS["n"] = 0
    return lambda: float(counted(torch.ones(1)))


def in_an_operator_by_name() -> Count:
    CALLS["n"] = 0
    return lambda: float(torch.ops.gnnstab_tests.counted(torch.ones(1)))


FOUND: ContextVar[int] = ContextVar("FOUND", default=0)


def around_the_code() -> Count:
    FOUND.set(0)
    decimal.getcontext().prec = 28
    order = OrderedDict(a=1, b=2, c=3)

    def count() -> float:
        FOUND.set(FOUND.get() + 1)
        decimal.getcontext().prec += 1
        warnings.simplefilter("ignore", ResourceWarning, lineno=FOUND.get())
        order.move_to_end(next(iter(order)))
        own = sum(kept[2] is ResourceWarning and kept[4] > 0 for kept in warnings.filters)
        found = FOUND.get() + own + decimal.getcontext().prec
        return found + order[next(iter(order))]

    return count


def on_a_tensor() -> Count:
    held, sparse = torch.zeros(1), torch.eye(2).to_sparse().coalesce()
    held.step = 0  # type: ignore[attr-defined]

    def count() -> float:
        held.step += 1  # type: ignore[attr-defined]
        sparse.values().add_(1)
        return float(held.step + sparse.values().sum())  # type: ignore[attr-defined]

    return count


def in_objects_of_c() -> Count:
    free, memory, children = threading.Semaphore(99), mmap.mmap(-1, 8), np.random.SeedSequence(1)

    def count() -> float:
        free.acquire()
        memory[0] += 1
        children.spawn(1)
        return memory[0] + children.n_children_spawned - free._value

    return count


def by_drawing() -> Count:
    np.random.seed(3)
    random.seed(3)
    return lambda: np.random.rand() + random.random()


def in_what_nobody_puts_back() -> Count:
    """No copy may run the code that reaches these."""
    base, digest = sqlite3.connect(":memory:"), hashlib.sha256()
    base.execute("create table seen (n)")

    def count() -> float:
        base.execute("insert into seen values (1)")
        digest.update(b"1")
        return float(base.execute("select count(*) from seen").fetchone()[0] + digest.digest()[0] / 256)

    return count


settings: Any = types.ModuleType("settings")

WAYS = (
    *IN_LIBRARIES,
    by_drawing,
    around_the_code,
    on_a_tensor,
    in_objects_of_c,
    in_what_nobody_puts_back,
    in_a_default,
    on_a_function,
    by_name,
    in_other_containers,
    in_a_slot,
    in_an_operator,
    in_an_operator_by_name,
    in_its_own_module_by_name,
    in_containers_of_containers,
    behind_a_property,
    in_a_module,
    in_a_cell,
    in_a_global,
    in_a_table,
    in_a_queue,
    in_an_array,
    by_a_method,
    in_a_class,
)
