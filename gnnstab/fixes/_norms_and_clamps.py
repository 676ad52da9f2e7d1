"""Fixes between the layers and in front of the model: norms, clamps, standardised features."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes.base import POSITIVE, Fix, attention_in, positive
from gnnstab.fixes.model_structure import add_part, attention_layers, editable_layers, exchange, like
from gnnstab.fixes.printing import activated, attribute_names, layer_call, on_one_line
from gnnstab.records import LayerFacts, Signal, Signals
from gnnstab.records.vocabulary import (
    CLIP_SHARE,
    FEATURE_COLUMN_RATIO,
    GRAPH_SMALLEST,
    OUTPUT_MAX_ABS,
    OUTPUT_RMS,
    PLACE_COLUMN_RATIO,
    PLACE_RMS,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


class GraphNorm(Fix):
    """Normalises every channel over each graph, after each layer, as the document that the project grew from says.

    It pins the forward RMS, and the gradient grows by a quarter per layer instead: harmless in shallow nets, and no
    cure in deep ones. Needs the batch vector: all nodes count as one graph where the model gets none. Graphs of one or two
    nodes become constants.
    """

    name = "graph-norm"
    title = "GraphNorm after every layer"
    signal = OUTPUT_RMS
    needs_fresh_weights = True
    cost = "two passes over the node states per layer; couples all nodes of a graph"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        attention = attention_in(layers)
        written = attribute_names(attention)
        lines = ["from torch_geometric.nn import GraphNorm"]
        lines.append(f"self.norms = nn.ModuleList([GraphNorm(width) for _ in range({len(attention)})])  # in __init__")
        for number, layer in enumerate(attention):
            call = layer_call(layer, written[layer.name])
            lines.append(f"x = {activated(layer, f'self.norms[{number}]({call}, batch)')}")
        return "\n".join(lines)

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        from torch_geometric.nn import GraphNorm as Norm

        from gnnstab.nn.identity import Forget
        from gnnstab.nn.output_hooks import BatchVector, NormOutput

        vector = BatchVector()
        for name, layer, kind in editable_layers(copy, "rowwise"):
            width = kind.facts(name, layer, 0).width
            if width is None:
                raise FixError(f"{name} does not say how wide its output is; add the norm in forward")
            add_part(layer, "post_norm", Norm(width))
            layer.register_forward_hook(NormOutput(vector))
        copy.register_forward_pre_hook(vector, with_kwargs=True)
        copy.register_forward_hook(Forget(vector), always_call=True)


class LayerNormInstead(Fix):
    """Exchanges every GraphNorm and InstanceNorm for a LayerNorm over the channels of each node.

    A norm over the nodes of a graph leaves a constant of one node and a sign of two, and divides channels that do not vary
    by almost nothing. PyG's ``LayerNorm(width, mode="node")`` takes the same arguments as the norm that it replaces.
    """

    name = "layer-norm"
    title = "LayerNorm in place of GraphNorm"
    causes = ("normalization-misuse",)
    signal = GRAPH_SMALLEST
    needs_fresh_weights = True
    cost = "none; training starts anew"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        return (
            "from torch_geometric.nn import LayerNorm\n"
            f'self.norms = nn.ModuleList([LayerNorm(width, mode="node") for _ in range({len(attention_in(layers))})])'
            "  # in __init__"
        )

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        from torch_geometric.nn import GraphNorm, InstanceNorm, LayerNorm

        found = [(n, m) for n, m in copy.named_modules() if n and isinstance(m, (GraphNorm, InstanceNorm))]
        if not found:
            raise FixError(f"{type(copy).__name__} has no GraphNorm or InstanceNorm")
        for name, norm in found:
            exchange(copy, name, LayerNorm(norm.in_channels, mode="node").to(**like(copy)))


class ActivationClamp(Fix):
    """Limits every output entry to ±``limit``; what is clipped has no gradient.

    Right as a stop-gap, while a run must not die, and on outputs that are unbounded by nature, such as action means.
    To be removed once the cause is fixed: more than one entry in ten clipped means that layers no longer learn.
    Options: ``limit`` (10.0).
    """

    name = "activation-clamp"
    title = "clamp on the layers' outputs (stop-gap)"
    options = ("limit",)
    limits: ClassVar = {"limit": POSITIVE}
    signal = OUTPUT_MAX_ABS
    keeps_function = True
    cost = "no gradient through clipped entries; hides the cause"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        limit, written = positive(options, "limit", 10.0), attribute_names(attention_in(layers))
        lines = ["# stop-gap: remove it once the cause is fixed, or when more than 10 % of the entries clip"]
        for layer in attention_in(layers):
            call = f"{layer_call(layer, written[layer.name])}.clamp(-{limit:g}, {limit:g})"
            lines.append(f"x = {activated(layer, call)}")
        return "\n".join(lines)

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        from gnnstab.nn.output_hooks import ClampOutput

        limit = positive(options, "limit", 10.0)
        for _, layer in attention_layers(copy):
            layer.register_forward_hook(ClampOutput(limit))


class RemoveClamp(Fix):
    """Takes out modules that clamp: ``Hardtanh`` becomes the identity and ``ReLU6`` a ReLU.

    A ``clamp`` in the code of forward is out of reach and has to be taken out by hand. What makes the values grow is to be
    treated first; where the limit is meant, widen it until less than one entry in a hundred reaches it.
    """

    name = "remove-clamp"
    title = "no clamp between the layers"
    causes = ("active-clamp",)
    signal = CLIP_SHARE
    cost = "values are unbounded again"
    code = "# forward: without .clamp(…), torch.clamp, Hardtanh or ReLU6 between the layers"

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        from torch import nn

        found = [(n, m) for n, m in copy.named_modules() if n and isinstance(m, nn.Hardtanh)]
        if not found:
            raise FixError("no Hardtanh or ReLU6 module; take the clamp out of the code of forward by hand")
        for name, module in found:
            exchange(copy, name, nn.ReLU() if isinstance(module, nn.ReLU6) else nn.Identity())


class InputStandardisation(Fix):
    """(x − mean) / std per column, measured on a batch; columns of whole numbers (ids, one-hot) are left alone.

    Options: ``batch`` (needed), ``argument`` (name of an attribute of the ``Data``, or name or position of the model's argument;
    without it the tensor that the signals show furthest beyond GS406, else the node features).
    """

    name = "input-standardisation"
    title = "standardised input features"
    options = ("argument",)
    causes = ("feature-scale",)
    signal = FEATURE_COLUMN_RATIO
    # Weights that were trained on raw features know nothing of standardised ones.
    needs_fresh_weights = True
    cost = "none; the statistics have to be stored with the model"

    def helps(self, signals: Signals, **options: Any) -> bool:
        """False where the targets alone are of another scale."""
        from gnnstab.rules.gs406_feature_scale import FeatureScale

        return bool(_badly_scaled(signals)) or not FeatureScale().targets_beyond(signals)

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        where = options.get("argument")
        if isinstance(where, str):
            return standardised(where)
        worst = _furthest(signals)
        return standardised(_own_name(worst), str(worst.detail.get("written", ""))) if worst else standardised("x")

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        from gnnstab.nn.output_hooks import StandardiseHook, StandardiseInput, column_statistics

        x, argument = _features(copy, options)
        mean, std = column_statistics(x)
        copy.input_standardisation = StandardiseInput(mean, std, argument).train(copy.training)
        copy.register_forward_pre_hook(StandardiseHook(), with_kwargs=True)


def standardised(name: str, written: str = "") -> str:
    """The code that standardises the tensor of this name, or what code calls it where it stands inside of something else."""
    if written:
        own = on_one_line(written)
        return (
            "# mean and std of the training set; leave id columns out\n"
            f"train = {own}\n"
            "mean, std = train.mean(0), train.std(0).clamp(min=1e-6)\n"
            f"{own} = ({own} - mean) / std"
        )
    return (
        "# mean and std of the training set; leave id columns out\n"
        f"mean, std = train_{name}.mean(0), train_{name}.std(0).clamp(min=1e-6)\n"
        f"{name} = ({name} - mean) / std"
    )


def _furthest(signals: Signals) -> Signal | None:
    """The tensor of the batch that lies furthest beyond the limits of GS406 for sizes and columns; None where none does."""
    from gnnstab.rules.gs406_feature_scale import FeatureScale

    limits = {PLACE_RMS: FeatureScale.rms, PLACE_COLUMN_RATIO: FeatureScale.column_ratio}
    beyond = [
        (signal.value / limit, _own_name(signal), signal)
        for kind, limit in limits.items()
        for signal in signals.find(kind)
        if signal.layer and signal.detail.get("arrives") and not signal.detail.get("target") and signal.value > limit
    ]
    return max(beyond, key=lambda one: one[:2])[2] if beyond else None


def _own_name(signal: Signal) -> str:
    return str(signal.layer).rpartition(".")[2]


def _badly_scaled(signals: Signals | None) -> str | None:
    """The name of that tensor."""
    worst = None if signals is None else _furthest(signals)
    return None if worst is None else _own_name(worst)


def _features(model: nn.Module, options: dict[str, Any]) -> tuple[Tensor, str | int | None]:
    """The node features of a batch, and the model's argument that they came in by."""
    from torch_geometric.data import Data

    from gnnstab.probe.batches.arguments import as_arguments

    if options.get("batch") is None:
        raise FixError("the features' mean and std have to be measured: pass batch=")
    args, kwargs = as_arguments(options["batch"], model)[0]
    where = options.get("argument")
    if isinstance(where, int):
        return args[where], where
    if (name := where or _badly_scaled(options.get("signals"))) is not None:
        parameters = list(signature(model.forward).parameters)
        if name in kwargs:
            return kwargs[name], name
        if name in parameters[: len(args)]:
            return args[parameters.index(name)], parameters.index(name)
        own = (value[name] for value in (*args, *kwargs.values()) if isinstance(value, Data) and name in value)
        if (tensor := next(own, None)) is not None:
            return tensor, name
        if where is not None:
            raise FixError(f"neither the model's arguments nor the batch hold {where}; name one of them with argument=")
    for value in (*args, *kwargs.values()):
        if isinstance(value, Data) and value.x is not None:
            return value.x, None
    named: list[tuple[str | int, Any]] = [*enumerate(args), *kwargs.items()]
    named.sort(key=lambda item: item[0] != "x")
    for key, value in named:
        if getattr(value, "ndim", 0) >= 2 and value.is_floating_point():
            return value, key
    raise FixError("no node features found among the model's arguments; name them with argument=")
