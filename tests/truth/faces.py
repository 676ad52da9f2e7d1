"""The three faces of the tool, asked about one program; run as a script it asks about all of them.

PYTHONPATH=tests python tests/truth/faces.py --out said.jsonl [--steps 0,20,150] [--only 'NAME;…'] [--seconds 240]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

import gnnstab
from gnnstab.records import Finding
from truth.healthy import HEALTHY, Run

Said = dict[str, list[Finding]]


def loud(findings: Iterable[Finding]) -> list[Finding]:
    return [f for f in findings if f.severity != "info"]


def ask(name: str, steps: int, seed: int = 0) -> tuple[Said, list[float]]:
    """Warnings and errors by face, and the losses: ``live`` while it trains, ``monitor`` at the end, then model and file."""
    run = Run.of(HEALTHY[name], seed)
    said: Said = {}
    losses: list[float] = []
    if steps:
        heard: list[Finding] = []
        with gnnstab.Monitor(run.model, optimizer=run.optimizer, on_finding=heard.append) as monitor:
            losses = run.steps(steps, monitor.loss)
        said["live"] = loud(heard)
        said["monitor"] = loud(monitor.diagnose().findings)
    model, program = run.model, run.program
    found = gnnstab.diagnose(
        model, batch=run.batches[0], loss=program.loss, optimizer=run.optimizer,
        precision="bf16" if program.bf16 else "fp32",
    )  # fmt: skip
    said["model"] = loud(found.findings)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt"
        torch.save({"model": model.state_dict(), "optimizer": run.optimizer.state_dict()}, file)
        said["file"] = loud(gnnstab.diagnose(file).findings)
    return said, losses


def summary(lines: Iterable[str]) -> str:
    """How many programs were flagged, by face and by rule."""
    asked: Counter[str] = Counter()
    flagged: Counter[str] = Counter()
    rules: Counter[tuple[str, str]] = Counter()
    any_face = states = 0
    for row in map(json.loads, lines):
        states += 1
        any_face += any(row["said"].values())
        for face, found in row["said"].items():
            asked[face] += 1
            flagged[face] += bool(found)
            rules.update({(face, code) for code, *_ in found})
    text = [f"{any_face} of {states} states flagged by any face"]
    text += [f"{face}: {flagged[face]} of {asked[face]}" for face in asked]
    return "\n".join(text + [f"  {face} {code}: {n}" for (face, code), n in sorted(rules.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", default="0,20,150")
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=240.0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    old = options.out.read_text().splitlines() if options.out.exists() else []
    done = {(row["name"], row["steps"]) for row in map(json.loads, old)}
    names = options.only.split(";") if options.only else list(HEALTHY)
    until = time.monotonic() + options.seconds
    for steps in map(int, options.steps.split(",")):
        for name in names:
            if (name, steps) in done or time.monotonic() > until:
                continue
            said, losses = ask(name, steps)
            told = {face: [(f.code, f.layer, f.message) for f in found] for face, found in said.items()}
            row = {"name": name, "steps": steps, "losses": [losses[0], losses[-1]] if losses else [], "said": told}
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print(summary(options.out.read_text().splitlines()))


if __name__ == "__main__":
    main()
