"""The fault benchmark.

    python tests/faults/bench.py truth  --split development --per-cause 100 --out truth-development.jsonl
    python tests/faults/bench.py detect --truth truth-development.jsonl --out said-development.jsonl
    python tests/faults/bench.py report --said said-development.jsonl

`truth` trains every faulty network and its healthy twin and keeps the faults that do damage; it asks no detector and can
be interrupted and continued. `detect` runs gnnstab and the two baselines on what was kept. `report` prints the tables of
docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import joblib
import torch

from faults.injections import INJECTIONS
from faults.outcome import TRAINS, judged, quality
from faults.recipes import Recipe
from faults.splits import PAIRS, healthy, pair, single

Row = dict[str, Any]
Job = tuple[str, Callable[[], Row]]


def to_row(kind: str, recipe: Recipe, outcome: Row) -> Row:
    """One line of the truth file."""
    return {"kind": kind, "recipe": asdict(recipe), "causes": [c for c, _ in recipe.faults], **outcome}


def to_recipe(row: Row) -> Recipe:
    """The recipe of a line."""
    fields = dict(row["recipe"])
    for name in ("edits", "faults"):
        fields[name] = tuple((n, s) for n, s in fields[name])
    return Recipe(**fields)


def healthy_row(split: str, index: int) -> Row:
    """A healthy network that was seen to train."""
    recipe = healthy(split, index)
    r2 = quality(recipe)
    return to_row("healthy", recipe, {"healthy": r2, "took": r2 >= TRAINS, "hard": bool(index % 2)})


def single_row(split: str, cause: str, index: int) -> Row:
    """One fault and its twin, both trained."""
    twin, faulty = single(split, next(i for i in INJECTIONS if i.cause == cause), index)
    return to_row("single", faulty, judged(twin, faulty))


def pair_row(split: str, first: str, second: str, index: int) -> Row:
    """Two faults and the healthy twin."""
    twin, faulty = pair(split, first, second, index)
    return to_row("pair", faulty, judged(twin, faulty))


def jobs(split: str, per_cause: int) -> Iterator[Job]:
    """Everything to be trained, interleaved so that an interrupted run is balanced."""
    for index in range(per_cause):
        yield f"healthy {index}", lambda i=index: healthy_row(split, i)  # type: ignore[misc]
        for injection in INJECTIONS:
            yield f"{injection.cause} {index}", lambda c=injection.cause, i=index: single_row(split, c, i)  # type: ignore[misc]
        if index % 4 == 0:
            for a, b in PAIRS:
                yield f"{a}+{b} {index}", lambda a=a, b=b, i=index: pair_row(split, a, b, i)  # type: ignore[misc]


def run_jobs(all_jobs: list[Job], out: Path, workers: int) -> None:
    """Run what the file does not hold yet, appending each result as it comes."""
    done = {json.loads(line)["job"] for line in out.read_text().splitlines()} if out.exists() else set()
    open_jobs = [job for job in all_jobs if job[0] not in done]
    results = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1)(
        joblib.delayed(_one)(name, work) for name, work in open_jobs
    )
    with out.open("a") as stream:
        for position, row in enumerate(results, 1):
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            print(f"\r{position}/{len(open_jobs)}", end="", file=sys.stderr, flush=True)


def _one(name: str, work: Callable[[], Row]) -> Row:
    torch.set_num_threads(1)
    return {"job": name, **work()}


def detect_row(row: Row) -> Row:
    """What each detector says about one case."""
    from faults.detectors import accused, by_absolute_thresholds, by_checklist, by_gnnstab, prepared

    case, optimizer = prepared(to_recipe(row))
    diagnosis = by_gnnstab(case, optimizer)
    return {
        **row,
        "said": sorted(accused(diagnosis)),
        "codes": sorted({f.code for f in diagnosis.at_least("warning")}),
        "root": [c.cause for c in diagnosis.root_causes()],
        "statuses": {c.cause: c.status for c in diagnosis.causes},
        "checklist": sorted(by_checklist(case)),
        "absolute": sorted(by_absolute_thresholds(case)),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=("truth", "detect", "report"))
    parser.add_argument("--split", default="development", choices=("development", "held-out"))
    parser.add_argument("--per-cause", type=int, default=100)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--said", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if options.phase == "truth":
        run_jobs(list(jobs(options.split, options.per_cause)), options.out, options.jobs)
    elif options.phase == "detect":
        kept = [r for r in map(json.loads, options.truth.read_text().splitlines()) if r["took"]]
        run_jobs([(r["job"], lambda r=r: detect_row(r)) for r in kept], options.out, options.jobs)  # type: ignore[misc]
    else:
        from faults.tables import report

        print(report([json.loads(line) for line in options.said.read_text().splitlines()]))


if __name__ == "__main__":
    main()
