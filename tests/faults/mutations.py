"""Faults as *kind × place × strength*, put into the healthy programs of `tests/truth`, and what three faces say of them.

    PYTHONPATH=tests python tests/faults/mutations.py run ANSWERS.jsonl [--per 3] [--seconds 600] [--only 'not finite']
    python tests/benchmarks/foreign.py score ANSWERS.jsonl           # misses, faces, F1 by cause
    PYTHONPATH=tests python tests/faults/mutations.py matrix ANSWERS.jsonl   # first root right, by kind and place

A mutant counts only where training says so: its loss ends above half of the way that the healthy program's loss goes down, or is
not finite. The programs, the mutations and the rules have the same author, so that these figures find gaps; they are no evidence.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

import gnnstab
from benchmarks.foreign import Answer, answer
from truth.healthy import HEALTHY, Run

STEPS = 60
HALF_WAY = 0.5


@dataclass(frozen=True)
class Mutation:
    """One kind of fault at one place."""

    kind: str
    place: str
    roots: tuple[str, ...]
    """Causes of which any may be named first."""

    put: Callable[[Run, float], bool]
    """Changes the run; False where the program has no such place."""

    strengths: tuple[float, ...] = (1.0,)
    unit: Callable[[float], float] = lambda strength: 1.0
    """Factor by which the loss grows for the change of its unit alone."""


class Behind(nn.Module):
    """A module with one operation behind it, as a line in a forward would be."""

    def __init__(self, inner: nn.Module, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.operation = inner, operation

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.inner(*args, **kwargs)
        return {k: self.operation(v) for k, v in out.items()} if isinstance(out, dict) else self.operation(out)


def modules(run: Run, place: str) -> list[str]:
    """Names of the modules at a place: the first dense layer, the layers of messages, the last dense layer."""
    inside = tuple(n for n, m in run.model.named_modules() if isinstance(m, MessagePassing))
    dense = [
        n for n, m in run.model.named_modules()
        if isinstance(m, nn.Linear) and type(m) is nn.Linear and not n.startswith(tuple(f"{i}." for i in inside))
    ]  # fmt: skip
    layers = [n for n in inside if not n.startswith(tuple(f"{i}." for i in inside))]
    return {"encoder": dense[:1], "layer": layers[:1], "head": dense[-1:]}[place]


def behind(place: str, operation: Callable[[Tensor, float], Tensor]) -> Callable[[Run, float], bool]:
    def put(run: Run, strength: float) -> bool:
        names = modules(run, place)
        for name in names:
            parent, _, child = name.rpartition(".")
            owner = run.model.get_submodule(parent)
            wrapped = Behind(run.model.get_submodule(name), partial(_flipped, operation, strength))
            if isinstance(owner, (nn.ModuleDict,)):
                owner[child] = wrapped
            elif hasattr(owner, child) and not isinstance(owner, nn.ModuleList):
                setattr(owner, child, wrapped)
            else:
                owner[int(child)] = wrapped  # type: ignore[index]
        return bool(names)

    return put


def _flipped(operation: Callable[[Tensor, float], Tensor], strength: float, x: Tensor) -> Tensor:
    return operation(x, strength)


def tensors(batch: Any, names: tuple[str, ...]) -> Iterator[tuple[Any, str, Tensor]]:
    for store in getattr(batch, "stores", [batch]):
        for name in names:
            value = store.get(name) if hasattr(store, "get") else getattr(store, name, None)
            if isinstance(value, Tensor) and value.is_floating_point():
                yield store, name, value


PLACES = {"features": ("x",), "edge features": ("edge_attr", "msg", "delta"), "targets": ("y",), "encodings": ("pe",)}


def data(place: str, change: Callable[[Tensor, float], Tensor]) -> Callable[[Run, float], bool]:
    def put(run: Run, strength: float) -> bool:
        changed = False
        for batch in run.batches:
            for store, name, value in tensors(batch, PLACES[place]):
                setattr(store, name, change(value, strength))
                changed = True
        return changed

    return put


def cell(value: Tensor, strength: float) -> Tensor:
    value = value.clone()
    value.view(-1)[value.numel() // 3] = math.nan if strength == 1 else math.inf
    return value


def column(value: Tensor, strength: float) -> Tensor:
    if value.dim() < 2:
        return value
    value = value.clone()
    value[:, 0] *= strength
    return value


def alike(value: Tensor, _: float) -> Tensor:
    return value[:1].expand_as(value).clone()


def without_edges(run: Run, strength: float) -> bool:
    for batch in run.batches:
        if not isinstance(getattr(batch, "edge_index", None), Tensor) or hasattr(batch, "pairs"):
            return False
        kept = batch.edge_index[1] % 10 >= strength * 10
        batch.edge_index = batch.edge_index[:, kept]
        if getattr(batch, "edge_attr", None) is not None:
            batch.edge_attr = batch.edge_attr[kept]
    return True


def weights(
    place: str, change: Callable[[Tensor, float], Tensor], part: str = "weight"
) -> Callable[[Run, float], bool]:
    def put(run: Run, strength: float) -> bool:
        found = False
        for name in modules(run, place):
            for key, p in run.model.get_submodule(name).named_parameters():
                if part in key and not isinstance(p, nn.parameter.UninitializedParameter):
                    with torch.no_grad():
                        p.copy_(change(p, strength))
                    found = True
        return found

    return put


def unset(weight: Tensor, strength: float) -> Tensor:
    """What memory may hold that nobody wrote to: a few absurd numbers among zeros."""
    value = torch.zeros_like(weight)
    value.view(-1)[::7] = strength
    return value


def scores(run: Run, strength: float) -> bool:
    names = ("lin_query.weight", "lin_key.weight", "att_src", "att_dst", "att", "k_rel.weight", "q.weight", "k.weight")
    found = [p for n, p in run.model.named_parameters() if n.endswith(names)]
    with torch.no_grad():
        for p in found:
            p.mul_(strength)
    return bool(found)


def rate(run: Run, strength: float) -> bool:
    for group in run.optimizer.param_groups:
        group["lr"] *= strength
    return True


def epsilon(run: Run, strength: float) -> bool:
    if "eps" not in run.optimizer.defaults:
        return False
    for group in run.optimizer.param_groups:
        group["eps"] = strength
    return True


def only_head(run: Run, _: float) -> bool:
    held = [p for n in modules(run, "head") for p in run.model.get_submodule(n).parameters()]
    if not held or len(modules(run, "layer") + modules(run, "encoder")) == 0:
        return False
    run.optimizer = type(run.optimizer)(held, **{k: v for k, v in run.optimizer.defaults.items() if k in ("lr", "eps")})
    return True


def loss(change: Callable[[Callable[[Tensor, Any], Tensor], Tensor, Any], Tensor]) -> Callable[[Run, float], bool]:
    def put(run: Run, _: float) -> bool:
        run.program = replace(run.program, loss=partial(change, run.program.loss))
        return True

    return put


def stops(x: Tensor, s: float) -> Tensor:
    return (x * s).round() / s


INTERIOR = ("encoder", "layer")
NAN = ("non-finite-data",)
UNDEFINED = ("undefined-operation",)
SCALE = ("feature-scale",)
STUCK = ("never-updated-parameter", "dead-units", "active-clamp")
LARGE = ("unsuitable-init", "attention-explosion", "feature-scale")

MUTATIONS: tuple[Mutation, ...] = (
    *(Mutation("not finite", place, NAN, data(place, cell), (1.0, 2.0)) for place in PLACES),
    *(Mutation("scale", place, SCALE, data(place, lambda v, s: v * s), (1e2, 1e4)) for place in ("features", "edge features", "encodings")),
    Mutation("scale", "targets", SCALE, data("targets", lambda v, s: v * s), (1e4,), lambda s: s * s),
    *(Mutation("scale of a column", place, SCALE, data(place, column), (1e2, 1e4)) for place in ("features", "edge features")),
    Mutation("offset", "features", (*SCALE, "precision"), data("features", lambda v, s: v + s), (1e3, 1e7)),
    Mutation("alike", "features", ("indistinguishable-nodes",), data("features", alike)),
    Mutation("no edges", "graph", ("isolated-nodes",), without_edges, (0.5, 0.8)),
    *(Mutation("dead", p, ("dead-units", "unsuitable-init"), behind(p, lambda x, s: (x - s).relu()), (3.0, 30.0)) for p in INTERIOR),
    Mutation("dead", "head", ("dead-units", "unsuitable-init"), behind("head", lambda x, s: (x - s).relu()), (3.0, 30.0)),
    *(Mutation("clamped", p, ("active-clamp", "never-updated-parameter"), behind(p, lambda x, s: x.clamp(-s, s)), (0.01, 0.05)) for p in (*INTERIOR, "head")),
    *(Mutation("without gradient", p, ("never-updated-parameter",), behind(p, lambda x, s: x.detach())) for p in INTERIOR),
    *(Mutation("rounded", p, STUCK, behind(p, stops), (1.0,)) for p in (*INTERIOR, "head")),
    *(Mutation("undefined", p, UNDEFINED, behind(p, lambda x, s: x.sqrt())) for p in (*INTERIOR, "head")),
    *(Mutation("logarithm of zero", p, UNDEFINED, behind(p, lambda x, s: x.relu().log())) for p in (*INTERIOR, "head")),
    *(Mutation("own size divided out", p, ("normalization-misuse",), behind(p, lambda x, s: x / x.abs().clamp(min=1e-6))) for p in INTERIOR),
    *(Mutation("exponential", p, ("undefined-operation", *LARGE), behind(p, lambda x, s: (s * x).exp()), (10.0, 100.0)) for p in (*INTERIOR, "head")),
    *(Mutation("gain", p, LARGE, behind(p, lambda x, s: x * s), (30.0, 1e3)) for p in INTERIOR),
    *(Mutation("large weights", p, LARGE, weights(p, lambda w, s: w * s), (10.0, 100.0)) for p in (*INTERIOR, "head")),
    *(Mutation("zero weights", p, ("unsuitable-init", "never-updated-parameter", "indistinguishable-nodes", "dead-units"), weights(p, lambda w, s: w * 0)) for p in INTERIOR),
    *(Mutation("uninitialised", p, ("uninitialized-parameter", "unsuitable-init"), weights(p, unset), (1e12, 1e30)) for p in (*INTERIOR, "head")),
    *(Mutation("low bias", p, ("dead-units", "unsuitable-init"), weights(p, lambda b, s: b - s, "bias"), (10.0, 100.0)) for p in INTERIOR),
    Mutation("copied units", "encoder", ("unsuitable-init", "indistinguishable-nodes"), weights("encoder", lambda w, s: w[:1].expand_as(w).clone())),
    Mutation("sharp scores", "scores", ("attention-explosion", "unsuitable-init"), scores, (5.0, 20.0)),
    Mutation("rate", "optimizer", ("learning-rate",), rate, (30.0, 300.0)),
    Mutation("eps", "optimizer", ("adam-epsilon",), epsilon, (1.0, 100.0)),
    Mutation("not held", "optimizer", ("never-updated-parameter",), only_head),
    Mutation("logarithm of zero", "loss", UNDEFINED, loss(lambda f, out, b: f(out, b) - out.clamp(0, 1).log().mean() * 1e-3)),
    Mutation("mean of nothing", "loss", ("undefined-operation", "non-finite-data", "masking"), loss(lambda f, out, b: f(out, b) + out[:0].mean())),
    Mutation("root at zero", "loss", UNDEFINED, loss(lambda f, out, b: f(out, b) + (out - out.detach()).square().sum(-1).sqrt().mean())),
)  # fmt: skip


@lru_cache(maxsize=64)
def healthy(name: str) -> tuple[float, ...]:
    return tuple(Run.of(HEALTHY[name]).steps(STEPS))


def mutant(name: str, mutation: Mutation, strength: float) -> Run | None:
    run = Run.of(HEALTHY[name])
    run.batches = [copy.deepcopy(batch) for batch in run.batches]
    return run if mutation.put(run, strength) else None


def did_damage(name: str, mutation: Mutation, strength: float) -> bool:
    """The label: training alone decides."""
    run = mutant(name, mutation, strength)
    if run is None:
        return False
    before = healthy(name)
    try:
        after = run.steps(STEPS)
    except (RuntimeError, IndexError, ValueError):
        return False
    if not all(map(math.isfinite, after)):
        return True
    ends = sum(after[-5:]) / 5 / mutation.unit(strength)
    return ends > sum(before[-5:]) / 5 + HALF_WAY * max(before[0] - sum(before[-5:]) / 5, 0.05 * abs(before[0]))


def ask(name: str, mutation: Mutation | None, strength: float = 1.0) -> dict[str, Answer]:
    """What a monitor around the training, `diagnose` on the fresh model and the saved file say."""
    make = (lambda: Run.of(HEALTHY[name])) if mutation is None else partial(mutant, name, mutation, strength)
    run, fresh = make(), make()
    assert run is not None
    assert fresh is not None
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with gnnstab.Monitor(run.model, optimizer=run.optimizer, trace=f"{folder}/run.gnnstab") as monitor:
            run.steps(STEPS, monitor.loss)
        file = f"{folder}/checkpoint.pt"
        torch.save({"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}, file)
        given = {"loss": fresh.program.loss, "optimizer": fresh.optimizer}
        precision = "bf16" if fresh.program.bf16 else "fp32"
        return {
            "monitor": answer(monitor.diagnose),
            "diagnose": answer(lambda: gnnstab.diagnose(fresh.model, batch=fresh.batches[0], precision=precision, **given)),
            "checkpoint": answer(lambda: gnnstab.diagnose(file)),
        }  # fmt: skip


@lru_cache(maxsize=64)
def of_twin(name: str) -> dict[str, Answer]:
    return ask(name, None)


def run(out: Path, per: int, seconds: float, only: str) -> None:
    """Append one line per mutant that did damage; each mutation meets the programs in an order of its own."""
    until, names = time.monotonic() + seconds, list(HEALTHY)
    done = {json.loads(line)["name"] for line in out.read_text().splitlines()} if out.exists() else set()
    for number, mutation in enumerate(m for m in MUTATIONS if only in f"{m.kind} {m.place}"):
        for level, strength in enumerate(mutation.strengths):
            taken = 0
            for i in range(len(names)):
                name = names[(i * 11 + number * 5 + level * 3) % len(names)]
                title = f"{mutation.kind} | {mutation.place} | {strength:g} | {name}"
                if taken == per or time.monotonic() > until:
                    break
                if title in done:
                    taken += 1
                    continue
                if not did_damage(name, mutation, strength):
                    continue
                truth = {"roots": mutation.roots, "never": [], "faces": ["monitor", "diagnose"], "says": []}
                try:
                    said = ask(name, mutation, strength)
                except Exception as problem:
                    said = {face: {"roots": [], "loud": ["CRASH"], "text": repr(problem)[:300]} for face in ("monitor", "diagnose", "checkpoint")}  # fmt: skip
                row = {"name": title, "truth": truth, "faulty": said, "twin": of_twin(name)}
                with out.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
                taken += 1


def matrix(out: Path) -> Iterator[str]:
    """Share of mutants whose first root cause is right, by kind and place: Monitor, diagnose, number."""
    cells: dict[tuple[str, str], list[tuple[bool, bool]]] = {}
    for row in map(json.loads, out.read_text().splitlines()):
        kind, place, *_ = row["name"].split(" | ")
        right = [row["faulty"][f]["roots"][:1] and row["faulty"][f]["roots"][0] in row["truth"]["roots"] for f in ("monitor", "diagnose")]  # fmt: skip
        cells.setdefault((kind, place), []).append((bool(right[0]), bool(right[1])))
    yield "| kind | place | mutants | Monitor | diagnose |"
    yield "| --- | --- | --- | --- | --- |"
    for (kind, place), found in sorted(cells.items()):
        monitor, diagnosed = (sum(r[i] for r in found) for i in (0, 1))
        yield f"| {kind} | {place} | {len(found)} | {monitor} | {diagnosed} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "matrix"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--per", type=int, default=3, help="mutants per kind, place and strength")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    if options.what == "matrix":
        print(*matrix(options.out), sep="\n")
        return
    torch.set_num_threads(1)
    run(options.out, options.per, options.seconds, options.only)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
