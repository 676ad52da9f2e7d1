"""The user's loss, noted operation by operation while it ran, and run again on the output of another step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.operations._naming import local_name, memory
from gnnstab.probe.operations.source_lines import Place
from gnnstab.probe.replaying.replica import left_by_forward, tensors_in
from gnnstab.torch_private import tree_leaves, tree_map

_MOST = 5000
"""Operations of a loss that are noted; a longer one is not repeated."""


class Slot(NamedTuple):
    """Stands for a tensor until the loss is run again."""

    kind: str
    """``made`` (by an operation of the loss), ``output`` (of the model), ``left`` (on the model by its forward), ``batch`` or ``parameter``."""

    key: Any


class _Noted(NamedTuple):
    function: Any
    args: Any
    kwargs: Any
    place: Place
    grad: bool


class LossTape:
    """Notes the operations between a model's output and the backward, and can run them again.

    Args:
        model: The model; its parameters are taken from the model at hand when the tape runs again.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.foreign: list[tuple[str, Tensor]] = []
        """(variable, tensor): those that are neither of the model nor of its arguments: constants, or targets of their own."""

        self._model = model
        self._noted: list[_Noted] = []
        self._slots: dict[tuple[Any, ...], Slot] = {}
        self._objects: dict[int, Slot] = {}
        self._held: list[Any] = []
        """Keeps all of them alive, so that neither an object nor its memory is another one later."""

        self._last: Slot | None = None
        """The scalar that is taken for the loss: what the backward begins at, else the last one that came out."""

    def begin(self, output: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """The model has returned ``output``; what comes now is the loss. A later call begins anew."""
        self._noted.clear()
        self._slots.clear()
        self._objects.clear()
        self.foreign.clear()
        self._held = [output, args, kwargs]
        self._last = None
        for name, tensor in left_by_forward(self._model):
            self._slots[_key(tensor)] = Slot("left", name)
        for name, parameter in self._model.named_parameters():
            self._slots[_key(parameter)] = Slot("parameter", name)
        for name, tensor in named_tensors(tuple(args), kwargs, self._model).items():
            self._slots[_key(tensor)] = Slot("batch", name)
        for name, tensor in tensors_in(output):
            self._slots[_key(tensor)] = Slot("output", name)

    def note(self, function: Any, args: Any, kwargs: Any, result: Any, place: Place, frame: FrameType | None) -> None:
        """An operation of the loss has run, in this frame of the user's."""
        if not self._held or len(self._noted) > _MOST:
            return
        position = len(self._noted)
        slot_of = partial(self._slot, frame=frame)
        self._noted.append(
            _Noted(function, tree_map(slot_of, args), tree_map(slot_of, kwargs), place, torch.is_grad_enabled())
        )
        self._held.append(result)
        for number, tensor in enumerate(tree_leaves(result)):
            if isinstance(tensor, Tensor):
                slot = self._objects[id(tensor)] = Slot("made", (position, number))
                if not _is_detach(function):
                    self._slots[_key(tensor)] = slot
                if not number and tensor.numel() == 1 and tensor.is_floating_point() and torch.is_grad_enabled():
                    self._last = slot

    def backward_begins(self, root: Tensor) -> None:
        """The backward starts at ``root``: a scalar computed after the loss, such as an accuracy, is not it."""
        self._last = self._slots.get(_key(root), self._last)

    @property
    def is_complete(self) -> bool:
        """True when a scalar came out that could be the loss."""
        return self._last is not None and len(self._noted) <= _MOST

    def __call__(self, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any], watch: Any) -> Tensor:
        """The loss of another output: an objective for `gnnstab.probe.operations.repeat.repeat`."""
        known: dict[Slot, Any] = {Slot("output", name): t for name, t in tensors_in(output)}
        known.update({Slot("batch", name): t for name, t in named_tensors(args, kwargs, watch.model).items()})
        known.update({Slot("parameter", name): p for name, p in watch.model.named_parameters()})
        left = list(left_by_forward(watch.model))
        known.update({Slot("left", name): tensor for name, tensor in left})
        watch.know("local", left)
        watch.know("local", self.foreign)

        def value(item: Any) -> Any:
            return known[item] if isinstance(item, Slot) else item

        try:
            for position, noted in enumerate(self._noted):
                watch.place = noted.place
                with torch.set_grad_enabled(noted.grad):
                    result = noted.function(
                        *tree_map(value, noted.args, is_leaf=_is_slot),
                        **tree_map(value, noted.kwargs, is_leaf=_is_slot),
                    )
                known.update({Slot("made", (position, i)): t for i, t in enumerate(tree_leaves(result))})
        finally:
            watch.place = None
        loss: Tensor = known[self._last]  # type: ignore[index]
        return loss.reshape(())

    def _slot(self, value: Any, frame: FrameType | None) -> Any:
        if not isinstance(value, Tensor):
            return value
        slot = self._objects.get(id(value)) or self._slots.get(_key(value))
        if slot is not None:
            return slot
        kept = value.detach()
        if value.is_floating_point():
            self.foreign.append((local_name(value, frame), kept))
        return kept


def _is_detach(function: Any) -> bool:
    """A detached tensor shares the memory of the one that it was made from, which keeps its history."""
    return str(function._schema.name) in ("aten::detach", "aten::alias")


def _is_slot(value: Any) -> bool:
    return isinstance(value, Slot)


def _key(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.layout is not torch.strided:
        return (id(tensor),)
    return memory(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
