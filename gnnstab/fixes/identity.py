"""How the residual fixes lay an identity path around the layers of a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gnnstab.errors import FixError
from gnnstab.fixes.model_structure import Stack, Unit, add_part, stacks
from gnnstab.layers import layer_of

if TYPE_CHECKING:
    from torch import nn


def add_identity(model: nn.Module, weight: float, *, norms: bool = False) -> int:
    """Add x ← act(conv(x)) + weight·x around every attention layer of ``model``, in place; the number of layers.

    With ``norms`` each layer sees LayerNorm(x) (pre-norm). Raises `FixError` when no two layers in a row have
    the same width, or when there is no layer at all.
    """
    found = stacks(model)
    reached = sum(_matching(stack) for stack in found)
    if not reached:
        raise FixError("no attention layer has the same width in and out, so there is nowhere to add the identity")
    for stack in found:
        _attach(stack, weight, norms)
    return reached


def _matching(stack: Stack) -> int:
    return sum(1 for unit in stack.units if keeps_width(unit.module))


def keeps_width(module: Any) -> bool:
    """True when the output has the width of the input; containers of convs are asked for their members."""
    kind = layer_of(module)
    if kind is None:
        return any(keeps_width(m) for m in module.modules() if m is not module and layer_of(m) is not None)
    facts = kind.facts("", module, 0)
    return kind.rowwise and facts.in_channels is not None and facts.width in facts.in_channels


def _attach(stack: Stack, weight: float, norms: bool) -> None:
    from gnnstab.nn.identity import EnterLayer, Forget, IdentityPath, LeaveLayer

    path = IdentityPath(weight)
    units = [unit for unit in stack.units if (kind := layer_of(unit.module)) is None or kind.rowwise]
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
    add_part(module, "pre_norm", _norm(module) if hasattr(module, "in_channels") else _norm_by_type(module))


def _norm(module: Any) -> nn.Module:
    from torch import nn

    channels: Any = module.in_channels
    widths = set(channels) if isinstance(channels, (tuple, list)) else {channels}
    if len(widths) != 1 or -1 in widths:
        raise FixError(f"sources and targets have different or unknown widths ({channels}); add the norms in forward")
    return nn.LayerNorm(widths.pop())


def _norm_by_type(hetero: Any) -> nn.Module:
    """One LayerNorm per node type of a HeteroConv."""
    from torch import nn

    widths: dict[str, int] = {}
    for (source, _, target), conv in hetero.convs.items():
        channels = conv.in_channels if isinstance(conv.in_channels, (tuple, list)) else (conv.in_channels,) * 2
        widths |= {source: channels[0], target: channels[1]}
    return nn.ModuleDict({kind: nn.LayerNorm(width) for kind, width in widths.items()})
