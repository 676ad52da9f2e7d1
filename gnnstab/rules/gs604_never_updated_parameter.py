"""GS604 never-updated-parameter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
    With a model and a batch: parameters without a gradient after a backward, and why (the module was not called, or no path
    leads to it); weights that the loss depends on and `model.parameters()` does not hold, as of layers in a plain list; with
    the optimizer: parameters that it does not hold.

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

    minority: float = threshold(
        0.5,
        unit="share of trainable entries",
        source="heuristic: who trains a head alone leaves most of the model out on purpose",
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for each way in which a parameter can be left behind."""
        found = [*self._not_owned(signals), *self._not_held(signals)]
        if signals.kind == "model" or signals.find("place.without_gradient", source="batch"):
            found += self._without_gradient(signals)
        yield from found
        if not signals.find("optimizer.never_updated") and (found or signals.find("place.rms", source="batch")):
            return
        yield from self._over_a_run(signals)

    def _over_a_run(self, signals: Signals) -> Iterator[Finding]:
        worst = largest(signals.need("optimizer.never_updated"))
        silent = {str(name) for name in worst.detail.get("parameters", ())}
        left_out = {str(name) for s in signals.find("place.idle") for name in s.detail.get("parameters", ())}
        idle = {name for name in silent if name in left_out or _without_part(signals, name)}
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
        severity = "error" if known else "warning"
        if not known and self._same_part(signals, listed):
            severity = "info"
            which += "; they are the same part of every layer, as when the layers were asked to leave it out"
        if self._several_kinds(signals):
            severity = "info"
            which += " (with several kinds of nodes the read-out may leave some relations out)"
        yield self.finding(
            f"{count:.0f} {'trainable ' if known else ''}parameters never received a gradient{which}. Wire them in, or freeze "
            "them on purpose.",
            severity=severity,
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

    def _same_part(self, signals: Signals, parameters: Sequence[str]) -> bool:
        """True for one and the same child of every attention layer: a file does not hold what a layer was asked to do."""
        layers = [layer.name for layer in signals.attention_layers]
        owners = {name.rpartition(".")[0] for name in parameters}
        parts = {owner.rpartition(".")[2] for owner in owners}
        return (
            len(layers) > 1 and len(parts) == 1 and owners == {f"{layer}.{part}" for layer in layers for part in parts}
        )

    def _several_kinds(self, signals: Signals) -> bool:
        return any(int(s.detail.get("kinds_of_nodes", 1)) > 1 for s in signals.find("place.without_gradient"))

    def _without_gradient(self, signals: Signals) -> Iterator[Finding]:
        """After a backward of the diagnosis itself."""
        for signal in signals.find("place.without_gradient", source="batch"):
            silent = [str(name) for name in signal.detail.get("parameters", ())]
            if silent and all(_unused(signals, name) for name in silent):
                continue
            called = signal.detail.get("why") == "called"
            given = bool(signals.context.get("loss_given"))
            several = int(signal.detail.get("kinds_of_nodes", 1)) > 1
            reason = "no path leads from the loss back to them" if called else "their modules were not called"
            yield self.finding(
                f"{signal.value:.0f} trainable parameters have no gradient after a backward, {reason}: {_listed(signal)}. Look for a "
                "detach(), a .data, a conversion to numbers or lists; wire them in, or freeze them on purpose.",
                severity="info" if several or not (called or given) else "error" if given else "warning",
                limit=self.parameters,
                signal=replace(signal, layer=None),
                confidence="high" if given else "medium",
            )

    def _not_owned(self, signals: Signals) -> Iterator[Finding]:
        for signal in signals.find("place.not_owned"):
            yield self.finding(
                f"the loss depends on {signal.value:.0f} weights that model.parameters() does not hold, so that no optimizer moves them: "
                f"{_listed(signal)}. Keep modules in nn.ModuleList or nn.ModuleDict, not in a plain list or dict.",
                severity="error",
                limit=self.parameters,
                signal=replace(signal, layer=None),
            )

    def _not_held(self, signals: Signals) -> Iterator[Finding]:
        for signal in signals.find("place.not_held"):
            replaced = int(signal.detail.get("strangers", 0)) > 0
            few = float(signal.detail.get("share", 1.0)) < self.minority
            why = (
                "the optimizer holds tensors that are no longer in the model: a parameter was replaced after it was built"
                if replaced
                else "pass them to the optimizer, or freeze them on purpose"
            )
            yield self.finding(
                f"no optimizer holds {signal.value:.0f} trainable parameters of the model: {_listed(signal)}; {why}.",
                severity="error" if replaced else "warning" if few else "info",
                limit=self.parameters,
                signal=signal,
            )


def _unused(signals: Signals, parameter: str) -> bool:
    """True for a parameter that its layer holds and, configured so, does not use."""
    layer = next((one for one in signals.attention_layers if parameter.startswith(f"{one.name}.")), None)
    if layer is None:
        return False
    own = parameter.removeprefix(f"{layer.name}.")
    return f"{own}.".startswith(_inside(layer_named(layer).idle(layer)))


def _without_part(signals: Signals, parameter: str) -> bool:
    """True for a parameter whose gradient is 0 by the configuration of its layer, which trains otherwise."""
    layer = next((one for one in signals.attention_layers if parameter.startswith(f"{one.name}.")), None)
    if layer is None or not _trains(signals, layer.name):
        return False
    kind, own = layer_named(layer), parameter.removeprefix(f"{layer.name}.")
    if _unused(signals, parameter):
        return True
    # The softmax over one neighbour is 1 whatever the score is.
    degrees = measured(signals.find("degree.max", layer=layer.name) or signals.find("degree.max"))
    return bool(degrees) and largest(degrees).value <= 1 and f"{own}.".startswith(_inside(kind.roles.get("score", ())))


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


def _listed(signal: Signal) -> str:
    return names([str(name) for name in signal.detail.get("parameters", ())], 6)
