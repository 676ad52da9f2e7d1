"""Recovered layers, made into modules again and given synthetic graphs to be probed on.

What stands between the layers is unknown, so that every layer gets an input of its own: Gaussian node features scaled to
an RMS of exactly 1, on graphs where every node has the same in-degree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gnnstab.checkpoint._layers import find_layers
from gnnstab.checkpoint._loading import Checkpoint
from gnnstab.checkpoint._scan import finite
from gnnstab.checkpoint._tensors import identity
from gnnstab.checkpoint.facts import CheckpointFacts
from gnnstab.layers import StoredLayer
from gnnstab.records import LayerFacts

IN_DEGREES = (4, 10, 20, 50)
"""In-degrees of the synthetic graphs."""

NODES = 64
"""Nodes of a synthetic graph, raised where the in-degree needs it."""

SEED = 20240229


MOST_LAYERS = 100
"""Layers that are run; each takes 30 ms, and a file of 1 MB can hold thousands."""

MOST_INPUTS, MOST_MESSAGES = 2**25, 2**29
"""Entries of one graph's inputs and of its messages, all layers together: a width is declared in a few bytes."""


class Rebuilt(NamedTuple):
    """Layers that can be run, and what to run them on. Unpacks to ``(model, batches)``; false without any layer."""

    model: RebuiltLayers
    batches: dict[int, dict[str, Any]]
    """In-degree → keyword arguments of the model."""

    def __bool__(self) -> bool:
        return bool(self.model.paths)


class RebuiltLayers(nn.Module):
    """PyG's own layers at the module paths that they have in the checkpoint, in evaluation mode.

    One forward runs every layer once, each on its own input, in order of appearance.
    """

    paths: dict[str, str]
    """Layer name in the checkpoint → module path here, in order of appearance."""

    beyond: int
    """Layers left out since the work for all would be without bounds."""

    def __init__(self, layers: Sequence[tuple[str, nn.Module]], beyond: int = 0) -> None:
        super().__init__()
        self.beyond = beyond
        # Set before any child, so that a layer called "paths" is moved aside like one called "forward".
        self.paths = {}
        self.paths.update({name: _place(self, name, layer) for name, layer in layers})
        self.eval()

    def forward(
        self, inputs: dict[str, tuple[Tensor, Tensor]], edge_index: Tensor, edge_attr: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Layer → output (N, H·C) or (N, C).

        ``inputs``: layer → source (N, D_s) and target (N, D_t) features; ``edge_index`` (2, E); ``edge_attr``: layer →
        (E, D_e), for the layers that take edge features.
        """
        return {
            name: self.get_submodule(path)(inputs[name], edge_index, edge_attr.get(name))
            for name, path in self.paths.items()
        }


def rebuild(facts: CheckpointFacts, checkpoint: Checkpoint, *, probed: bool = False) -> Rebuilt:
    """The recovered layers with known heads and finite weights, and one batch per in-degree of `IN_DEGREES`.

    ``probed`` leaves out the kinds that no synthetic graph is made for. The global random state is left alone. Weights of low precision are widened to float32.
    """
    known: dict[tuple[object, ...], bool] = {}

    def is_finite(tensor: Tensor) -> bool:
        # One matrix may stand under many names.
        view = identity(tensor)
        if view not in known:
            known[view] = finite(tensor.float())  # As the layer that is run holds it.
        return known[view]

    by_name = {layer.name: layer for layer in facts.layers}
    stored = [conv for conv in find_layers(checkpoint.tensors)[0] if conv.kind.probed or not probed]
    usable = [
        (layer, conv)
        for conv in stored
        if (layer := by_name.get(conv.name)) is not None and layer.heads is not None
        if all(is_finite(tensor) for tensor in conv.parameters().values())
    ]
    fitting = _affordable(usable) if probed else usable
    model = RebuiltLayers(
        [(layer.name, conv.kind.build(conv, layer)) for layer, conv in fitting], len(usable) - len(fitting)
    )
    generator = torch.Generator().manual_seed(SEED)
    layers = [layer for layer, _ in fitting]
    return Rebuilt(model, {degree: _batch(layers, degree, generator) for degree in IN_DEGREES} if layers else {})


def _place(root: nn.Module, name: str, layer: nn.Module) -> str:
    """Put ``layer`` under ``root`` at its dotted name, making the containers on the way, and return the path.

    The path is the name, except where a module cannot have such a child: ``conv`` for a file that is one layer alone, and
    an underscore behind a part that is empty or the name of one of the module's own attributes.
    """
    *parents, last = (name or "conv").split(".")
    path: list[str] = []
    for part in parents:
        path.append(_child_name(root, part))
        if path[-1] not in root._modules:
            root.add_module(path[-1], nn.Module())
        root = root.get_submodule(path[-1])
    path.append(_child_name(root, last))
    root.add_module(path[-1], layer)
    return ".".join(path)


def _child_name(parent: nn.Module, part: str) -> str:
    taken = hasattr(parent, part) and part not in parent._modules
    return part + "_" if taken or not part else part


def _affordable(usable: list[tuple[LayerFacts, StoredLayer]]) -> list[tuple[LayerFacts, StoredLayer]]:
    """The layers whose synthetic graphs keep within the limits, in order of appearance."""
    kept: list[tuple[LayerFacts, StoredLayer]] = []
    edges, inputs, messages = NODES * max(IN_DEGREES), MOST_INPUTS, MOST_MESSAGES
    for layer, conv in usable:
        width = NODES * sum(layer.in_channels or (1, 1)) + edges * (layer.edge_dim or 0)
        sent = edges * conv.kind.widths(conv)[0]
        if len(kept) < MOST_LAYERS and width <= inputs and sent <= min(messages, MOST_MESSAGES // 16):
            inputs, messages = inputs - width, messages - sent
            kept.append((layer, conv))
    return kept


def _batch(layers: Sequence[LayerFacts], degree: int, generator: torch.Generator) -> dict[str, Any]:
    nodes = max(NODES, degree + 1)
    edges = regular_graph(nodes, degree, generator)
    inputs: dict[str, tuple[Tensor, Tensor]] = {}
    edge_attr: dict[str, Tensor] = {}
    for layer in layers:
        source, target = layer.in_channels or (1, 1)
        first = unit_features(nodes, source, generator)
        inputs[layer.name] = (first, first if source == target else unit_features(nodes, target, generator))
        if layer.edge_dim:
            edge_attr[layer.name] = unit_features(edges.shape[1], layer.edge_dim, generator)
    return {"inputs": inputs, "edge_index": edges, "edge_attr": edge_attr}


def regular_graph(nodes: int, degree: int, generator: torch.Generator) -> Tensor:
    """Edges (2, nodes·degree): every node receives from ``degree`` different random other nodes."""
    chance = torch.rand(nodes, nodes, generator=generator).fill_diagonal_(-1.0)
    sources = chance.topk(degree, dim=1).indices
    return torch.stack([sources.flatten(), torch.arange(nodes).repeat_interleave(degree)])


def unit_features(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Gaussian features (rows, columns) scaled to an RMS of exactly 1."""
    x = torch.randn(rows, columns, generator=generator)
    return x / x.square().mean().sqrt()
