"""Verdicts, ladders, scalings and replays as text and as JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from gnnstab import characters
from gnnstab.characters import counted
from gnnstab.records import SIGNALS
from gnnstab.records.json_numbers import plain
from gnnstab.records.vocabulary import ATTENTION_ONE_HOT_SHARE
from gnnstab.verification._verdict_text import fit
from gnnstab.verification._verdict_text import number as number
from gnnstab.verification._verdict_text import verdicts_text as verdicts_text
from gnnstab.verification.clamping import Side
from gnnstab.verification.ladder import Ladder
from gnnstab.verification.replay import Replay
from gnnstab.verification.scaling import Limit, Scaling, written


def as_json(result: Any) -> str:
    """Any result of this room; NaN and Inf as the strings "nan", "inf", "-inf"."""
    return characters.as_json(plain(result))


def ladder_text(ladder: Ladder, *, width: int = 80, verbose: bool = False) -> str:
    """A table of rungs, what became of it on larger graphs, and the summary; ``verbose`` shows every number."""
    shown = bool(ladder.signal)
    rows = [("rung", *([ladder.signal] if shown else []), "loss", "stable", "fires")]
    for r in ladder.rungs:
        value = [number(r.value)] if shown else []
        rows.append((r.name, *value, number(r.loss), "yes" if r.stable else "no", ", ".join(r.codes) or r.error or "–"))
    table, idle = _table(rows, None if verbose else width), ", ".join(r.name for r in ladder.without_effect)
    said = [f"Did nothing: {idle}."] if idle else []
    if ladder.not_scaled:
        said.append(f"Not tried on larger graphs: {ladder.not_scaled}")
    if verbose:
        return "\n".join([table, "", *said, *_larger_text(ladder), *_objectives(ladder), "", _ladder_summary(ladder)])
    said += [f"In-degree on larger graphs: {'; '.join(_sizes(ladder))}."] if ladder.larger else []
    short = [line for text in said for line in textwrap.wrap(text, width, max_lines=2, placeholder=" …")]
    return "\n".join([table, *short, *textwrap.wrap(_ladder_summary(ladder), width)])


_NONE = "No rung is stable. Next: gnnstab diagnose with --verify, which looks for causes that no rung treats."


def _ladder_summary(ladder: Ladder) -> str:
    """From which rung on the run is stable, and up to which size."""
    first = ladder.stable_from
    if first is None:
        return _NONE
    later = ladder.rungs[ladder.rungs.index(first) :]
    lost = ", ".join(f"“{r.name}”" for r in later if not r.stable)
    said = f"Stable from the rung “{first.name}” on{f', but not with {lost}' if lost else ''}."
    if not ladder.larger:
        return said
    last = ladder.larger[-1]
    held = (
        f"Holds up to size {number(last.size)} with “{last.rung}”."
        if last.stable
        else f"No rung is stable at size {number(last.size)}."
    )
    return f"{said} {held}"


def _sizes(ladder: Ladder) -> list[str]:
    """``20.2 (size 10) from “+ score cap” on``: what the trials at each larger size came to."""
    last = {at.size: at for at in ladder.larger}
    return [
        f"{number(at.degree)} (size {number(at.size)}) {f'from “{at.rung}” on' if at.stable else 'no rung'}"
        for at in last.values()
    ]


def _larger_text(ladder: Ladder) -> list[str]:
    if not ladder.larger:
        return []
    rows = [("size", "in-degree", "rung", "loss", "stable", "fires")]
    for at in ladder.larger:
        stable, fires = "yes" if at.stable else "no", ", ".join(at.codes) or "–"
        rows.append((number(at.size), number(at.degree), at.rung, number(at.loss), stable, fires))
    return ["", "Scaled up; what grows is the in-degree, not the number of nodes:", _table(rows), ""]


def _objectives(ladder: Ladder) -> list[str]:
    return list(dict.fromkeys([ladder.objective, *(at.objective for at in ladder.larger)]))


_MOST_LAYERS = 6
"""Layers that the short text of a scaling shows: those whose limits come first."""


def scaling_text(scaling: Scaling, *, width: int = 80, verbose: bool = False) -> str:
    """Layer by layer the in-degree at which each limit breaks, what grows how fast, and the limit that comes first.

    ``verbose`` shows every limit, every exponent with its interval, and the share of one-hot attention by in-degree.
    """
    limits = [limit for limit in scaling.limits if math.isfinite(limit.degree)]
    first = limits[0].sentence if limits and not scaling.not_finite else scaling.summary
    last = f"First: {first}. What counts is in-degree, not the number of nodes or agents."
    body = _every_number(scaling) if verbose else [_limits_table(scaling, width)] if limits else []
    grown = [] if verbose else textwrap.wrap(_growth(scaling), width)
    return "\n".join([*body, *grown, *textwrap.wrap(last[0].upper() + last[1:], width)])


def _limits_table(scaling: Scaling, width: int) -> str:
    found = {(limit.layer, limit.what): limit for limit in scaling.limits if math.isfinite(limit.degree)}
    kinds = sorted({limit.what for limit in scaling.limits})
    layers = list(dict.fromkeys(layer for layer, _ in found))
    rows = [("layer", *(kind.removeprefix("attention ") for kind in kinds))]
    rows += [(_cut(layer), *(_cell(found.get((layer, kind))) for kind in kinds)) for layer in layers[:_MOST_LAYERS]]
    left = len(scaling.layers) - len(rows) + 1
    notes = ["* extrapolated"] if any(limit.extrapolated for limit in found.values()) else []
    notes += [f"{counted(left, 'more layer')}, with -v"] if left > 0 else []
    title = "In-degree from which on each limit is broken:"
    return "\n".join([title, _table(rows, width), *(["; ".join(notes)] if notes else [])])


def _cell(limit: Limit | None) -> str:
    if limit is None:
        return "–"
    return f"{'≤ ' if limit.at_most else ''}{written(limit.degree)}{'*' if limit.extrapolated else ''}"


def _cut(layer: str, longest: int = 22) -> str:
    """The end of a layer's path, which tells it from the others."""
    return layer if len(layer) <= longest else f"…{layer[1 - longest :]}"


def _growth(scaling: Scaling) -> str:
    """``Growth with in-degree: largest |score| ^1.5…1.6``: the range of the exponents over the layers."""
    found: dict[str, list[float]] = {}
    for exponent in scaling.exponents:
        found.setdefault(exponent.signal, []).append(exponent.value)
    parts = []
    for signal, values in found.items():
        low, high = (f"{round(value, 2) + 0.0:.2f}" for value in (min(values), max(values)))  # -0.00 is 0.00
        parts.append(f"{SIGNALS[signal].words} ^{low}{'' if low == high else f' … {high}'}")
    return f"Growth with in-degree: {', '.join(parts)}." if parts else ""


def _every_number(scaling: Scaling) -> list[str]:
    exponents = [
        f"  {e.signal} of {e.layer}: in-degree^{e.value:.2f} ({e.interval[0]:.2f} … {e.interval[1]:.2f})"
        for e in scaling.exponents
    ]
    limits = [f"  {limit.sentence}" for limit in scaling.limits if math.isfinite(limit.degree)]
    return ["Limits:", *limits, "", "Growth:", *exponents, "", *_one_hot_table(scaling)]


def _one_hot_table(scaling: Scaling) -> list[str]:
    if not all(any(f"{ATTENTION_ONE_HOT_SHARE}|{n}" in p.values for p in scaling.points) for n in scaling.layers):
        return []
    degrees = sorted({round(p.degree, 1) for p in scaling.points if p.precision == "fp32"} - {0.0})
    rows = [("in-degree", *scaling.layers)]
    rows += [
        (number(d), *(f"{scaling.predict(ATTENTION_ONE_HOT_SHARE, n, d):.0%}" for n in scaling.layers)) for d in degrees
    ]
    return ["Attention that falls on one neighbour, share of targets and heads:", _table(rows), ""]


def sides_text(sides: Sequence[Side]) -> str:
    """The clamp against the proper fixes."""
    rows = [("variant", "sound up to in-degree", "finite in fp16 up to", "forward time", "clipped")]
    for side in sides:
        clipped = "–" if side.clipped is None else f"{side.clipped:.1%}"
        numbers = (number(side.stable_up_to), number(side.fp16_up_to), f"{side.forward_time:.2f} ×", clipped)
        rows.append((side.name, *numbers) if not side.error else (side.name, side.error, "", "", ""))
    return _table(rows)


def replay_text(replay: Replay, *, width: int = 80, verbose: bool = True) -> str:
    """The stages up to the failure, and what each fix did; without ``verbose`` the last stages alone."""

    def wrapped(texts: Sequence[str]) -> list[str]:
        lines = (textwrap.wrap(characters.shown(text), width, break_on_hyphens=False) for text in texts)
        return [line for some in lines for line in some]

    # Whether the replay agrees with the run is what the reader wants to know before all else.
    about = _about(replay)
    if replay.event is None:
        # Without a model nothing was run, so that nothing can be said of the stages.
        ran = replay.rows or replay.recorded is None
        return "\n".join(wrapped([*about, *(["Every stage of this forward is finite here."] if ran else [])]))
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
    return "\n".join([*wrapped(about), *([""] if about else []), _table(rows), *more, *wrapped([*told, *tried])])


_LAST_STAGES = 3
"""Stages before and at the first non-finite one that the short text shows."""


def _about(replay: Replay) -> list[str]:
    """What the bundle says, and how the replay compares."""
    recorded = replay.recorded
    return [
        *([replay.note] if replay.note else []),
        *([f"Recorded at step {recorded.step}: {recorded.message}"] if recorded is not None else []),
    ]


def _table(rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Columns side by side; a line of more than ``width`` columns ends in …."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(line if width is None else fit(line, width) for line in lines)
