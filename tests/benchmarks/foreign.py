"""Asks three faces about programs that somebody else wrote, and scores the answers; run it on a folder that nobody has tuned for.

    python tests/benchmarks/foreign.py run FOLDER ANSWERS.jsonl       # appends a line per program; goes on where it was stopped
    python tests/benchmarks/foreign.py run FOLDER ANSWERS.jsonl 0 2   # every second program, for two processes side by side
    python tests/benchmarks/foreign.py score ANSWERS.jsonl            # the table of docs/accuracy.md

A program is one file with a global FIXED (False: faulty, True: its repaired twin), `settings()`, `batches(fixed)` and
`loss(output, batch)`. `settings()` returns `model` (called with fixed), `lr`, `steps` and perhaps `optimizer` (called with the
parameters), `call` (called with model and batch), `autocast`, `precision`, `grad_clip`, `look_at` (the batch that diagnose sees).
`expected.json` holds for each: `roots` (accepted first root causes; [] for a healthy program), `never` (causes that are false),
`faces` (those that can know) and `says` (patterns that the report must contain). Labels come from training, not from a detector.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import math
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

FACES = ("monitor", "diagnose", "checkpoint")
Answer = dict[
    str, Any
]  # roots: causes in the order of the report; loud: codes of warnings and errors; text: the report


def load(path: Path, fixed: bool) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{path.stem}_{fixed}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # PyG's MessagePassing looks its subclass's module up
    spec.loader.exec_module(module)
    module.__dict__["FIXED"] = fixed
    return module


def ask(path: Path, fixed: bool) -> dict[str, Answer]:
    """What a monitor around the training, `diagnose` on the fresh model and `diagnose` on the saved file say of a program."""
    import torch

    import gnnstab

    torch.set_num_threads(1)
    case = load(path, fixed)
    how = case.settings()
    make = how.get("optimizer") or (lambda parameters: torch.optim.Adam(parameters, lr=how["lr"]))
    torch.manual_seed(0)
    model = how["model"](fixed)
    fresh = copy.deepcopy(model)
    batches = case.batches(fixed)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        optimizer = make(model.parameters())
        monitor = gnnstab.Monitor(model, optimizer=optimizer, trace=f"{folder}/run.gnnstab")
        with monitor:
            train(case, how, model, optimizer, monitor, batches)
        file = f"{folder}/checkpoint.pt"
        torch.save({"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}, file)
        given = {
            "loss": case.loss,
            "optimizer": make(fresh.parameters()),
            "precision": how.get("precision")
            or {"torch.float16": "fp16", "torch.bfloat16": "bf16"}.get(str(how.get("autocast")), "fp32"),
            "clip": how.get("grad_clip"),
        }
        faces: dict[str, Callable[[], Any]] = {
            "monitor": monitor.diagnose,
            "diagnose": lambda: gnnstab.diagnose(fresh, batch=batches[how.get("look_at", 0)], **given),
            "checkpoint": lambda: gnnstab.diagnose(file),
        }
        return {face: answer(diagnose) for face, diagnose in faces.items()}


def train(case: ModuleType, how: dict[str, Any], model: Any, optimizer: Any, monitor: Any, batches: list[Any]) -> None:
    """The plain loop of the README, stopped after three losses that are not finite."""
    import torch

    call = how.get("call") or (lambda m, b: m(b))
    dtype = how.get("autocast")
    bad = 0
    for step in range(how["steps"]):
        batch = batches[step % len(batches)]
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype) if dtype else contextlib.nullcontext():
            loss = case.loss(call(model, batch), batch)
        loss.backward()
        if how.get("grad_clip"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), how["grad_clip"])
        optimizer.step()
        monitor.loss(loss)
        bad += not math.isfinite(float(loss))
        if bad > 2:
            return


def answer(diagnose: Callable[[], Any]) -> Answer:
    from gnnstab.errors import GnnstabError

    try:
        diagnosis = diagnose()
    except GnnstabError as problem:
        return {"roots": [], "loud": [], "text": str(problem)}
    roots = [cause.cause for cause in diagnosis.root_causes()]
    loud = [finding.code for finding in diagnosis.findings if finding.severity in ("warning", "error")]
    return {"roots": roots, "loud": loud, "text": re.sub(r"\s+", " ", str(diagnosis))}


def run(folder: Path, out: Path, part: int, parts: int) -> None:
    """Append one line per program; a program that stands in the file already is not asked again."""
    expected = json.loads((folder / "expected.json").read_text())
    done = {json.loads(line)["name"] for line in out.read_text().splitlines()} if out.exists() else set()
    for name, truth in list(expected.items())[part::parts]:
        if name in done:
            continue
        began = time.perf_counter()
        row: dict[str, Any] = {"name": name, "truth": truth}
        for version, fixed in (("faulty", False), ("twin", True)):
            try:
                row[version] = ask(folder / f"{name}.py", fixed)
            except (
                Exception
            ) as problem:  # a crash of the tool or of the program is an answer too: it counts as wrong on every face
                row[version] = {face: {"roots": [], "loud": ["CRASH"], "text": repr(problem)[:300]} for face in FACES}
        row["seconds"] = round(time.perf_counter() - began, 1)
        with out.open("a") as lines:
            lines.write(json.dumps(row) + "\n")


def wrong(row: dict[str, Any]) -> Iterator[str]:
    """Each thing that is not as it should be, in words."""
    truth, faulty, twin = row["truth"], row["faulty"], row["twin"]
    healthy = not any(truth["roots"])
    for face in FACES:
        roots, text = faulty[face]["roots"], faulty[face]["text"]
        if healthy and faulty[face]["loud"]:
            yield f"{face}: healthy, flagged {' '.join(faulty[face]['loud'][:4])}"
        if healthy:
            continue
        if face in truth["faces"] and (roots[0] if roots else "") not in truth["roots"]:
            yield f"{face}: first root cause {roots[0] if roots else 'none'}, not {' or '.join(truth['roots'])}"
        elif face in truth["faces"]:
            yield from (f"{face}: does not say {p}" for p in truth["says"] if not re.search(p, text, re.I))
        yield from (f"{face}: blames {cause}" for cause in roots if cause in truth["never"])
        if twin[face]["loud"]:
            yield f"{face}: twin flagged {' '.join(twin[face]['loud'][:4])}"


def score(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of the table: what is wrong by program, then the counts by face, then F1 by cause."""
    healthy = [row for row in rows if not any(row["truth"]["roots"])]
    faulty = [row for row in rows if any(row["truth"]["roots"])]
    hits: Counter[str] = Counter()
    false: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for row in rows:
        accepted = row["truth"]["roots"]
        for face in FACES:
            roots = row["faulty"][face]["roots"]
            asked = not accepted or face in row["truth"]["faces"]
            false.update(cause for cause in roots if asked and cause not in accepted)
            if accepted and asked:
                (hits if set(roots) & set(accepted) else missed)[accepted[0]] += 1
        for line in (problems := list(wrong(row))):
            yield f"{row['name']}: {line}"
        row["right"] = not problems
    for face in FACES:
        asked_rows = [row for row in faulty if face in row["truth"]["faces"]]
        first = sum(
            bool(r["faulty"][face]["roots"][:1]) and r["faulty"][face]["roots"][0] in r["truth"]["roots"]
            for r in asked_rows
        )
        flagged = sum(bool(row["faulty"][face]["loud"]) for row in healthy)
        twins = sum(bool(row["twin"][face]["loud"]) for row in faulty)
        yield f"{face}: root first {first} of {len(asked_rows)}, healthy flagged {flagged} of {len(healthy)}, twins {twins} of {len(faulty)}"
    both = [row for row in faulty if {"monitor", "diagnose"} <= set(row["truth"]["faces"])]
    agree = sum(row["faulty"]["monitor"]["roots"][:1] == row["faulty"]["diagnose"]["roots"][:1] for row in both)
    yield f"Monitor and diagnose name the same first root cause (or none) in {agree} of {len(both)}"
    f1 = {
        cause: 2 * hits[cause] / (2 * hits[cause] + false[cause] + missed[cause])
        for cause in sorted(set(hits) | set(missed))
    }
    yield "F1 by cause: " + ", ".join(f"{cause} {value:.2f}" for cause, value in f1.items())
    yield f"macro-F1 {sum(f1.values()) / max(len(f1), 1):.2f}; all right in {sum(row['right'] for row in rows)} of {len(rows)}"


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["run"] and len(arguments) in (3, 5):
        part, parts = (int(a) for a in arguments[3:]) if len(arguments) == 5 else (0, 1)
        run(Path(arguments[1]), Path(arguments[2]), part, parts)
    elif arguments[:1] == ["score"] and len(arguments) == 2:
        print(*score([json.loads(line) for line in Path(arguments[1]).read_text().splitlines()]), sep="\n")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
