"""Parameters without a gradient that a model may do without by design."""

from __future__ import annotations

from collections.abc import Sequence

from gnnstab.layers import layer_named
from gnnstab.records import Signal, Signals
from gnnstab.rules.queries import largest, measured

RELATION = "__"
"""Stands between source, relation and target in PyG's names of modules; `HeteroConv` writes three of them."""

_OF_PARAMETERS = ("weight.rms", "weight.grad_rms", "optimizer.gradient_rms")


def _known(signals: Signals) -> set[str]:
    return {str(s.detail.get("parameter", "")) for name in _OF_PARAMETERS for s in signals.find(name)}


NO_WAY = {
    "another head": "since they belong to a head that this forward does not use, as of another task or a later phase",
    "never called": "since this forward does not use them (not called), as of a template for copies, another phase, or a module that was forgotten",
    "out of reach": "since no entry of the output changes with them, as of an update of edges behind the last layer",
}
"""Why no loss can reach parameters, as the look at the places says it → in words."""


def idle(signals: Signals, parameter: str) -> bool:
    """True for a parameter that its layer holds and, configured so, does not use."""
    layer = next((one for one in signals.attention_layers if parameter.startswith(f"{one.name}.")), None)
    if layer is None:
        return False
    own = parameter.removeprefix(f"{layer.name}.")
    return inside(own, layer_named(layer).idle(layer))


def unread(signals: Signals, parameter: str) -> bool:
    """True for a parameter that the forward does not use: no entry of the output changes with it."""
    beyond = (s for s in signals.find("place.without_gradient") if s.detail.get("why") in NO_WAY)
    return idle(signals, parameter) or any(parameter in s.detail.get("parameters", ()) for s in beyond)


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


def without_part(signals: Signals, parameter: str) -> bool:
    """True for a parameter whose gradient is 0 by the configuration of its layer, which trains otherwise."""
    layer = next((one for one in signals.attention_layers if parameter.startswith(f"{one.name}.")), None)
    if layer is None or not trains(signals, layer.name):
        return False
    kind, own = layer_named(layer), parameter.removeprefix(f"{layer.name}.")
    if idle(signals, parameter):
        return True
    # The softmax over one neighbour is 1 whatever the score is.
    degrees = measured(signals.find("degree.max", layer=layer.name) or signals.find("degree.max"))
    scoring = (*kind.roles.get("score", ()), *(() if kind.edges_in_messages else kind.roles.get("edge", ())))
    return bool(degrees) and largest(degrees).value <= 1 and inside(own, scoring)


def cancelled(signals: Signals, never: Signal) -> set[str]:
    """Biases whose gradient is exactly 0 beside a weight that trains: the loss compares outputs, and they drop out of the difference."""
    moved = {str(s.detail.get("parameter")) for s in signals.find("weight.grad_rms") if s.value > 0}
    zero = (str(name) for name in never.detail.get("zero", ()))
    return {name for name in zero if name.endswith("bias") and f"{name.removesuffix('bias')}weight" in moved}


def given_zeros(signals: Signals, never: Signal) -> set[str]:
    """Weights of a layer's own maps whose gradient is exactly 0 beside a bias that trains: the gradient arrives, and what they multiply
    is 0 in every row that the loss reads, as of masked nodes, though not in all rows."""
    moved = {str(s.detail.get("parameter")) for s in signals.find("weight.grad_rms") if s.value > 0}
    fed = [s.layer for s in signals.find("input.rms") if s.layer and s.value > 0]
    zero = (str(name) for name in never.detail.get("zero", ()) if str(name).endswith("weight"))
    beside = (name for name in zero if f"{name.removesuffix('weight')}bias" in moved)
    return {name for name in beside if any(name.startswith(f"{layer}.") for layer in fed)}
