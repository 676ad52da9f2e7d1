"""What the settings beside the weights say about the model: the values of a run's configuration, and its heads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gnnstab.checkpoint._naming import printable
from gnnstab.unpickling import Record

PLACES = ("args", "hparams", "hyper_parameters", "hyperparameters", "config", "cfg", "opt", "options")
"""Keys under which training programs keep their settings."""

DEEPEST, MOST = 6, 200
"""Levels of settings within settings, and values that are kept of one place."""

HEADS = re.compile(r"(^|[._])(n_?|num_?|gnn_?|attention_?|attn_?|transformer_?)*heads?$", re.IGNORECASE)


class SaidHeads(NamedTuple):
    """Heads as the file's own settings give them."""

    heads: int
    setting: str
    """The setting that says so, e.g. ``hyper_parameters.model.heads``."""


def plain_settings(root: Mapping[Any, Any]) -> dict[str, Any]:
    """Plain values of the settings in a checkpoint, keyed ``args.lr``, ``config.model.heads``.

    Dictionaries, namespaces, dataclasses and objects of any other class are all looked into.
    """
    found: dict[str, Any] = {}
    for place in PLACES:
        values = _values(root.get(place), place, DEEPEST, set())
        found.update(pair for pair, _ in zip(values, range(MOST), strict=False))
    return found


def heads_in(settings: Mapping[str, Any], rows: int) -> SaidHeads | None:
    """The one number of heads that the settings name and that divides ``rows``, the width of the concatenated heads.

    None when no setting names one, or when two of them differ: each may belong to another part of the model.
    """
    said = {
        name: value
        for name, value in settings.items()
        if HEADS.search(name) and type(value) is int and value > 0 and rows % value == 0
    }
    return SaidHeads(*next((v, k) for k, v in said.items())) if len(set(said.values())) == 1 else None


def _values(node: Any, name: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(node, (bool, int, float, str)):
        yield name, node
    elif depth and id(node) not in seen:
        seen.add(id(node))
        for key, value in _attributes(node).items():
            yield from _values(value, f"{name}.{printable(key)}", depth - 1, seen)


def _attributes(node: Any) -> Mapping[Any, Any]:
    """The items of a mapping or the attributes of an object, whichever the settings are kept in."""
    if isinstance(node, Record):
        return {**node.attributes, **node.mapping}
    if isinstance(node, Mapping):
        return node
    # An object that was unpickled with its code; its class' own attributes are no settings.
    return getattr(node, "__dict__", {}) if not isinstance(node, (list, tuple, type)) and node is not None else {}
