"""How records become columns and come back; whatever is read back may have been written by a stranger."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from types import NoneType
from typing import Any, get_args, get_type_hints

from gnnstab.records import Event, LayerFacts, Measure, SeriesKey, StepRow

TEXT_LIMIT = 100_000
"""Characters kept of any one text; far above every module path, and a bound on what a runaway message can cost."""

JSON_LIMIT = 1_000_000
"""Characters of JSON that are parsed at most."""

WHOLE_LIMIT = 2**53
"""Largest step or count: every whole number up to here is exact as a float64."""

_HINTS = get_type_hints(LayerFacts)
_REQUIRED = ("name", "kind", "position", "attention")
_FORMER_FIELDS = ("beta", "beta_requested", "root_weight")
"""Options of one kind of layer that were fields of every layer's facts in traces written before."""


def clean(text: str) -> str:
    """Make a text storable: lone surrogates are written as escapes, overlong text is cut."""
    text = text[:TEXT_LIMIT]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text


def number_to_column(value: float | None) -> float | str | None:
    """NaN as the text ``nan``, since NULL already says "not known" in the columns of a step."""
    if value is None:
        return None
    number = float(value)
    return number if number == number else "nan"


def column_to_number(value: object) -> float | None:
    """The way back of `number_to_column`; `ValueError` for anything else than a number."""
    if value is None or isinstance(value, (int, float)):
        return None if value is None else float(value)
    if value == "nan":
        return math.nan
    raise ValueError(f"{str(value)[:40]!r} stands where a number belongs")


def whole(value: int) -> int:
    """The value as an integer that SQLite and a float64 can hold; `ValueError` for any other."""
    number = int(value)
    if number != value or abs(number) > WHOLE_LIMIT:
        raise ValueError(f"{value} is no step or count")
    return number


def step_to_columns(row: StepRow) -> tuple[Any, ...]:
    """The columns of the table step without the level."""
    numbers = (row.time, row.loss, row.lr, row.scale, row.grad_norm)
    return (whole(row.step), *map(number_to_column, numbers), int(row.skipped))


def layer_to_columns(facts: LayerFacts) -> tuple[Any, ...]:
    """The columns of the table layer: name, position and kind to look at, and all facts as one JSON object."""
    return (
        clean(facts.name),
        whole(facts.position),
        clean(facts.kind),
        json.dumps(dataclasses.asdict(facts), default=str),
    )


def facts_from_json(text: str) -> LayerFacts:
    """Facts from JSON; unknown fields are left out, a field of the wrong type raises `ValueError`."""
    data = parse(text)
    if not isinstance(data, dict) or any(name not in data for name in _REQUIRED):
        raise ValueError("the facts of a layer are incomplete")
    former = {name: data[name] for name in _FORMER_FIELDS if name in data}
    if former and "options" not in data:
        data["options"] = former
    return LayerFacts(**{name: _field(name, data[name]) for name in _HINTS if name in data})


def _field(name: str, value: Any) -> Any:
    if name == "options":
        if isinstance(value, dict) and all(isinstance(v, (bool, int, float, str, NoneType)) for v in value.values()):
            return value
        raise ValueError("the options of a layer are no plain values")
    allowed = get_args(_HINTS[name]) or (_HINTS[name],)
    if value is None and type(None) in allowed:
        return None
    if name == "in_channels":
        if isinstance(value, list) and len(value) == 2 and all(type(width) is int for width in value):
            return (value[0], value[1])
    elif name == "beside":
        if isinstance(value, list) and all(type(layer) is str for layer in value):
            return tuple(value)
    elif float in allowed and type(value) in (int, float):
        return float(value)
    elif type(value) in allowed:
        return value
    raise ValueError(f"the fact {name} of a layer has the wrong type")


def step_from_columns(row: tuple[Any, ...], rank: int) -> StepRow:
    """The step of one row; raises `ValueError` when a column does not hold what it should."""
    step, time, loss, lr, scale, norm, skipped = row
    known = column_to_number(time)
    return StepRow(
        integer(step),
        math.nan if known is None else known,
        column_to_number(loss),
        column_to_number(lr),
        column_to_number(scale),
        column_to_number(norm),
        bool(integer(skipped)),
        rank,
    )


Quantity = tuple[str, str, int, str, int]
"""layer, mode, call, name, head"""


def quantity_from_columns(row: tuple[Any, ...]) -> tuple[int, Quantity]:
    """Id and quantity of one row; raises `ValueError` when a column does not hold what it should."""
    number, layer, mode, call, name, head = row
    return integer(number), (_text(layer), _text(mode), integer(call), _text(name), integer(head))


def measure_from_columns(row: tuple[Any, ...], rank: int, quantities: Mapping[int, Quantity]) -> tuple[int, Measure]:
    """Number and measure of one row; raises `ValueError` when a column does not hold what it should."""
    order, step, quantity, value, detail = row
    known = quantities.get(quantity)
    if known is None:
        raise ValueError(f"the quantity {str(quantity)[:40]!r} of a measure is not listed")
    number = math.nan if value is None else column_to_number(value)
    assert number is not None
    return integer(order), Measure(integer(step), *known, number, "" if detail is None else _text(detail), rank)


def series_from_columns(row: tuple[Any, ...]) -> tuple[int, SeriesKey]:
    """Id and key of one row; raises `ValueError` when a column does not hold what it should."""
    number, layer, mode, call, site = row
    return integer(number), SeriesKey(_text(layer), _text(mode), integer(call), _text(site))


def event_to_columns(event: Event) -> tuple[Any, ...]:
    """The columns of the table event, in the order of its definition and without its id."""
    return (
        whole(event.step),
        clean(event.kind),
        None if event.layer is None else clean(event.layer),
        clean(event.mode),
        int(event.call),
        None if event.stage is None else clean(event.stage),
        None if event.origin is None else clean(event.origin),
        json.dumps([int(node) for node in event.nodes]),
        json.dumps([int(edge) for edge in event.edges]),
        json.dumps([int(head) for head in event.heads]),
        clean(event.message),
        _detail(event.detail),
    )


def _detail(detail: Mapping[str, Any]) -> str:
    text = json.dumps(dict(detail), default=_plain)
    return text if len(text) <= TEXT_LIMIT else json.dumps({"cut": f"a detail of {len(text)} characters was left out"})


def _plain(value: Any) -> Any:
    """What JSON does not know: arrays and numpy numbers become lists and numbers, the rest its text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def event_from_columns(row: tuple[Any, ...], rank: int) -> tuple[int, Event]:
    """Id and event of one row; raises `ValueError` when a column does not hold what it should."""
    number, step, kind, layer, mode, call, stage, origin, nodes, edges, heads, message, detail = row
    parsed = parse(detail)
    if not isinstance(parsed, dict):
        raise ValueError("the detail of an event is no JSON object")
    return integer(number), Event(
        step=integer(step),
        kind=_text(kind),
        layer=None if layer is None else _text(layer),
        mode=_text(mode),
        call=integer(call),
        stage=None if stage is None else _text(stage),
        origin=None if origin is None else _text(origin),
        nodes=_integers(nodes),
        edges=_integers(edges),
        heads=_integers(heads),
        message=_text(message),
        detail=parsed,
        rank=rank,
    )


def parse(text: object) -> Any:
    """JSON of a stranger: `ValueError` for anything that is no JSON, too long or too deeply nested."""
    if not isinstance(text, str) or len(text) > JSON_LIMIT:
        raise ValueError("no JSON text, or a longer one than gnnstab writes")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def integer(value: object) -> int:
    """The value itself when it is an integer, else `ValueError`."""
    if not isinstance(value, int):
        raise ValueError(f"{str(value)[:40]!r} stands where an integer belongs")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} stands where a text belongs")
    return value


def _integers(text: object) -> tuple[int, ...]:
    values = parse(text)
    if not isinstance(values, list):
        raise ValueError("a list of ids is damaged")
    return tuple(integer(value) for value in values)
