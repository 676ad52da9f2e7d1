"""Runs PyG's own tests of its attention with every model under a Monitor; give it a checkout of PyG, whose tests are not kept here.

    python tests/benchmarks/pyg_tests.py CHECKOUT                          # the files of `FILES`
    python tests/benchmarks/pyg_tests.py CHECKOUT test/nn/conv/test_gat_conv.py

Every call of a module from outside any other runs twice: a copy without a Monitor, then the module under one, from the same random
state. Outputs, gradients of all parameters (where the arguments come from no other call) and the random state afterwards are compared bit for bit. The tests also run once without
any of this, which tells the failures of their own. Compiled and scripted calls run as they are, since nothing may wrap them.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import gnnstab

_KINDS = "transformer gat gatv2 supergat hgt han rgat agnn gen point_transformer heat general hypergraph gps hetero"
FILES = (
    *(f"test/nn/conv/test_{kind}_conv.py" for kind in _KINDS.split()),
    "test/nn/conv/test_static_graph.py",
    "test/nn/attention",
    *(f"test/nn/aggr/test_{name}.py" for name in ("attention", "basic", "gmt", "set2set", "set_transformer")),
    *(f"test/nn/models/test_{name}.py" for name in ("attentive_fp", "polynormer", "sgformer", "tgn")),
    "test/nn/test_to_hetero_transformer.py",
    "test/nn/test_sequential.py",
)
"""The layers of docs/layers.md, and what is built of them."""


class Watcher:
    """A plugin of pytest that counts the failures, and puts a Monitor around every outermost call of a module if asked."""

    def __init__(self, watch: bool) -> None:
        self.watch = watch
        self.failed: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.notes: list[str] = []
        self._test = ""
        self._call = nn.Module.__call__

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Watch the calls that the test itself makes."""
        self._test = item.nodeid
        self.counts["tests"] += 1
        if not self.watch:
            return (yield)
        watcher = self

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return watcher.both(module, args, kwargs)

        with mock.patch.object(nn.Module, "__call__", call):
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what failed."""
        if report.failed:
            self.failed[report.nodeid] = str(report.longrepr).strip().splitlines()[-1]

    def both(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """The call's own result, from under a Monitor, after it was compared with that of a copy."""
        with mock.patch.object(
            nn.Module, "__call__", self._call
        ):  # Whatever is called from here on is not the outermost.
            if _as_it_is(module):
                self.counts["calls left as they are"] += 1
                return module(*args, **kwargs)
            before = torch.get_rng_state()
            # What an earlier call of the same module has made leads the gradients to its own parameters, not to a copy's.
            alone = not any(tensor.grad_fn is not None for tensor in _tensors((args, kwargs)))
            plain = self._plain(module, args, kwargs, alone)
            torch.set_rng_state(before)
            return self._watched(plain, module, args, kwargs, alone)

    def _plain(self, module: nn.Module, args: Any, kwargs: Any, alone: bool) -> list[Any] | None:
        try:
            twin = copy.deepcopy(module)
        except Exception:
            return None
        with contextlib.suppress(
            Exception
        ):  # What another call has made is not copied, and is no different afterwards.
            args, kwargs = copy.deepcopy((args, kwargs))
        try:
            return _results(twin, twin(*args, **kwargs), alone)
        except Exception as problem:
            return [type(problem)]

    def _watched(self, plain: list[Any] | None, module: nn.Module, args: Any, kwargs: Any, alone: bool) -> Any:
        out = problem = None
        with gnnstab.Monitor(module, on_finding="ignore") as monitor:
            try:
                out = module(*args, **kwargs)
            except Exception as raised:
                problem = raised
            seen = _results(module, out, alone) if problem is None else [type(problem)]
            monitor.step()
        self.counts["calls watched"] += 1
        self._compare(plain, seen, module)
        diagnosis = monitor.diagnose()
        self.counts["layers expected"] += diagnosis.coverage.layers_expected
        self.counts["layers observed"] += diagnosis.coverage.layers_observed
        for code in (finding.code for finding in diagnosis.findings if finding.severity != "info"):
            self._note(code, module)
        if problem is not None:
            raise problem
        return out

    def _compare(self, plain: list[Any] | None, seen: list[Any], module: nn.Module) -> None:
        if plain is None:
            self.counts["calls whose module cannot be copied"] += 1
        elif len(plain) != len(seen) or not all(_same(a, b) for a, b in zip(plain, seen, strict=True)):
            self._note("differs", module)
        else:
            self.counts["calls that are identical"] += 1

    def _note(self, what: str, module: nn.Module) -> None:
        self.counts[what] += 1
        self.notes.append(f"{what}: {type(module).__name__} in {self._test}")


def _as_it_is(module: nn.Module) -> bool:
    compiled = isinstance(module, (torch.jit.ScriptModule, torch._dynamo.eval_frame.OptimizedModule))
    return compiled or torch.jit.is_tracing() or torch.compiler.is_compiling()


def _results(module: nn.Module, out: Any, gradients: bool) -> list[Any]:
    """Outputs, the gradient of their weighted sum by every parameter, and the random state."""
    tensors = list(_tensors(out))
    state = torch.get_rng_state()
    differentiable = [t for t in tensors if t.requires_grad and t.layout == torch.strided and t.numel()]
    wanted = [p for p in module.parameters() if p.requires_grad and not nn.parameter.is_lazy(p)]
    found: tuple[Tensor | None, ...] = ()
    if differentiable and wanted and gradients:
        weights = [torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype).view(t.shape) for t in differentiable]
        found = torch.autograd.grad(differentiable, wanted, weights, retain_graph=True, allow_unused=True)
    return [*tensors, *found, state]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is b
    a, b = (t.detach().to_dense() if t.layout != torch.strided else t.detach() for t in (a, b))
    both = [t.as_subclass(Tensor).nan_to_num() if t.is_floating_point() else t for t in (a, b)]
    return a.dtype == b.dtype and torch.equal(*both)


def run(files: list[str], watch: bool) -> Watcher:
    """The tests of these files once."""
    watcher = Watcher(watch)
    marks = [
        "-m",
        "not rag and not dataset",
        "-W",
        "ignore",
        "-p",
        "no:cacheprovider",
        "-q",
        "--no-header",
        "--tb=line",
    ]
    with warnings.catch_warnings():
        pytest.main([*files, *marks], plugins=[watcher])
    return watcher


def main() -> None:
    """Run them twice and print what differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("files", nargs="*", default=FILES)
    options = parser.parse_args()
    os.chdir(options.checkout)
    torch.set_num_threads(1)
    alone, watched = (run(list(options.files), watch) for watch in (False, True))
    print("\n".join(dict.fromkeys(watched.notes)))
    print(f"failures without a Monitor: {len(alone.failed)}")
    for test, why in watched.failed.items():
        if test not in alone.failed:
            print(f"fails under a Monitor only: {test}: {why}")
    print(", ".join(f"{count} {what}" for what, count in watched.counts.items()))
    sys.exit(bool(set(watched.failed) - set(alone.failed)) or "differs" in watched.counts or "GS902" in watched.counts)


if __name__ == "__main__":
    main()
