"""Fixes of a module that sums raw messages: another reduction, a norm behind it, a term of the node itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gnnstab.errors import FixError
from gnnstab.fixes.base import Fix
from gnnstab.fixes.model_structure import add_part, sum_aggregators
from gnnstab.fixes.printing import attribute_names
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import AGGREGATION_EXPONENT, ATTENTION_ENTROPY

if TYPE_CHECKING:
    from torch import nn


OF_PYG = {
    "SimpleConv": "", "GINConv": "mlp, ", "GINEConv": "mlp, ", "GraphConv": "in_channels, out_channels, ", "CGConv": "channels, ",
    "NNConv": "in_channels, out_channels, mlp, ", "GatedGraphConv": "out_channels, num_layers, ",
}  # fmt: skip
"""Classes of PyG that sum messages → what their constructors are given before ``aggr``: their own code is not the user's to change."""


class Aggregation(Fix):
    """Exchanges a sum for another reduction. Alone it is no cure: the node loses the little that told it from others.

    Options: ``aggr`` (``mean``), ``only`` (names of layers; all modules that sum raw messages).
    """

    name = "aggregation"
    title = "another aggregation"
    options = ("aggr", "only")
    signal = AGGREGATION_EXPONENT
    needs_fresh_weights = True
    cost = "none; without a root term node identity fades as 1/degree"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        aggr = options.get("aggr", "mean")
        if ready := _of_pyg(layers):
            return "\n".join(_made_with(f, aggr) for f in ready)
        return f"super().__init__(aggr={aggr!r})  # in {_names(layers)}"

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        for _, module in sum_aggregators(copy, options.get("only")):
            set_aggregation(module, options.get("aggr", "mean"))


class MeanAggregationRoot(Fix):
    """h_i = mean_j(m_ij) + W·x_i: the scale no longer follows the in-degree, and every node keeps its own features.

    Options: ``batch`` (one batch; needed where the module does not declare its widths), ``only`` (names of layers; all
    modules that sum raw messages), ``seed`` (0).
    """

    name = "mean-aggregation-root"
    title = "mean aggregation with a root term"
    options = ("only",)
    causes = ("sum-aggregation", "attention-explosion")
    signal = ATTENTION_ENTROPY
    needs_fresh_weights = True
    cost = "one linear layer; counts of neighbours are no longer seen"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        if ready := _of_pyg(layers):
            made = "\n".join(_made_with(f, "mean") for f in ready)
            return f"{made}\n{_around(ready, layers, norm=False, root=True)}"
        return (
            f"# in {_names(layers)}\n"
            "super().__init__(aggr='mean')\n"
            f"self.lin_root = nn.Linear({', '.join(_widths(layers))})  # in __init__\n"
            "out = out + self.lin_root(x)  # in forward, after out = self.propagate"
        )

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        modules = [m for _, m in sum_aggregators(copy, options.get("only"))]
        for module in modules:
            set_aggregation(module, "mean")
        _add_self_term(copy, modules, options.get("batch"), norm=False, root=True)


class NormAfterSum(Fix):
    """h_i = LayerNorm(Σ_j m_ij) + W·x_i. A norm inside the message, before the sum, does not help.

    Options: ``root`` (True; False leaves the root term out), ``batch``, ``only``, ``seed`` as in
    ``mean-aggregation-root``.
    """

    name = "norm-after-sum"
    title = "LayerNorm after the sum, with a root term"
    options = ("root", "only")
    causes = ("sum-aggregation", "attention-explosion")
    signal = ATTENTION_ENTROPY
    needs_fresh_weights = True
    cost = "one LayerNorm and one linear layer"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        root = options.get("root", True)
        if ready := _of_pyg(layers):
            return _around(ready, layers, norm=True, root=root)
        wide, narrow = _widths(layers)
        lines = [f"# in {_names(layers)}", f"self.sum_norm = nn.LayerNorm({narrow})  # in __init__"]
        if root:
            lines.append(f"self.lin_root = nn.Linear({wide}, {narrow})  # in __init__")
        term = " + self.lin_root(x)" if root else ""
        return "\n".join([*lines, f"out = self.sum_norm(out){term}  # in forward, after out = self.propagate"])

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        modules = [m for _, m in sum_aggregators(copy, options.get("only"))]
        _add_self_term(copy, modules, options.get("batch"), norm=True, root=bool(options.get("root", True)))


def set_aggregation(module: Any, aggr: str) -> None:
    """Change the reduction of a message-passing module in place."""
    from torch_geometric.nn.resolver import aggregation_resolver

    try:
        module.aggr_module = aggregation_resolver(aggr)
    except (ValueError, TypeError) as error:
        raise FixError(f"aggr={aggr!r} is no aggregation of PyG") from error
    module.aggr = aggr


def _sums(layers: Sequence[LayerFacts]) -> list[LayerFacts]:
    return [f for f in layers if not f.attention and f.aggregation in ("add", "sum")]


def _of_pyg(layers: Sequence[LayerFacts]) -> list[LayerFacts]:
    """The layers that sum, where all of them are of PyG's own classes; else none."""
    found = _sums(layers)
    return found if all(f.kind in OF_PYG for f in found) else []


def _made_with(layer: LayerFacts, aggr: str) -> str:
    return f"{layer.kind}({OF_PYG[layer.kind]}aggr={aggr!r})  # {layer.name}, where your model makes it"


def _around(ready: Sequence[LayerFacts], layers: Sequence[LayerFacts], *, norm: bool, root: bool) -> str:
    """Parts beside a layer whose code is not the user's, and its call with them; of several layers the first stands for all."""
    wide, narrow = _widths(layers)
    called = attribute_names(ready)[ready[0].name]
    lines = [f"self.sum_norm = nn.LayerNorm({narrow})  # in __init__ of your model"] if norm else []
    lines += [f"self.lin_root = nn.Linear({wide}, {narrow})  # in __init__ of your model"] if root else []
    more = f"; likewise {', '.join(f.name for f in ready[1:])}, each with its own" if len(ready) > 1 else ""
    call = f"{called}(x, edge_index)"
    summed = f"{f'self.sum_norm({call})' if norm else call}{' + self.lin_root(x)' if root else ''}"
    return "\n".join([*lines, f"x = {summed}  # in forward, in place of {call}{more}"])


def _widths(layers: Sequence[LayerFacts]) -> tuple[str, str]:
    """Input and output width of the layers that sum, as code; the names of the arguments where they were not seen."""
    found = {(f.in_channels[1] if f.in_channels else None, f.out_channels) for f in _sums(layers)}
    wide, narrow = found.pop() if len(found) == 1 else (None, None)
    return str(wide or "in_channels"), str(narrow or "out_channels")


def _names(layers: Sequence[LayerFacts]) -> str:
    """``embed_layer (EmbedConv)``: the recorded layers that sum raw messages."""
    return ", ".join(f"{f.name} ({f.kind})" for f in _sums(layers)) or "the module that sums"


def _add_self_term(model: nn.Module, modules: list[nn.Module], batch: Any, *, norm: bool, root: bool) -> None:
    """Give each module, in place, a ``sum_norm`` (LayerNorm) and a ``root_term`` (linear in the node's own features).

    The widths are read off one forward pass on ``batch``. Raises `FixError` when there is no batch and the modules
    have no ``in_channels`` and ``out_channels``, or when a module is not called with node features.
    """
    from torch import nn as torch_nn

    from gnnstab.nn.output_hooks import SelfTerm

    widths = [_declared(module) for module in modules]
    if any(w is None for w in widths):
        widths = list(_observed(model, modules, batch))
    for module, width in zip(modules, widths, strict=True):
        assert width is not None
        if norm:
            add_part(module, "sum_norm", torch_nn.LayerNorm(width[1]))
        if root:
            add_part(module, "root_term", torch_nn.Linear(width[0], width[1]))
        module.register_forward_hook(SelfTerm(), with_kwargs=True)


def _declared(module: Any) -> tuple[int, int] | None:
    wide = getattr(module, "in_channels", None)
    if isinstance(wide, (tuple, list)):
        wide = wide[-1]
    out = getattr(module, "out_channels", None)
    return (wide, out) if isinstance(wide, int) and isinstance(out, int) and wide > 0 and out > 0 else None


def _observed(model: nn.Module, modules: list[nn.Module], batch: Any) -> list[tuple[int, int] | None]:
    """Widths (own features, output) of the modules during one forward pass in eval mode."""
    import torch

    from gnnstab.probe.batches.arguments import as_arguments
    from gnnstab.probe.replaying.evaluating import in_mode
    from gnnstab.probe.replaying.replica import eager

    if batch is None:
        raise FixError("the widths of the aggregation are only seen in a forward pass: pass batch=")
    seen: dict[int, tuple[int, int]] = {}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x = kwargs["x"] if "x" in kwargs else args[0] if args else None
        own = x[1] if isinstance(x, tuple) else x
        if isinstance(own, torch.Tensor) and isinstance(output, torch.Tensor):
            seen[id(module)] = (own.size(-1), output.size(-1))

    handles = [module.register_forward_hook(look, with_kwargs=True) for module in modules]
    modes = [(module, module.training) for module in model.modules()]
    try:
        in_mode(model, False)
        args, kwargs = as_arguments(batch, model)[0]
        with torch.no_grad():
            eager(model)(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    if len(seen) < len(modules):
        raise FixError("a module that sums messages was not called with node features as its first argument or as x=")
    return [seen[id(module)] for module in modules]
