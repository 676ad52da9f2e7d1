"""Parameters without a gradient that a model may do without by design, as a file or a run lets one tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gnnstab.layers import layer_named
from gnnstab.records import Signals

RELATION = "__"
"""Stands between source, relation and target in PyG's names of modules; `HeteroConv` writes three of them."""

_OF_PARAMETERS = ("weight.rms", "weight.grad_rms", "optimizer.gradient_rms")


def by_design(signals: Signals, silent: Sequence[str]) -> str:
    """What speaks for parameters of a bare file being silent on purpose; empty where nothing does."""
    known = _known(signals) | set(silent)
    spared = set(_whole_roles(signals, known, set(silent)))
    if _same_part(signals, silent) or spared.issuperset(silent):
        return (
            "; they are one part of layers that train otherwise, as when the layers were asked to leave it out, or when no target has "
            "two neighbours to choose from"
        )
    if all(name in spared or _ends_row(name, known, set(silent) - spared) for name in silent):
        return (
            "; they are parts that layers can be asked to leave out, or parts of the last block that train in the block before it, as of "
            "an update that the output does not read"
        )
    return ""


def _known(signals: Signals) -> set[str]:
    return {str(s.detail.get("parameter", "")) for name in _OF_PARAMETERS for s in signals.find(name)}


def _whole_roles(signals: Signals, known: set[str], silent: set[str]) -> Iterator[str]:
    """The skips, or all that makes the scores, of layers that train otherwise.

    A file says neither that a layer was asked for no root weight nor that every target has one neighbour.
    """
    for layer in signals.attention_layers:
        roles = layer_named(layer).roles if trains(signals, layer.name) else {}
        for role in ("skip", "score"):
            within = (name for name in known if name.startswith(f"{layer.name}."))
            own = {name for name in within if inside(name[len(layer.name) + 1 :], roles.get(role, ()))}
            if own <= silent:
                yield from own


def _ends_row(parameter: str, known: set[str], silent: set[str]) -> bool:
    """True for a part of the last of several blocks, of which others train, as does the same part of the block before it.

    A model that answers with one of the things that its blocks update leaves the last update of the others unread.
    """
    parts = parameter.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if place is None or parts[place] == "0":
        return False
    row, number = ".".join((*parts[:place], "")), int(parts[place])
    before = f"{row}{number - 1}.{'.'.join(parts[place + 1 :])}"
    last = not any(name.startswith(f"{row}{number + 1}.") for name in known)
    others = any(name.startswith(f"{row}{number}.") for name in known - silent)
    return last and others and before in known - silent


def _same_part(signals: Signals, parameters: Sequence[str]) -> bool:
    """True for one and the same child of every attention layer: a file does not hold what a layer was asked to do."""
    layers = [layer.name for layer in signals.attention_layers]
    owners = {name.rpartition(".")[0] for name in parameters}
    parts = {owner.rpartition(".")[2] for owner in owners}
    return len(layers) > 1 and len(parts) == 1 and owners == {f"{layer}.{part}" for layer in layers for part in parts}


def whole_part(signals: Signals, parameters: Sequence[str], places: Sequence[int]) -> str:
    """Why whole modules may be silent on purpose, by where an optimizer lists them; empty where nothing speaks for it.

    Behind all attention layers, beside another module there that trains, they look like a head; in front of all that trains like what was frozen.
    """
    order = list(dict.fromkeys(str(s.detail.get("parameter", "")) for s in signals.find("optimizer.gradient_rms")))
    trained = set(order)
    for place, name in zip(places, parameters, strict=False):
        order.insert(place, name)
    layers = tuple(f"{layer.name}." for layer in signals.attention_layers)
    own = [i for i, name in enumerate(order) if name.startswith(layers)]
    silent = {name.partition(".")[0] for name in parameters}
    whole = {name for name in order if name.partition(".")[0] in silent} == set(parameters)
    if not (parameters and whole and trained):
        return ""
    if set(order[: len(parameters)]) == set(parameters):
        return "; they are whole modules in front of all that trains, as those that were frozen and handed over all the same"
    if not own:
        return ""
    front, behind = order[: own[0]], order[own[-1] + 1 :]
    if set(parameters) <= set(front):
        return "; they are a module in front of all layers, as one that was frozen and handed over all the same"
    others = {name.partition(".")[0] for name in trained.intersection(behind)} - silent
    if set(parameters) <= set(behind) and others:
        return "; they are a head behind all layers beside one that trains, as for another task or a later phase"
    return ""


def trains(signals: Signals, layer: str) -> bool:
    seen = (*signals.find("weight.grad_rms", layer=layer), *signals.find("optimizer.gradient_rms", layer=layer))
    return any(s.value > 0 for s in seen)


def unread_relation(signals: Signals, parameter: str, silent: set[str]) -> bool:
    """True for a parameter of one relation or kind of node, all silent there, whose twin of another one trains."""
    known = _known(signals) | silent
    kinds = _kinds(known)
    parts = parameter.split(".")
    place = next((i for i, part in enumerate(parts) if part in kinds), None)
    if place is None:
        return False
    before, after = ".".join(parts[:place]), parts[place + 1 :]
    here = [name for name in known if f"{name}.".startswith(".".join(parts[: place + 1]) + ".")]
    beside = [
        name
        for name in known - silent
        if name.startswith(f"{before}.") and (own := name.split(".")[place:])[0] in kinds and own[1:] == after
    ]
    return bool(beside) and silent.issuperset(here)


def _kinds(parameters: set[str]) -> set[str]:
    """The parts of names that stand for a relation, or for one of the kinds of nodes that relations lead between."""
    relations = {part for name in parameters for part in name.split(".") if RELATION in part.strip("_")}
    ends = {part.strip("<>").split(RELATION)[i].strip("_") for part in relations for i in (0, -1)}
    return relations | ends


def inside(own: str, parts: Sequence[str]) -> bool:
    """True for a part of a layer: a module by its name, or a parameter of the layer's own."""
    return any(own == part or own.startswith(f"{part}.") for part in parts)
