"""Fixes that lay an identity path around the layers of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes._initialisation import init_lines, initialise
from gnnstab.fixes.base import FINITE, Fix, attention_in
from gnnstab.fixes.model_structure import Stack, Unit, add_part, stacks
from gnnstab.fixes.printing import ACT, activated, attribute_names, layer_call
from gnnstab.layers import layer_of
from gnnstab.layers.pyg_layer import both
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import GRADIENT_RATIO

if TYPE_CHECKING:
    from torch import nn


class _AroundLayers(Fix):
    """An identity path of a weight around every layer, with a norm before each or without."""

    signal = GRADIENT_RATIO
    needs_fresh_weights = True
    limits: ClassVar = {"weight": FINITE}
    weight: ClassVar[float] = 1.0
    norms: ClassVar[bool] = False

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        return _residual_lines(layers, self.chosen(options), norm=self.norms)

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        add_identity(copy, self.chosen(options), norms=self.norms)

    def chosen(self, options: Mapping[str, Any]) -> float:
        """The weight that the options ask for."""
        return float(options.get("weight", self.weight))


class Residual(_AroundLayers):
    """x ← act(conv(x)) + weight·x. The weight decides: 0.1 changes nothing measurable, 1.0 carries the gradient.

    On weights with a gain of √2 or more even 1.0 explodes; see ``residual-depth-init`` and ``pre-norm-residual``.
    `gnnstab.nn.IdentityPath` tells what it can reach.
    Options: ``weight`` (0.1, as in the document that the project grew from).
    """

    name = "residual"
    title = "weighted residual connection"
    options = ("weight",)
    causes = ("no-residual",)
    cost = "one addition per layer"
    weight = 0.1


class PreNormResidual(_AroundLayers):
    """x ← x + act(conv(norm(x))): gradients pass at any depth, for any gain of the weights.

    Options: ``weight`` (1.0).
    """

    name = "pre-norm-residual"
    title = "pre-norm with a residual of weight 1"
    options = ("weight",)
    causes = (
        *("indistinguishable-nodes", "no-residual", "oversmoothing", "unsuitable-init", "normalization-misuse"),
        "saturated-gate",
    )
    cost = "one LayerNorm and one addition per layer"
    norms = True

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        attention = attention_in(layers)
        widths = {layer.in_channels[1] for layer in attention if layer.in_channels}
        width = str(widths.pop()) if len(widths) == 1 else "width"
        head = f"self.norms = nn.ModuleList([nn.LayerNorm({width}) for _ in range({len(attention)})])  # in __init__"
        return f"{head}\n{super()._lines(layers, signals, options)}"


class ResidualDepthInit(_AroundLayers):
    """x ← x + act(conv(x)) with Xavier gain 1/√(1 + L): the branches are small, the identity carries the gradient.

    Options: ``weight`` (1.0).
    """

    name = "residual-depth-init"
    title = "residual of weight 1 with depth-scaled initialisation"
    options = ("weight",)
    causes = ("oversmoothing", "no-residual", "unsuitable-init")
    cost = "one addition per layer; training starts anew"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        return f"{init_lines(layers)}\n{super()._lines(layers, signals, options)}"

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        initialise(copy)
        super()._edit(copy, options)


def _residual_lines(layers: Sequence[LayerFacts], weight: float, *, norm: bool = False) -> str:
    """``x = act(conv(x)) + weight * x`` for every attention layer whose width stays the same; a list of layers as one loop."""
    attention = attention_in(layers)
    written, term = attribute_names(layers), "x" if weight == 1.0 else f"{weight} * x"

    def line(layer: LayerFacts, called: str, normed: str) -> str:
        new = activated(layer, layer_call(layer, called, normed if norm else "x"))
        return f"x = {term} + {new}" if _same_width(layer) else f"x = {new}  # other width: no identity here"

    whole = {written[layer.name].rpartition("[")[0] for layer in attention}
    in_loop = {line(layer, "conv", "norm(x)") for layer in attention}
    if len(attention) > 1 and len(whole) == len(in_loop) == 1 and "" not in whole:
        convs = whole.pop()
        over = f"conv, norm in zip({convs}, self.norms)" if norm else f"conv in {convs}"
        lines = [f"for {over}:", f"    {in_loop.pop()}"]
    else:
        lines = [line(layer, written[layer.name], f"self.norms[{number}](x)") for number, layer in enumerate(attention)]
    code = "\n".join(lines) or f"x = {term} + act(conv({'norm(x)' if norm else 'x'}, edge_index))"
    return f"{ACT}\n{code}" if " act(" in code else code


def _same_width(layer: LayerFacts) -> bool:
    return layer.in_channels is None or layer.width is None or layer.in_channels[1] == layer.width


def add_identity(model: nn.Module, weight: float, *, norms: bool = False) -> int:
    """Add x ← act(conv(x)) + weight·x around every attention layer of ``model``, in place; the number of layers.

    With ``norms`` each layer sees LayerNorm(x) (pre-norm). Raises `FixError` when no two layers in a row have
    the same width, or when there is no layer at all.
    """
    found = stacks(model)
    reached = sum(keeps_width(unit.module) for stack in found for unit in stack.units)
    if not reached:
        raise FixError("no attention layer has the same width in and out, so there is nowhere to add the identity")
    for stack in found:
        _attach(stack, weight, norms)
    return reached


def keeps_width(module: Any) -> bool:
    """True when the output has the width of the input; containers of convs are asked for their members."""
    kind = layer_of(module)
    if kind is None:
        return any(keeps_width(m) for m in module.modules() if m is not module and layer_of(m) is not None)
    facts = kind.facts("", module, 0)
    return kind.rowwise and facts.in_channels is not None and facts.width in facts.in_channels


def _of_rows(module: Any) -> bool:
    """False for an attention layer that is not given one tensor of nodes of a known width."""
    kind = layer_of(module)
    return kind is None or (kind.rowwise and kind.facts("", module, 0).in_channels is not None)


def _attach(stack: Stack, weight: float, norms: bool) -> None:
    from gnnstab.nn.identity import EnterLayer, Forget, IdentityPath, LeaveLayer

    path = IdentityPath(weight)
    units = [unit for unit in stack.units if _of_rows(unit.module)]
    last = max((unit.group for unit in units), default=0)
    for unit in units:
        if norms:
            _add_norm(unit.module)
        unit.module.register_forward_pre_hook(EnterLayer(path, unit.group, unit.name, unit.types), with_kwargs=True)
        if unit.group == last and last > 0 and _alone(unit, stack) and keeps_width(unit.module):
            unit.module.register_forward_hook(LeaveLayer(path, unit.types))
    stack.owner.register_forward_pre_hook(Forget(path))
    stack.owner.register_forward_hook(Forget(path), always_call=True)


def _alone(unit: Unit, stack: Stack) -> bool:
    """Outputs of layers side by side are summed by the model, and the identity with them: it must not be added twice."""
    return sum(1 for other in stack.units if other.group == unit.group) == 1


def _add_norm(module: Any) -> None:
    """A LayerNorm in front of a layer, or one per node type in front of a HeteroConv."""
    from torch import nn

    if layer_of(module) is not None:
        source, target = _widths(module)
        if source != target:
            raise FixError(f"sources and targets have different widths ({source}, {target}); add the norms in forward")
        add_part(module, "pre_norm", nn.LayerNorm(source))
        return
    widths: dict[str, int] = {}
    for (source_type, _, target_type), conv in module.convs.items():
        widths[source_type], widths[target_type] = _widths(conv)
    add_part(module, "pre_norm", nn.ModuleDict({kind: nn.LayerNorm(width) for kind, width in widths.items()}))


def _widths(layer: Any) -> tuple[int, int]:
    """Width of source and target nodes, as the layer's kind tells it, or else its attribute."""
    kind = layer_of(layer)
    found = both(getattr(layer, "in_channels", None)) if kind is None else kind.facts("", layer, 0).in_channels
    if found is None or min(found) < 0:
        raise FixError(f"the width of {type(layer).__name__}'s input is not known; add the norms in forward")
    return found
