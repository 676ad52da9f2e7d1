"""What a diagnosis and the repeat of a bad step cost, in plain training steps of the same model and in counted work.

    PYTHONPATH=tests python tests/benchmarks/diagnosis.py

The model is a real 7-agent actor with its batch. Times are processor time, the fastest of five, side by side in one process.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import gnnstab
from effort import work
from models.informarl import load_actor, sample_batch

ROUNDS = 5


def squares(output: Tensor, batch: Any = None) -> Tensor:
    return output.square().mean()


def broken(output: Tensor, batch: Any = None) -> Tensor:
    """A logarithm of 0 at the smallest entry."""
    return (output - output.min()).log().mean()


def fastest(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Processor seconds of the fastest of a few rounds."""
    times = []
    for _ in range(rounds):
        begun = time.process_time()
        call()
        times.append(time.process_time() - begun)
    return min(times)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, batch = load_actor("agents7_default").train(), sample_batch(7)
    optimizer = torch.optim.Adam(model.parameters(), lr=7e-4, eps=1e-5)
    still = torch.optim.Adam(model.parameters(), lr=0.0)

    def step(loss: Callable[[Tensor], Tensor] = squares) -> Tensor:
        still.zero_grad()
        value = loss(model(**batch))
        value.backward()
        still.step()
        return value

    def last_step(loss: Callable[[Tensor], Tensor]) -> float:
        with gnnstab.Monitor(model, optimizer=still, loss=loss, on_finding="ignore") as monitor:
            for one in (squares, squares, loss):
                begun = time.process_time()
                monitor.loss(step(one))
                lasted = time.process_time() - begun
        return lasted

    def diagnose() -> gnnstab.Diagnosis:
        return gnnstab.diagnose(model, batch=batch, loss=squares, optimizer=optimizer)

    plain = fastest(step, 20)
    print(f"a plain step: {1e3 * plain:.1f} ms")
    with work(model) as made:
        diagnose()
    print(f"diagnose: {fastest(diagnose) / plain:.0f} steps; {dict(made)}")
    good, bad = (min(last_step(loss) for _ in range(ROUNDS)) / plain for loss in (squares, broken))
    print(f"a step that is told and repeated: {bad:.1f} steps; the same step without a fault, monitored: {good:.1f}")


if __name__ == "__main__":
    main()
