"""Fixes that draw weights anew: all of the attention layers at another gain, or single parts as their own layer does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes.base import NOTHING_MEASURED, POSITIVE, Fix, attention_in
from gnnstab.fixes.model_structure import attention_layers, editable_layers
from gnnstab.fixes.printing import attribute_names, looped, written
from gnnstab.layers import LAYERS, layer_named, layer_of
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import (
    ATTENTION_ENTROPY,
    CHANNELS_DEAD_SHARE,
    GATE_SATURATED_SHARE,
    GRADIENT_RATIO,
    LOGIT_FROBENIUS,
    OPTIMIZER_UNDONE,
    WEIGHT_NON_FINITE,
    WEIGHT_RMS,
)

if TYPE_CHECKING:
    from torch import nn


class _Xavier(Fix):
    """Xavier uniform at one gain on the attention layers, zero biases."""

    signal = GRADIENT_RATIO
    needs_fresh_weights = True
    costs_no_time = True
    cost = "none; training starts anew"
    gain: ClassVar[float | None] = None

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        return init_lines(layers, options.get("gain", self.gain))

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        initialise(copy, options.get("gain", self.gain))


class DepthInit(_Xavier):
    """Xavier uniform with gain 1/√(1 + L) on every matrix of the attention layers, zero biases.

    Without an identity path it makes a deep stack vanish: use ``residual-depth-init`` there. The usual
    ``isinstance(m, nn.Linear)`` reaches none of these matrices; PyG's Linear is another class.
    Options: ``gain`` (1/√(1 + L)).
    """

    name = "depth-init"
    title = "depth-scaled Xavier initialisation"
    options = ("gain",)
    limits: ClassVar = {"gain": POSITIVE}
    causes = ("unsuitable-init",)


class UnitGainInit(_Xavier):
    """Xavier uniform with gain 1 and zero biases on the attention layers.

    Takes the growth out of a stack that explodes, and the bias away that keeps units dead.
    """

    name = "unit-gain-init"
    title = "Xavier initialisation with gain 1"
    causes = ("unsuitable-init", "dead-units")
    gain = 1.0


def initialise(model: nn.Module, gain: float | None = None) -> None:
    """Xavier uniform in place on all attention layers' matrices, biases to zero; gain 1/√(1 + L) when None."""
    from torch.nn import init

    layers = attention_layers(model)
    gain = 1.0 / math.sqrt(1 + len(layers)) if gain is None else gain
    for _, layer in layers:
        for name, parameter in layer.named_parameters():
            if "norm" in name:
                continue
            if parameter.dim() >= 2:
                init.xavier_uniform_(parameter, gain=gain)
            else:
                init.zeros_(parameter)


def init_lines(layers: Sequence[LayerFacts], gain: float | None = None) -> str:
    """The routine to paste, with the gain of `initialise` as code."""
    kinds = list(dict.fromkeys(layer.kind for layer in attention_in(layers))) or [LAYERS[0].kind]
    classes = kinds[0] if len(kinds) == 1 else f"({', '.join(kinds)})"
    value = f"(1 + {len(attention_in(layers))}) ** -0.5" if gain is None else str(float(gain))
    return (
        "from torch_geometric.nn.dense.linear import Linear\n"
        "for module in self.modules():  # at the end of __init__\n"
        f"    if isinstance(module, {classes}):\n"
        "        for linear in module.modules():\n"
        "            if isinstance(linear, (nn.Linear, Linear)):  # PyG's Linear is no nn.Linear\n"
        f"                nn.init.xavier_uniform_(linear.weight, gain={value})\n"
        "                if linear.bias is not None:\n"
        "                    nn.init.zeros_(linear.bias)"
    )


class _Reinitialise(Fix):
    """The parts of one role, as their own ``reset_parameters`` draws them."""

    role: ClassVar[str]

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        attention = attention_in(layers)
        names = options.get("only") or self._shown(signals)
        chosen = [layer for layer in attention if layer.name in names] or attention
        owned = attribute_names(attention)
        owners: list[tuple[str, LayerFacts | str]] = [(owned[layer.name], layer) for layer in chosen]
        return "\n".join(looped([(owner, self._of(owner, layer)) for owner, layer in owners or [("conv", "")]]))

    def _of(self, owner: str, layer: LayerFacts | str) -> list[str]:
        kind = layer_named(layer)
        names = [n for n in kind.roles.get(self.role, ()) if isinstance(layer, str) or kind.present(n, layer)]
        lines = [kind.reinit_line(owner, name) for name in names]
        return lines or [f"# {owner}: initialise anew what its {self.role}s are made of"]

    def _shown(self, signals: Signals) -> list[str]:
        """Names of the layers that measurements speak against; empty for all."""
        return []

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        here = {name for name, _ in attention_layers(copy)}
        shown = [name for name in self._shown(options.get("signals") or NOTHING_MEASURED) if name in here]
        layers = editable_layers(copy, "reinitialise", options.get("only") or shown or None)
        if not sum(kind.reinitialise(layer, kind.roles.get(self.role, ())) for _, layer, kind in layers):
            names = dict.fromkeys(name for _, _, kind in layers for name in kind.roles.get(self.role, ()))
            raise FixError(f"no layer of {type(copy).__name__} has {' or '.join(names)}")


class ReinitQK(_Reinitialise):
    """Initialises the query and key maps anew and leaves everything else as it is.

    For attention that large weights saturate although query and key agree no more than independent ones do: nothing
    learned is lost, and scores start small again. Scaling such weights down cures the scores and leaves one map much larger
    than the other, which then trains badly. Where training has made the attention sharp use ``qk-clip`` instead.
    Options: ``only`` (names of layers; those whose weights are too large, else all), ``signals``, ``seed``.
    """

    name = "reinit-qk"
    title = "queries and keys drawn anew"
    options = ("only",)
    causes = ("attention-explosion",)
    signal = ATTENTION_ENTROPY
    edit = "reinitialise"
    cost = "none; what the attention had learned is lost"
    role = "score"

    def _shown(self, signals: Signals) -> list[str]:
        from gnnstab.rules.gs301_attention_explosion import AttentionExplosion

        large = (s for s in signals.find(LOGIT_FROBENIUS) if s.layer and s.value > AttentionExplosion.free_frobenius)
        return list(dict.fromkeys(str(s.layer) for s in large))


class ReinitGate(_Reinitialise):
    """Initialises the map of the beta gate anew, so that it passes skip and message again, or that of each gate that is seen to be stuck; a parameter that is one becomes 0.

    Gates that are all but shut, and whose opening lets a copy learn, get a bias that opens them.

    For a gate that its own weights saturate. One that a large input saturates needs a norm before the layer.
    Options: ``only`` (names of layers; all), ``signals`` (tell which gates are stuck), ``seed``.
    """

    name = "reinit-gate"
    title = "beta gate drawn anew"
    options = ("only",)
    causes = ("saturated-gate",)
    signal = GATE_SATURATED_SHARE
    cost = "none; what the gate had learned is lost"
    role = "gate"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        if stuck := _stuck_gates(signals):
            return "\n".join(
                f"nn.init.zeros_({written('model', name.split('.'))})"
                if alone
                else f"{written('model', name.split('.'))}.reset_parameters()"
                for name, alone in stuck.items()
            )
        if shut := _shut_gates(signals):
            return "\n".join(f"nn.init.constant_({written('model', name.split('.'))}.bias, {OPEN:g})" for name in shut)
        return super()._lines([layer for layer in layers if layer.get("beta") is not False], signals, options)

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        from torch import nn

        modules, parameters = dict(copy.named_modules()), dict(copy.named_parameters())
        stuck = _stuck_gates(options.get("signals") or NOTHING_MEASURED)
        found = [modules[name] for name in stuck if name in modules]
        resets = [reset for module in found if callable(reset := getattr(module, "reset_parameters", None))]
        resets += [
            partial(nn.init.zeros_, parameters[name]) for name, alone in stuck.items() if alone and name in parameters
        ]
        shut = () if resets else _shut_gates(options.get("signals") or NOTHING_MEASURED)
        biases = [parameters[bias] for name in shut if (bias := f"{name}.bias") in parameters]
        resets += [partial(nn.init.constant_, bias, OPEN) for bias in biases]
        for reset in resets:
            reset()
        if not resets:
            super()._edit(copy, options)


OPEN = 1.5
"""Bias of a gate that begins open: a sigmoid gives .8 there, a tanh .9."""


def _shut_gates(signals: Signals) -> list[str]:
    """The modules that make gates whose opening lets a copy learn."""
    told = (s.detail for s in signals.find(OPTIMIZER_UNDONE) if s.detail.get("cause") == "saturated-gate")
    return [str(name) for one in told for name in one.get("names", ())]


class ReinitLayers(Fix):
    """Initialises the layers anew that are dead or hold broken weights, and leaves the others as they are.

    Dead means that GS701's share of channels is zero or below on every node; broken, that a weight is not finite or beyond
    GS605's limit. Options: ``only`` (names of layers; those that the signals show, else all), ``signals``, ``seed``.
    """

    name = "reinit-layers"
    title = "dead or broken layers drawn anew"
    options = ("only",)
    causes = ("dead-units", "uninitialized-parameter")
    signal = CHANNELS_DEAD_SHARE
    cost = "none; what these layers had learned is lost"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        own = attribute_names(attention_in(layers))
        names = options.get("only") or [name for name in _broken(signals) if name in own] or list(own)
        return "\n".join(f"{own.get(name, name)}.reset_parameters()" for name in names) or "conv.reset_parameters()"

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        here = {name for name, _ in attention_layers(copy)}
        shown = [name for name in _broken(options.get("signals") or NOTHING_MEASURED) if name in here]
        for _, layer in attention_layers(copy, options.get("only") or shown or None):
            if (kind := layer_of(layer)) is not None:
                kind.redraw(layer)


def _stuck_gates(signals: Signals) -> dict[str, bool]:
    """Names of the modules behind which a gate stands at its limit, and of parameters that it is taken of → True for a parameter."""
    from gnnstab.rules.gs104_gate_saturated import GATES
    from gnnstab.rules.queries import stops

    return {str(s.layer): bool(s.detail.get("gate")) for s in stops(signals, *GATES) if s.layer != "output"}


def _broken(signals: Signals) -> list[str]:
    """Names of the layers that the signals show to be dead or to hold broken weights, in the order of the signals."""
    from gnnstab.rules.gs605_absurd_weight import AbsurdWeight
    from gnnstab.rules.gs701_dead_units import DeadUnits

    limits = {CHANNELS_DEAD_SHARE: DeadUnits.share, WEIGHT_NON_FINITE: 0.0, WEIGHT_RMS: AbsurdWeight.rms}
    shown = [s for name, limit in limits.items() for s in signals.find(name) if s.layer and s.value > limit]
    return list(dict.fromkeys(str(s.layer) for s in shown))
