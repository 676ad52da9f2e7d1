"""The program that test_sharded.py starts under torchrun: a model whose parameters lie in all of its processes.

``torchrun --nproc_per_node N fsdp_training.py FOLDER``: the last rank meets a NaN in its features in a third run; a run
without monitors comes first.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import gnnstab
from side_by_side import Net, graph

STEPS, BAD_STEP = 8, 5


def train(rank: int, trace: Path | None, bad_step: int = -1) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Losses and this rank's part of the weights after a few steps; what the monitor says."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    model = Net(dropout=0.1)
    for part in (model.first, model.second, model):
        fully_shard(part, mesh=mesh)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    torch.manual_seed(100 + rank)
    kept: list[torch.Tensor] = []
    watching: Any = contextlib.nullcontext()
    if trace is not None:
        watching = gnnstab.Monitor(model, optimizer=optimizer, trace=trace, on_finding="ignore", schedule=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with watching as monitor:
            for step in range(STEPS):
                x, edge_index = graph(10 * step + rank)
                if step == bad_step:
                    x[2, 0] = torch.nan
                optimizer.zero_grad()
                loss = model(x, edge_index).square().mean()
                loss.backward()
                optimizer.step()
                kept.append(loss.detach())
        kept += [parameter.to_local().detach().clone() for parameter in model.parameters()]
        said = {} if monitor is None else told(monitor)
        said["warned"] = [str(w.message) for w in caught if issubclass(w.category, gnnstab.errors.GnnstabWarning)]
    with contextlib.suppress(gnnstab.errors.GnnstabError):
        gnnstab.diagnose(model, batch=graph())
        said["diagnosed"] = True
    return kept, said


def told(monitor: gnnstab.Monitor) -> dict[str, Any]:
    """What the diagnosis says."""
    found = monitor.diagnose()
    return {
        "codes": [f.code for f in found.findings],
        "causes": {c.cause: c.status for c in found.causes if c.status in ("root-cause", "contributing")},
        "places": [[f.step, f.layer] for f in found.findings if f.code == "GS502"],
        "observed": found.coverage.layers_observed,
        "blind": [[b.site, b.reason] for b in found.coverage.blind],
    }


def main(folder: Path) -> None:
    """The three runs."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    alone, _ = train(rank, None)
    watched, good = train(rank, folder / "good.gnnstab")
    _, bad = train(rank, folder / "bad.gnnstab", BAD_STEP if rank == last else -1)
    same = len(alone) == len(watched) and all(map(torch.equal, alone, watched))
    (folder / f"rank{rank}.json").write_text(json.dumps({"same": same, "good": good, "bad": bad}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
