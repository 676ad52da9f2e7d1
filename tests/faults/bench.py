"""The fault benchmark.

    python tests/faults/bench.py truth  --split development --per-cause 100 --out truth-development.jsonl
    python tests/faults/bench.py detect --truth truth-development.jsonl --out said-development.jsonl
    python tests/faults/bench.py report --said said-development.jsonl
    python tests/faults/bench.py lead   --out lead.jsonl
    python tests/faults/bench.py cure   --truth truth-development.jsonl --per-cause 8 --out cured-development.jsonl

`truth` trains every faulty network and its healthy twin and keeps the faults that do damage; it asks no detector and can
be interrupted and continued. `detect` runs gnnstab and the two baselines on what was kept. `report` prints the tables of
docs/accuracy.md. `cure` applies the fix that is recommended first and prints the table of cures there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import joblib
import torch

from faults.injections import INJECTIONS
from faults.outcome import TRAINS, judged, quality
from faults.recipes import Recipe
from faults.splits import FAMILIES, PAIRS, healthy, pair, single

Row = dict[str, Any]
Job = tuple[str, Callable[[], Row]]

PAIR_EVERY = 4
"""Pairs are drawn in every fourth round, and a quarter as many are wanted."""

HEALTHY = 3
"""Healthy networks wanted for every case of a cause: a rate of 1 % needs hundreds."""


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


def drawn(split: str, index: int, wanted: Callable[[str], bool]) -> list[Job]:
    """One round: two healthy networks, and a case of every cause (and pair) that is still wanted."""
    found: list[Job] = [(f"healthy {i}", partial(healthy_row, split, i)) for i in (2 * index, 2 * index + 1)]
    found += [(f"{i.cause} {index}", partial(single_row, split, i.cause, index)) for i in INJECTIONS]
    if index % PAIR_EVERY == 0:
        found += [(f"{a}+{b} {index}", partial(pair_row, split, a, b, index)) for a, b in PAIRS]
    return [(name, work) for name, work in found if wanted(name.split()[0])]


def truth(split: str, per_cause: int, rounds: int, out: Path, workers: int, only: str = "") -> None:
    """Draw rounds until every cause has ``per_cause`` cases that did damage, appending each result as it comes.

    ``only``: kinds to draw, separated by commas, where time is short; all when empty.
    """
    goals = {"healthy": HEALTHY * per_cause, **{i.cause: per_cause for i in INJECTIONS}}
    goals |= {f"{a}+{b}": per_cause // PAIR_EVERY for a, b in PAIRS}
    goals = {kind: goal for kind, goal in goals.items() if not only or kind in only.split(",")}
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    kept = Counter(row["job"].split()[0] for row in rows if row["took"])
    done = {row["job"] for row in rows}
    with (
        out.open("a") as stream,
        joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1) as pool,
    ):
        for index in range(rounds):
            batch = [
                job for job in drawn(split, index, lambda kind: kept[kind] < goals.get(kind, 0)) if job[0] not in done
            ]
            for row in pool(joblib.delayed(_one)(name, work) for name, work in batch):
                kept[row["job"].split()[0]] += row["took"]
                stream.write(json.dumps(row) + "\n")
                stream.flush()
            missing = [kind for kind, goal in goals.items() if kept[kind] < goal]
            print(f"round {index + 1}: {len(missing)} kinds to go", file=sys.stderr, flush=True)
            if not missing:
                return


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


def cure_jobs(rows: list[Row], per_cause: int, only: str = "") -> list[Job]:
    """Up to ``per_cause`` single faults of every cause, the causes in turn, so that an interrupted run is balanced.

    The strengths of a cause take turns as well: every one of them counts alike, however often it was drawn.
    ``only``: causes to take, separated by commas; all when empty.
    """
    from faults.cures import cure_row

    wanted = set(only.split(",")) - {""}
    kept = [row for row in rows if row["took"] and row["kind"] == "single"]
    kept = [row for row in kept if not wanted or row["causes"][0] in wanted]
    by_strength: Counter[tuple[str, float]] = Counter()
    turns: dict[str, list[tuple[int, float, Row]]] = defaultdict(list)
    for row in kept:
        cause, strength = row["recipe"]["faults"][0]
        turns[cause].append((by_strength[cause, strength], strength, row))
        by_strength[cause, strength] += 1
    ordered = [sorted(own, key=lambda turn: turn[:2])[:per_cause] for own in turns.values()]
    chosen = [row for own in zip_longest(*ordered) for turn in own if turn is not None for row in turn[2:]]
    return [(row["job"], partial(cure_row, row, to_recipe(row))) for row in chosen]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=("truth", "detect", "report", "cure", "lead"))
    parser.add_argument("--split", default="development", choices=tuple(FAMILIES))
    parser.add_argument("--per-cause", type=int, default=100, help="cases that did damage, of every cause and pair")
    parser.add_argument("--rounds", type=int, default=400, help="give up on a cause after so many draws")
    parser.add_argument("--only", default="", help="kinds to draw or causes to cure, separated by commas")
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--said", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if options.phase == "truth":
        truth(options.split, options.per_cause, options.rounds, options.out, options.jobs, options.only)
    elif options.phase == "detect":
        kept = [r for r in map(json.loads, options.truth.read_text().splitlines()) if r["took"]]
        run_jobs([(r["job"], partial(detect_row, r)) for r in kept], options.out, options.jobs)
    elif options.phase == "cure":
        from faults.cures import cures_table

        rows = [json.loads(line) for line in options.truth.read_text().splitlines()]
        run_jobs(cure_jobs(rows, options.per_cause, options.only), options.out, options.jobs)
        print(cures_table([json.loads(line) for line in options.out.read_text().splitlines()]))
    elif options.phase == "lead":
        from faults.lead import lead_row, runs, table

        listed = [
            (f"{kind} {i}", partial(lead_row, kind, r)) for kind, own in runs().items() for i, r in enumerate(own)
        ]
        run_jobs(listed, options.out, options.jobs)
        print("\n" + table([json.loads(line) for line in options.out.read_text().splitlines()]))
    else:
        from faults.tables import report

        print(report([json.loads(line) for line in options.said.read_text().splitlines()]))


if __name__ == "__main__":
    main()
