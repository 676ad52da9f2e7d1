"""Verdicts, ladders, scalings and replays as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gnnstab import characters
from gnnstab.records.json_numbers import plain
from gnnstab.records.vocabulary import ATTENTION_ONE_HOT_SHARE
from gnnstab.verification._verdict_text import number as number
from gnnstab.verification._verdict_text import verdicts_text as verdicts_text
from gnnstab.verification.clamping import Side
from gnnstab.verification.ladder import Ladder
from gnnstab.verification.replay import Replay
from gnnstab.verification.scaling import Scaling


def as_json(result: Any) -> str:
    """Any result of this room; NaN and Inf as the strings "nan", "inf", "-inf"."""
    return characters.as_json(plain(result))


def ladder_text(ladder: Ladder) -> str:
    """A table of rungs and the sentence that sums them up."""
    rows = [("rung", ladder.signal or "signal", "loss", "stable", "fires")]
    rows += [
        (r.name, number(r.value), number(r.loss), "yes" if r.stable else "no", ", ".join(r.codes) or r.error or "–")
        for r in ladder.rungs
    ]
    first = ladder.stable_from
    said = f"Stable from the rung “{first.name}” on." if first else _NONE
    idle = ", ".join(r.name for r in ladder.without_effect)
    below = [f"Did nothing: {idle}."] if idle else []
    return "\n".join([_table(rows), "", said, *below, ladder.objective, *_larger_text(ladder)])


_NONE = "No rung is stable. Next: gnnstab diagnose with --verify, which looks for causes that no rung treats."


def _larger_text(ladder: Ladder) -> list[str]:
    lines: list[str] = []
    if ladder.larger:
        rows = [("size", "in-degree", "rung", "loss", "stable", "fires")]
        for at in ladder.larger:
            stable, fires = "yes" if at.stable else "no", ", ".join(at.codes) or "–"
            rows.append((number(at.size), number(at.degree), at.rung, number(at.loss), stable, fires))
        lines += ["", "Scaled up; what grows is the in-degree, not the number of nodes:", _table(rows), ""]
        last = ladder.larger[-1]
        if last.stable:
            lines.append(f"Holds up to size {number(last.size)} with “{last.rung}”.")
        else:
            lines.append(f"No rung is stable at size {number(last.size)}.")
        lines += dict.fromkeys(at.objective for at in ladder.larger if at.objective != ladder.objective)
    if ladder.not_scaled:
        lines += ["", f"Not tried on larger graphs: {ladder.not_scaled}"]
    return lines


def scaling_text(scaling: Scaling) -> str:
    """The limits, the exponents, and the share of one-hot heads by in-degree."""
    exponents = [
        f"  {e.signal} of {e.layer}: in-degree^{e.value:.2f} ({e.interval[0]:.2f} … {e.interval[1]:.2f})"
        for e in scaling.exponents
    ]
    degrees = sorted({round(p.degree, 1) for p in scaling.points if p.precision == "fp32"})
    rows = [("in-degree", *scaling.layers)]
    rows += [
        (number(d), *(f"{scaling.predict(ATTENTION_ONE_HOT_SHARE, n, d):.0%}" for n in scaling.layers)) for d in degrees
    ]
    shown = all(any(f"{ATTENTION_ONE_HOT_SHARE}|{n}" in p.values for p in scaling.points) for n in scaling.layers)
    table = _table(rows) if degrees and shown else ""
    limits = [f"  {limit.sentence}" for limit in scaling.limits if math.isfinite(limit.degree)]
    head = "What counts is in-degree, not the number of nodes or agents."
    return "\n".join(
        [head, *(limits or [f"  {scaling.summary}"]), "", "Growth:", *exponents, "", "One-hot node-heads:", table]
    )


def sides_text(sides: Sequence[Side]) -> str:
    """The clamp against the proper fixes."""
    rows = [("variant", "sound up to in-degree", "finite in fp16 up to", "forward time", "clipped")]
    for side in sides:
        clipped = "–" if side.clipped is None else f"{side.clipped:.1%}"
        numbers = (number(side.stable_up_to), number(side.fp16_up_to), f"{side.forward_time:.2f} ×", clipped)
        rows.append((side.name, *numbers) if not side.error else (side.name, side.error, "", "", ""))
    return _table(rows)


def replay_text(replay: Replay, *, verbose: bool = True) -> str:
    """The stages up to the failure, and what each fix did; without ``verbose`` the last stages alone."""
    # Whether the replay agrees with the run is what the reader wants to know before all else.
    about = _about(replay)
    if replay.event is None:
        # Without a model nothing was run, so that nothing can be said of the stages.
        ran = replay.rows or replay.recorded is None
        return "\n".join([*about, *(["Every stage of this forward is finite here."] if ran else [])])
    told = [replay.event.message] if not any(replay.event.message in line for line in about) else []
    told += [f"First operation: {replay.operation}"] if replay.operation else []
    tried = [f"{t.fix}: {t.verdict}, {t.reason}" for t in replay.tried]
    first = next((i for i, r in enumerate(replay.rows) if r.non_finite), len(replay.rows) - 1)
    last = len(replay.rows) if verbose else first + 1
    shown = replay.rows[0 if verbose else max(0, last - _LAST_STAGES) : last]
    rows: list[Sequence[str]] = [("layer", "stage", "min", "max", "RMS", "non-finite", "dtype")]
    for r in shown:
        sizes = map(number, (r.minimum, r.maximum, r.rms))
        rows.append((r.layer or "model", f"{r.stage} {r.name}".rstrip(), *sizes, str(r.non_finite), r.dtype))
    left = len(replay.rows) - len(shown)
    more = [f"{left} more stages, with -v"] if left else []
    return "\n".join([*about, *([""] if about else []), _table(rows), *more, *told, *tried])


_LAST_STAGES = 3
"""Stages before and at the first non-finite one that the short text shows."""


def _about(replay: Replay) -> list[str]:
    """What the bundle says, and how the replay compares."""
    if replay.recorded is None:
        return []
    return [
        *([replay.note] if replay.note else []),
        f"Recorded at step {replay.recorded.step}: {replay.recorded.message}",
    ]


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
