"""The proofs at full size, run on demand: python tests/benchmarks/proof.py [actor|crash|deep|scale|init]

Prints the tables of docs/proof.md. ``actor`` takes minutes, ``deep`` longer.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from gnnstab import fixes, verify
from gnnstab.observation import measured_signals
from gnnstab.probe.batches.arguments import as_arguments
from gnnstab.records import Finding
from gnnstab.verification import Verdict
from gnnstab.verification._fresh_copies import fresh_twin
from gnnstab.verification.measuring import observe
from gnnstab.verification.replay import replay
from gnnstab.verification.scaling import scale
from gnnstab.verification.wording import number, replay_text, scaling_text
from models.informarl import Actor, load_actor, sample_batch
from models.stacks import Stack, random_batch

LAYERS = ("gnn.gnn1", "gnn.gnn2.0", "gnn.gnn2.1")
CRASH = "agents7_lr7e-2_amp16_nan_crash"


def show(title: str, verdicts: list[Verdict]) -> None:
    """One line per fix."""
    print(
        f"\n{title}\n| fix | verdict | signal | before | after | loss before | loss after | because |\n|---|---|---|---|---|---|---|---|"
    )
    for v in verdicts:
        options = ", ".join(f"{k}={x}" for k, x in v.options.items())
        cells = (
            f"{v.fix} {options}".strip(),
            v.verdict,
            v.signal,
            *map(number, (v.before, v.after, v.loss_before, v.loss_after)),
        )
        print(f"| {' | '.join((*cells, v.reason))} |", flush=True)


def actor() -> None:
    """The document's network with 7 agents."""
    names = [
        "norm-after-sum",
        "mean-aggregation-root",
        "aggregation",
        "residual:weight=0.1",
        "lower-lr:lr=3.5e-4",
        "dropout",
        "beta",
    ]
    names += ["score-cap", "qk-clip", "qk-norm", "graph-norm", "depth-init"]
    show("7-agent actor", verify(load_actor(), names, batch=sample_batch(), lr=5e-4, workers=2))


def crash() -> None:
    """The fp16 crash."""
    model = load_actor(CRASH)
    print(replay_text(replay(model, (), sample_batch(), precision="fp16")))
    names = ["fp32-attention", ("fp32-attention", {"only": ["gnn.gnn1"]}), "score-cap", "qk-clip"]
    show("fp16 crash", verify(model, names, batch=sample_batch(), precision="fp16", seeds=2, steps=30))


def initialised(depth: int, gain: float | None) -> Callable[[], nn.Module]:
    """A factory for a stack of width 64; PyG's default initialisation when ``gain`` is None, else orthogonal."""

    def factory() -> nn.Module:
        model = Stack(depth, 64)
        for parameter in model.parameters() if gain is not None else ():
            nn.init.orthogonal_(parameter, gain=gain) if parameter.dim() > 1 else nn.init.zeros_(parameter)
        return model

    return factory


def deep() -> None:
    """Stacks of known behaviour."""
    batch = random_batch(64, 8, 64)
    for depth in (16, 32):
        names = ["residual:weight=0.1", "residual-depth-init", "pre-norm-residual", "beta", "graph-norm", "depth-init"]
        one_case(f"PyG default, {depth} layers", initialised(depth, None), names, batch)
    for depth in (8, 16):
        names = ["beta", "residual:weight=1.0", "pre-norm-residual", "unit-gain-init"]
        one_case(f"orthogonal √2, {depth} layers", initialised(depth, 2**0.5), names, batch)


def one_case(title: str, factory: Callable[[], nn.Module], names: list[str], batch: Any) -> None:
    """Verify against the gradient's finding."""
    torch.manual_seed(0)
    model = factory()
    ratios = [f for f in observe(model, batch).findings if f.signal == "gradient.ratio"]
    finding: Finding | None = ratios[0] if ratios else None
    show(title, verify(model, names, batch=batch, factory=factory, finding=finding, workers=2))


def growth() -> None:
    """From the 3-agent batch to the 7-agent batch, which the prediction has not seen."""
    model = load_actor()
    found = scale(model, batch=sample_batch(3))
    print(scaling_text(found))
    true = measured_signals(model, sample_batch(7))
    degree = true.value("degree.mean") or 9.44
    for layer in LAYERS:
        seen = true.value("attention.one_hot_share", layer=layer)
        said = found.predict("attention.one_hot_share", layer.removeprefix("gnn."), degree)
        print(f"{layer}: predicted {said:.3f}, measured {seen:.3f} at in-degree {degree:.2f}")


def init() -> None:
    """Score std at initialisation, median of 10 seeds: the table of tests/data/README.md."""
    batch, variants = (
        sample_batch(),
        ["", "aggregation", "norm-after-sum:root=False", "beta", "residual", "graph-norm", "depth-init"],
    )
    for text in variants:
        name, _, rest = text.partition(":")
        rows = []
        for seed in range(10):
            model = fresh_twin(Actor(), seed)
            options: dict[str, Any] = {"batch": batch, "seed": seed, **({"root": False} if rest else {})}
            changed = fixes.apply(model, name, **options) if name else model
            with torch.no_grad():
                changed(*as_arguments(batch, changed)[0][0], **as_arguments(batch, changed)[0][1])
            signals = measured_signals(changed, batch)
            rows.append([signals.value("score.std", layer=layer) or float("nan") for layer in LAYERS])
        print(
            text or "as it is", [round(statistics.median(column), 2) for column in zip(*rows, strict=True)], flush=True
        )


def main() -> None:
    """Run the parts named on the command line, all when none is."""
    parts = {"actor": actor, "crash": crash, "deep": deep, "scale": growth, "init": init}
    torch.set_num_threads(1)
    for name in sys.argv[1:] or parts:
        start = time.perf_counter()
        parts[name]()
        print(f"[{name}: {time.perf_counter() - start:.0f} s]", flush=True)


if __name__ == "__main__":
    main()
