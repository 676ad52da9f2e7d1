"""What is known of the layers of a run: their configuration, and which of them were seen and which not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from gnnstab.layers.lazy import on_meta
from gnnstab.probe.attaching.discovery import recordable
from gnnstab.probe.attaching.identity_path import Ways
from gnnstab.probe.attaching.norms import Norms
from gnnstab.probe.buffering.step_writer import StepWriter
from gnnstab.probe.layers.layer_recorder import LayerRecorder
from gnnstab.probe.state import State
from gnnstab.records import Blind, Coverage, LayerFacts
from gnnstab.sharding import WHY, sharded

_COMPILED_BEFORE = (
    "no call was seen: a graph that was compiled before the monitor was attached runs no hooks; attach the monitor before "
    "the first call of the compiled model, or call torch._dynamo.reset()"
)

_NO_NUMBERS = "it lies on the meta device, where a tensor has a shape and no numbers"

_COARSE = {torch.float16: "fp16", torch.bfloat16: "bf16"}


class LayerNotes:
    """Keeps the trace's facts of the layers up to date.

    Args:
        called: What the run calls: ``model``, or a wrapper of ``torch.compile`` around it.
        ways: How the layers stand to each other; filled in by others.
    """

    def __init__(
        self,
        called: nn.Module,
        model: nn.Module,
        state: State,
        layers: Sequence[LayerRecorder],
        norms: Norms,
        ways: Ways,
    ) -> None:
        self._compiled = called is not model
        self._model, self._state, self._layers, self._norms, self._ways = model, state, layers, norms, ways
        self._known = WeakIdKeyDictionary(dict.fromkeys(model.modules()))
        """Those that were there when the layers were found."""

        self._written = (-1, False, 0)

    @property
    def coverage(self) -> Coverage:
        """What was seen and what was not, so far."""
        self.note_unseen()
        attention = [layer for layer in self._layers if layer.attention and layer.counts]
        blind = tuple(self._state.blinds())
        scripted = {b.layer for b in blind} - {layer.name for layer in self._layers}
        others = {b.layer for b in blind if b.is_other_attention}
        observed = sum(layer.name in self._state.fired for layer in attention)
        return Coverage(len(attention) + len(scripted | others), observed, blind)

    def facts(self) -> list[LayerFacts]:
        """The configuration of every layer, in the order of first calls; layers not called yet come last."""
        fired = self._state.fired
        counted = (layer for layer in self._layers if layer.counts)
        ordered = sorted(counted, key=lambda layer: fired.get(layer.name, len(fired)))
        found = [(layer.facts(position), layer.score_dtypes()) for position, layer in enumerate(ordered)]
        around, beside = self._ways
        return [
            replace(f, identity_path=around.get(f.name), beside=beside.get(f.name), score_format=_format(seen))
            for f, seen in found
        ]

    @property
    def precision(self) -> str:
        """The coarsest number format that scores were seen in: ``fp16``, ``bf16`` or ``fp32``."""
        return _format({dtype for layer in self._layers for dtype in layer.score_dtypes()}) or "fp32"

    def write(self, writer: StepWriter, *, changed: bool = False) -> None:
        """Put everything into the trace, when it is news or has ``changed`` for sure."""
        known = (len(self._state.fired), bool(self._ways.around), self._norms.seen + len(self._state.normalising))
        if changed or known != self._written:
            self._written = known
            facts = self.facts()
            idle = [name for name in self._state.normalising if name not in {layer.name for layer in facts}]
            writer.layers(facts, self._norms.meta() | ({"normalising": json.dumps(idle)} if idle else {}))
            writer.blinds(self._state.blinds())

    def note_new_layers(self) -> None:
        """Name the layers that nobody watches, since they came into the model later."""
        for name in self.came_later():
            note = Blind.late(name)
            self._state.unseen(note.layer, note.site, note.reason)

    def came_later(self) -> list[str]:
        """The layers that came into the model when it was watched already."""
        named = self._model.named_modules()
        return [name for name, module in named if module not in self._known and recordable(module)]

    def finish(self, writer: StepWriter) -> None:
        """The run is over: name what never came, and put everything into the trace."""
        self.note_unseen()
        self.write(writer, changed=True)

    def note_unseen(self) -> None:
        """Name the layers and sites of which nothing arrived."""
        self.note_new_layers()
        if sharded(self._model):
            self._state.unseen("", "weight", WHY)
        for name in on_meta(self._model):
            self._state.unseen(name.rpartition(".")[0], "weight", _NO_NUMBERS)
        for layer in self._layers:
            if layer.counts and layer.name in self._state.fired:
                layer.note_unseen()
            elif not layer.counts:
                layer.note_unrecognised()
            else:
                why = _COMPILED_BEFORE if self._compiled else "the layer was not called while it was recorded"
                self._state.unseen(layer.name, "output", why)


def _format(seen: set[torch.dtype]) -> str | None:
    """The coarsest of the number formats seen; None for none."""
    return next((name for dtype, name in _COARSE.items() if dtype in seen), "fp32" if seen else None)
