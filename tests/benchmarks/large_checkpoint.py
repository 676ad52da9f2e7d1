"""Diagnose a checkpoint of several GiB and print time and peak memory.

Run by hand: ``python tests/benchmarks/large_checkpoint.py [--gib 8] [--keep FILE]``. The file is a real torch archive whose
large members are holes, so that it needs little disk; reading the holes costs what reading zeros from a disk cache costs.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MEMORY_LIMIT_MIB = 1536

PROBE = """
import json, resource, sys, time
import torch
from gnnstab.checkpoint import _sniffing, load, recover, rebuild
_sniffing.LARGEST_RATIO = float("inf")  # The file is a stand-in for one without holes.
from gnnstab.signals.weights import from_checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
checkpoint = load(sys.argv[1])
facts = recover(checkpoint)
signals = from_checkpoint(facts)
rebuilt = rebuild(facts, checkpoint)
print(json.dumps({
    "seconds": time.perf_counter() - start, "tensors": len(checkpoint.tensors), "layers": len(facts.layers),
    "rebuilt": len(rebuilt.model.paths), "signals": len(signals.values),
    "mib_after_import": before / 1024, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def write_sparse_checkpoint(path: Path, gib: float, layers: int = 3, width: int = 64, heads: int = 4) -> None:
    """A checkpoint of ``gib`` GiB: ``layers`` TransformerConvs with real weights, the rest holes in the file."""
    import torch
    from torch_geometric.nn import TransformerConv

    torch.manual_seed(0)
    state = {
        f"convs.{i}.{name}": tensor
        for i in range(layers)
        for name, tensor in TransformerConv(width, width, heads=heads, concat=False, edge_dim=3).state_dict().items()
    }
    rows = 2**27  # × 4 bytes = 512 MiB each
    large = max(1, round(gib * 2))
    for i in range(large):
        state[f"table.{i}"] = torch.empty(rows, 1)
    _save_with_holes(state, path)


def _save_with_holes(state: dict, path: Path) -> None:
    """Write what torch.save writes, but the data of the small tensors alone; the rest stays holes in the file."""
    import torch

    with torch.serialization.skip_data():
        torch.save(state, path)
    small = {name: tensor for name, tensor in state.items() if tensor.numel() <= 2**18}
    with zipfile.ZipFile(path) as archive, path.open("r+b") as stream:
        records = [m for m in archive.infolist() if "/data/" in m.filename]
        for record, (name, tensor) in zip(
            sorted(records, key=lambda m: int(m.filename.rpartition("/")[2])), state.items(), strict=True
        ):
            if name not in small:
                continue
            stream.seek(record.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", stream.read(4))
            stream.seek(record.header_offset + 30 + name_length + extra_length)
            stream.write(tensor.contiguous().numpy().tobytes())


def main() -> int:
    """Print one line of JSON and fail when the memory limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=8.0)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.keep or Path(folder) / "large.pt"
        if not path.exists():
            write_sparse_checkpoint(path, options.gib)
        done = subprocess.run([sys.executable, "-c", PROBE, str(path)], capture_output=True, text=True, check=True)
        result = json.loads(done.stdout)
        blocks = path.stat().st_blocks * 512 / 2**20
        result |= {"file_gib": path.stat().st_size / 2**30, "on_disk_mib": blocks}
    print(json.dumps(result, indent=1))
    return 0 if result["peak_mib"] < MEMORY_LIMIT_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
