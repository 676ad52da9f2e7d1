"""Further ways in which a program counts outside of a model: in what classes, modules and C code of libraries hold, and in settings of the process."""

from __future__ import annotations

import builtins
import gc
import logging
import sys
import threading
import types
import weakref
from collections import UserString
from collections.abc import Callable
from configparser import ConfigParser
from contextlib import ExitStack
from multiprocessing import shared_memory
from string import Template
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import RandomSampler, TensorDataset
from torch_geometric.nn import SumAggregation

Count = Callable[[], float]


def on_objects_of_libraries() -> Count:
    inner: Any = nn.Sequential(nn.ReLU())
    objects: list[Any] = [
        *(nn.Identity(), inner[0], SumAggregation(), RandomSampler(range(4)), TensorDataset(torch.zeros(1))),
        *(torch.optim.SGD([torch.zeros(1)], lr=1.0), torch.amp.GradScaler("cpu"), torch.distributions.Normal(0, 1)),
        *(logging.getLogger("gnnstab.tests"), Template(""), threading.main_thread()),
    ]
    for one in objects:
        one.seen = 0
    named, scaler, group, parser, error, stack = (
        UserString("x"),
        objects[6],
        objects[5],
        ConfigParser(),
        ValueError(0),
        ExitStack(),
    )
    parser["a"], adapter = {"n": "0"}, logging.LoggerAdapter(objects[8], {"n": 0})
    scaler._growth_interval = 1

    def count() -> float:
        inner[0].seen += 1
        for one in objects:
            one.seen += 1
        threading.current_thread().seen += 1  # type: ignore[attr-defined]
        named.data += "x"
        scaler._growth_interval += 1
        group.defaults["lr"] += 1
        adapter.extra["n"] += 1  # type: ignore[index]
        parser["a"]["n"] = str(int(parser["a"]["n"]) + 1)
        error.args = (error.args[0] + 1,)
        stack.callback(int)
        others = group.defaults["lr"] + adapter.extra["n"] + int(parser["a"]["n"]) + error.args[0]  # type: ignore[index]
        return float(
            sum(one.seen for one in objects)
            + len(named)
            + scaler._growth_interval
            + others
            + len(stack._exit_callbacks)
        )

    return count


def in_parts_of_c() -> Count:
    fixed, held, memory = (
        types.MappingProxyType({"n": [0]}),
        torch.zeros(1),
        torch.zeros(8, dtype=torch.uint8).untyped_storage(),
    )
    shared = shared_memory.SharedMemory(create=True, size=8)
    weakref.finalize(memory, shared.unlink)
    shared.buf[0] = 0

    def counted(number: int = 0) -> int:
        """."""
        return number

    def count() -> float:
        fixed["n"][0] += 1
        held.grad = torch.ones(1) if held.grad is None else held.grad + 1
        memory[0] = memory[0] + 1
        shared.buf[0] += 1
        counted.__defaults__ = (counted() + 1,)
        counted.__doc__ = f"{counted.__doc__}."
        return float(fixed["n"][0] + held.grad + memory[0] + counted() + len(counted.__doc__) + shared.buf[0])

    return count


def in_modules_of_libraries() -> Count:
    for part in (builtins, torch, functional.softmax):
        part.seen_by_tests = 0  # type: ignore[attr-defined]

    def count() -> float:
        builtins.seen_by_tests += 1  # type: ignore[attr-defined]
        torch.seen_by_tests += 1  # type: ignore[attr-defined]
        functional.softmax.seen_by_tests += 1  # type: ignore[attr-defined]
        seen = builtins.seen_by_tests, torch.seen_by_tests, functional.softmax.seen_by_tests  # type: ignore[attr-defined]
        return float(sum(seen))

    return count


def in_settings_of_the_process() -> Count:
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(False)
    torch.set_float32_matmul_precision("highest")
    gc.set_threshold(700, 10, 10)
    sys.setrecursionlimit(3000)
    sys.path[:] = [path for path in sys.path if path != "/counted"]

    def count() -> float:
        gc.set_threshold(gc.get_threshold()[0] + 1, 10, 10)
        sys.setrecursionlimit(sys.getrecursionlimit() + 1)
        sys.path.append("/counted")
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        torch.use_deterministic_algorithms(not torch.are_deterministic_algorithms_enabled())
        torch.set_float32_matmul_precision("high" if torch.get_float32_matmul_precision() == "highest" else "highest")
        torch.autograd.set_detect_anomaly(not torch.is_anomaly_enabled())
        flags = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled()
        own = gc.get_threshold()[0] + sys.getrecursionlimit() + sys.path.count("/counted")
        return float(own + sum(2**n * flag for n, flag in enumerate(flags)))

    return count


IN_LIBRARIES = (on_objects_of_libraries, in_parts_of_c, in_modules_of_libraries, in_settings_of_the_process)
