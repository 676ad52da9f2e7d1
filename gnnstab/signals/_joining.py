"""Several views of one model → one: a dynamic picture and the facts of its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping, Sequence
from typing import Any

from gnnstab.records import LayerFacts, Signals
from gnnstab.records.signals import merge_missing


def join(*parts: Signals) -> Signals:
    """One `Signals` from several views of the same model, the one that saw most first.

    Layers are matched by name, or by the end of the name where one view has a longer prefix (``gnn.gnn1`` and
    ``actor.gnn.gnn1``); a fact that the first view does not know is taken from the next. Values are kept side by side
    with their sources.
    """
    if len(parts) == 1:
        return parts[0]
    first, *others = parts
    views = [first, *(_matched(other, first.layers) for other in others)]
    layers = _layers(first.layers, [view.layers for view in views[1:]])
    values = tuple(signal for view in views for signal in view.values)
    return Signals(
        kind=_kind(views),
        layers=layers,
        values=values,
        series=tuple(one for view in views for one in view.series),
        events=tuple(event for view in views for event in view.events),
        blind=_blind(views, {layer.name for layer in layers if layer.attention}),
        missing=_missing(views, {signal.name for signal in values}),
        context=_context(views),
    )


def _kind(views: Sequence[Signals]) -> str:
    """A run stays a run; the user's own data makes a model of a checkpoint, generated graphs do not."""
    if any(view.kind == "trace" for view in views):
        return "trace"
    if any(view.kind == "model" and any(s.source == "batch" for s in view.values) for view in views):
        return "model"
    return views[-1].kind


def _matched(part: Signals, layers: Sequence[LayerFacts]) -> Signals:
    """The part with its layers named as in ``layers``, where a name ends like one of those and no other does.

    A name that the part gives to a layer of its own is no other layer's.
    """
    given = {layer.name for layer in part.layers}
    names = [layer.name for layer in layers if layer.name not in given]
    table: dict[str, str] = {}
    for own in part.layers:
        if any(own.name == layer.name for layer in layers):
            continue
        alike = [name for name in names if name.endswith(f".{own.name}") or own.name.endswith(f".{name}")]
        if len(alike) == 1:
            table[own.name] = alike[0]
    return part if len(set(table.values())) < len(table) else renamed(part, table)


def renamed(part: Signals, table: Mapping[str, str]) -> Signals:
    """The same with other names for some layers."""
    if not table:
        return part
    return dataclasses.replace(
        part,
        layers=tuple(dataclasses.replace(layer, name=table.get(layer.name, layer.name)) for layer in part.layers),
        values=tuple(dataclasses.replace(s, layer=table.get(s.layer or "", s.layer)) for s in part.values),
        series=tuple(dataclasses.replace(s, layer=table.get(s.layer or "", s.layer)) for s in part.series),
        events=tuple(dataclasses.replace(e, layer=table.get(e.layer or "", e.layer)) for e in part.events),
        blind=tuple(dataclasses.replace(b, layer=table.get(b.layer, b.layer)) for b in part.blind),
    )


def _layers(first: Sequence[LayerFacts], others: Sequence[Sequence[LayerFacts]]) -> tuple[LayerFacts, ...]:
    joined = list(first)
    for layers in others:
        known = {layer.name: i for i, layer in enumerate(joined)}
        for layer in layers:
            if layer.name in known:
                joined[known[layer.name]] = _filled(joined[known[layer.name]], layer)
            else:
                joined.append(dataclasses.replace(layer, position=len(joined)))
    return tuple(joined)


def _filled(layer: LayerFacts, other: LayerFacts) -> LayerFacts:
    unknown = [f.name for f in dataclasses.fields(layer) if getattr(layer, f.name) is None]
    known = {name: value for name, value in layer.options.items() if value is not None}
    options = {**layer.options, **other.options, **known}
    return dataclasses.replace(layer, options=options, **{name: getattr(other, name) for name in unknown})


def _blind(views: Sequence[Signals], seen: Container[str]) -> tuple[Any, ...]:
    """All notes, except that a kind which the weights alone do not tell is no longer unseen where one view saw it."""
    notes = dict.fromkeys(blind for view in views for blind in view.blind)
    return tuple(note for note in notes if not (note.is_other_attention and note.layer in seen))


def _missing(views: Sequence[Signals], seen: set[str]) -> dict[str, str]:
    """Reasons that still hold: those of names that no view has."""
    merged = merge_missing(view.missing for view in views)
    attention = any(view.attention_layers for view in views)  # What a file does not show, a run may have shown.
    return {
        key: reason
        for key, reason in merged.items()
        if not (any(name.startswith(key) for name in seen) if key else attention)
    }


def _context(views: Sequence[Signals]) -> Mapping[str, Any]:
    """The first view's facts count; lists are joined, and the larger number of expected layers is right."""
    merged: dict[str, Any] = {}
    for view in views:
        for key, value in view.context.items():
            known = merged.get(key)
            if known is None:
                merged[key] = value
            elif isinstance(known, list) and isinstance(value, list):
                merged[key] = [*known, *(item for item in value if item not in known)]
    expected = [int(view.context.get("layers_expected", 0)) for view in views]
    return {**merged, "layers_expected": max(expected)}
