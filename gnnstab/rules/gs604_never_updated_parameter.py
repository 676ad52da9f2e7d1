"""GS604 never-updated-parameter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from gnnstab.layers import layer_named
from gnnstab.records import Finding, Signal, Signals
from gnnstab.rules.base import Rule, threshold
from gnnstab.rules.reading import largest, measured, names

RELATION = "___"
"""Stands between source, relation and target in the module names of PyG's `HeteroConv`."""

_OF_PARAMETERS = ("weight.rms", "weight.grad_rms", "optimizer.gradient_rms")


@dataclass(frozen=True)
class NeverUpdatedParameter(Rule):
    """A trainable parameter never received a gradient.

    ## What it sees
    In a checkpoint with optimizer state: parameters without state, or whose second moment is exactly 0. In a recorded run:
    trainable parameters whose gradient was None or exactly 0 in every step. Left out are those that the configuration leaves
    without a part to play: the skip of a layer with `root_weight=False`, and queries and keys where no target has two
    neighbours. A relation of a heterogeneous model that nothing reads, beside others that train, and an optimizer that has not
    moved anything yet are information.

    ## Why it is unstable
    The layer keeps its initial weights while everything around it moves. It is a wiring mistake far more often than an
    intention: a module that the forward pass skips, a `detach()`, a parameter created after the optimizer.

    ## What it looks like
    An error for parameters that the model says are trainable; a warning for those of a bare file, which cannot say it.

    ## Fix
    Wire it into the forward pass, pass it to the optimizer, or freeze it on purpose with `requires_grad_(False)` and leave it
    out of the optimizer.

    ## When it is wrong
    At in-degree 1 the query and key weights get a gradient of exactly 0 (GS405). Embeddings of rare ids may not have been
    seen yet. Layers for an edge type that the data lacks.

    ## References
    Kingma and Ba 2015, *Adam*, arXiv 1412.6980, for the second moment; PyTorch documentation of `torch.optim.Adam`.
    """

    code: ClassVar[str] = "GS604"
    name: ClassVar[str] = "never-updated-parameter"
    cause: ClassVar[str] = "never-updated-parameter"
    severity: ClassVar[str] = "error"
    confidence: ClassVar[str] = "high"

    parameters: float = threshold(0, unit="parameters", source="any is one too many")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding that lists them."""
        worst = largest(signals.need("optimizer.never_updated"))
        silent = {str(name) for name in worst.detail.get("parameters", ())}
        idle = {name for name in silent if _without_part(signals, name)}
        unread = {name for name in silent - idle if _unread_relation(signals, name, silent)}
        count = worst.value - len(idle)
        if not count > self.parameters:
            return
        listed = sorted(silent - idle)
        if len(unread) == count or worst.value == worst.detail.get("of"):
            yield self._not_yet(worst, count, listed, bool(unread))
            return
        listed, count = sorted(silent - idle - unread), count - len(unread)
        which = f": {names(listed, 6)}" if listed else ""
        known = signals.kind != "checkpoint"
        yield self.finding(
            f"{count:.0f} {'trainable ' if known else ''}parameters never received a gradient{which}. Wire them in, or freeze "
            "them on purpose.",
            severity="error" if known else "warning",
            limit=self.parameters,
            signal=worst,
            confidence="high" if known else "medium",
        )

    def _not_yet(self, worst: Signal, count: float, listed: list[str], unread: bool) -> Finding:
        why = (
            "belong to relations whose results nothing reads, while others of the same layer train"
            if unread
            else "are all of this optimizer's, which has not moved any of them yet"
        )
        return self.finding(
            f"{count:.0f} parameters without a gradient {why}: {names(listed, 6)}. Freeze them where that is meant.",
            severity="info",
            limit=self.parameters,
            signal=worst,
            confidence="medium",
        )


def _without_part(signals: Signals, parameter: str) -> bool:
    """True for a parameter whose gradient is 0 by the configuration of its layer, which trains otherwise."""
    layer = next((one for one in signals.attention_layers if parameter.startswith(f"{one.name}.")), None)
    if layer is None or not _trains(signals, layer.name):
        return False
    roles, own = layer_named(layer.kind).roles, parameter.removeprefix(f"{layer.name}.")
    if layer.get("root_weight") is False and own.startswith(_inside(roles.get("skip", ()))):
        return True
    # The softmax over one neighbour is 1 whatever the score is.
    degrees = measured(signals.find("degree.max", layer=layer.name) or signals.find("degree.max"))
    return bool(degrees) and largest(degrees).value <= 1 and own.startswith(_inside(roles.get("score", ())))


def _inside(parts: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{part}." for part in parts)


def _trains(signals: Signals, layer: str) -> bool:
    seen = (*signals.find("weight.grad_rms", layer=layer), *signals.find("optimizer.gradient_rms", layer=layer))
    return any(s.value > 0 for s in seen)


def _unread_relation(signals: Signals, parameter: str, silent: set[str]) -> bool:
    """True for a parameter of one relation, all silent, whose twin in another relation of the same layer trains."""
    parts = parameter.split(".")
    place = next((i for i, part in enumerate(parts) if RELATION in part), None)
    if place is None:
        return False
    known = {str(s.detail.get("parameter", "")) for name in _OF_PARAMETERS for s in signals.find(name)} | silent
    before = ".".join(parts[:place])
    here = [name for name in known if name.startswith(".".join(parts[: place + 1]) + ".")]
    beside = [name for name in known - silent if name.startswith(f"{before}.") and RELATION in name[len(before) :]]
    return bool(beside) and silent.issuperset(here)
