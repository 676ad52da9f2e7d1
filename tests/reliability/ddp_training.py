"""The program that test_distributed.py starts under torchrun: two ranks, gloo, a monitor each.

``torchrun --nproc_per_node 2 ddp_training.py FOLDER``: rank 1 meets a NaN in its features at one step of a first run, and
dies by SIGKILL in the middle of a second one. A run without monitors comes before them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import gnnstab
from side_by_side import Net, graph

STEPS, BAD_STEP, DEATH = 8, 5, 6


def train(rank: int, trace: Path | None, bad_step: int = -1, death: int = -1) -> list[torch.Tensor]:
    """A few steps under a monitor that writes to ``trace``; returns the weights after the step before ``bad_step``."""
    torch.manual_seed(0)
    model = DistributedDataParallel(Net(dropout=0.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    kept = []
    watching = contextlib.nullcontext()
    if trace is not None:
        watching = gnnstab.Monitor(model, optimizer=optimizer, trace=trace, on_finding="ignore")
    with watching as monitor:
        for step in range(STEPS):
            x, edge_index = graph(10 * step + rank)
            if (rank, step) == (1, bad_step):
                x[2, 0] = torch.nan
            if step == death:
                monitor.trace.close()  # Everything so far is on the disk,
                dist.barrier()  # on both ranks: the launcher kills the other one as soon as it sees the death.
                if rank == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
            optimizer.zero_grad()
            model(x, edge_index).square().mean().backward()
            optimizer.step()
            if step < BAD_STEP:
                kept = [parameter.detach().clone() for parameter in model.parameters()]
    return kept


def main(folder: Path) -> None:
    """The three runs."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    (folder / "bad").mkdir(exist_ok=True)
    (folder / "killed").mkdir(exist_ok=True)
    alone = train(rank, None)
    watched = train(rank, folder / "bad" / "run.gnnstab", bad_step=BAD_STEP)
    same = all(map(torch.equal, alone, watched))
    (folder / f"rank{rank}").write_text(f"{len(alone)} {same}")
    train(rank, folder / "killed" / "run.gnnstab", death=DEATH)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
