"""A dispatch mode that notes every operation whose result holds an Inf or NaN, in the forward, the loss and the backward."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gnnstab.errors import let_through
from gnnstab.probe.operations._naming import Named, TensorNames, bad_rows, kinds, memory
from gnnstab.probe.operations._operands import Sizes, display_name, emptied, masks_all, sizes, writes_in_place
from gnnstab.probe.operations._tape import LossTape
from gnnstab.probe.operations.source_lines import Modules, Place, begins_backward, caller_place
from gnnstab.probe.own_operations import is_own
from gnnstab.stored import is_finite, stored
from gnnstab.torch_private import DispatchMode, autograd_node, next_sequence_number, not_compiled, tree_leaves, tree_map

_MOST = 4000
"""Operations with a bad result that are noted; the first ones are those that explain."""

_HANDED_ON = ("view", "unsafe_view", "reshape", "reshape_alias", "t", "transpose", "permute", "expand", "squeeze",
                 "unsqueeze", "slice", "select", "split", "split_with_sizes", "unbind", "detach", "alias", "clone",
                 "contiguous", "as_strided", "to_copy", "index_select", "index", "gather")  # fmt: skip
"""Operations that hand values on: what made them is what stands before."""

_OVERWRITES = ("fill", "zero", "copy", "normal", "uniform", "bernoulli", "random", "exponential")
"""Operations that write into their first operand without reading it."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(slots=True)
class Operation:
    """One operation whose result held an Inf or NaN."""

    number: int
    """Its position among all operations of the step."""

    name: str
    place: Place
    node: str
    """The autograd node that ran it, ``SqrtBackward0``; empty in a forward."""

    made_here: bool
    """True when everything that went in was finite."""

    kinds: str
    """``NaN``, ``Inf`` or ``NaN and Inf``."""

    entries: int
    dtype: str
    count: int = 0
    """How many of the entries; counted only where nothing bad came in."""

    rows: tuple[int, ...] = ()
    sizes: Sizes = field(default_factory=lambda: Sizes("", ""))
    masks: bool = False
    """True for a product that multiplies every bad entry by zero, and so does not remove it."""

    sources: list[Operation | Named] = field(default_factory=list)
    """Where the bad operands came from."""

    @property
    def written(self) -> bool:
        """True for an infinity that was written on purpose, as into masked scores, or only handed on from such a one."""
        if "NaN" in self.kinds:
            return False
        if self.sizes.kind == "written":
            return True
        return not self.made_here and all(_on_purpose(source, self.name) for source in self.sources)


def _on_purpose(source: Operation | Named, reader: str) -> bool:
    """True for infinities that are meant: written, of a mask, or −inf of a tensor that is added as a mask is."""
    if isinstance(source, Operation):
        return source.written
    return source.mask or (source.bias and (reader == "add" or reader in _HANDED_ON))


def mask_behind(operation: Operation) -> Named | None:
    """The tensor from outside whose −inf an operation has read as those of a mask; None for infinities of its own code."""
    for source in operation.sources:
        if isinstance(source, Named):
            if source.bias:
                return source
        elif source.written and (found := mask_behind(source)) is not None:
            return found
    return None


class OperationMode(DispatchMode):
    """Runs every operation as it is and looks at what comes out; no value and no random number changes.

    Args:
        model: Its modules name the places.
        names: Names of the tensors that come from outside.
        prefix: What stands before module paths.
        tape: Where the operations of the loss are noted, to be run again.
    """

    def __init__(self, model: nn.Module, names: TensorNames, prefix: str = "", *, tape: LossTape | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.active = True
        """False once nothing is looked at any longer."""

        self.failure: Exception | None = None
        """What went wrong inside the watch, after which it only lets operations through."""

        self.backward_seen = False
        """True once a backward has begun."""

        self.last_scalar: Tensor | None = None
        """The last scalar with a gradient that the loss has computed."""

        self.part = "model"
        """What is running: ``model`` or ``loss``."""

        self.place: Place | None = None
        """Place of all operations while it is set, instead of the one that the frames say."""

        self.bad: list[Operation] = []
        self._in_loss = False
        self._tape = tape
        self._modules = Modules(model, prefix)
        self._names = names
        self._count = 0
        self._recorded: dict[int, Place] = {}
        self._by_memory: dict[int, Operation] = {}
        self._producers: dict[tuple[Any, ...], str] = {}

    @not_compiled
    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run ``function`` and note what is to be noted."""
        given = (tuple(args), dict(kwargs or {}))
        if not self.active:
            return function(*given[0], **given[1])
        before, own = given, False
        try:
            own = is_own()
            if not own:
                self._note_place()
            if not own and writes_in_place(function):
                before = tree_map(_copied, given)
        except Exception as error:
            let_through(error)
            self._fail(error)
        result = function(*given[0], **given[1])
        if self.active and not own:
            try:
                self._note(function, given, before, result)
            except Exception as error:
                let_through(error)
                self._fail(error)
        return result

    def know(self, owner: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Name more tensors that the step is computed from."""
        self._names.add(owner, tensors)

    def loss_begins(self) -> None:
        """The model has returned: what comes now is the loss."""
        self.part = "loss"
        self._in_loss = True

    def _fail(self, error: Exception) -> None:
        """The step of the user goes on, whatever happens in here."""
        self.active = False
        self.failure = error

    def _note(self, function: Any, given: Arguments, before: Arguments, result: Any) -> None:
        self._count += 1
        outputs = list(_tensors(result))
        if not outputs and before is not given:
            # Operations on lists of tensors give nothing back and change what they were given.
            outputs = list(_tensors(given))
        self._look(function, given, before, outputs)
        if autograd_node() is not None or (self._in_loss and begins_backward()):
            if self._in_loss and self._tape is not None:
                self._tape.backward_begins(next(_tensors(given)))
            self.backward_seen, self._in_loss = True, False
        elif self._in_loss:
            self._note_loss(function, given, result, outputs)

    def made(self, tensor: Tensor) -> Operation | None:
        """The operation that last left something bad in the memory of ``tensor``."""
        return self._by_memory.get(memory(tensor))

    def origin(self, symptom: Tensor | None = None) -> Origin | None:
        """Where the value came from that made ``symptom`` bad; without one, the first bad value of the step."""
        if symptom is not None:
            last = self.made(symptom)
            return None if last is None else first_cause(last)
        return next((first_cause(operation) for operation in self.bad if not operation.written), None)

    def first_of(self, gradients: Sequence[Tensor]) -> Origin | None:
        """Where the first of several bad gradients came from; those that were dealt with within the backward are left out."""
        made = [operation for operation in map(self.made, gradients) if operation is not None]
        if made:
            return first_cause(min(made, key=lambda operation: operation.number))
        return next(
            (first_cause(operation) for operation in self.bad if operation.node and not operation.written), None
        )

    def _note_loss(self, function: Any, given: Arguments, result: Any, outputs: Sequence[Tensor]) -> None:
        if self._tape is not None:
            place, frame, _ = self._here()
            self._tape.note(function, *given, result, place, frame)
        if torch.is_grad_enabled():
            first = outputs[0] if outputs else None
            if first is not None and first.numel() == 1 and first.is_floating_point():
                self.last_scalar = first

    def _note_place(self) -> None:
        """Remember for the backward on which line the node was recorded that this operation belongs to."""
        if not torch.is_grad_enabled():
            return
        number = next_sequence_number() - 1
        if number not in self._recorded:
            self._recorded[number] = self.place or self._here()[0]

    def _here(self) -> tuple[Place, FrameType | None, str]:
        """The place of the running operation, the user's frame there, and the node whose backward it is part of."""
        node: Any = autograd_node()
        place, frame, recomputing = caller_place(self._modules, self.part)
        if node is None or recomputing:
            return self.place or place, frame, ""
        name = str(node.name()).rpartition("::")[2]
        if frame is not None:
            return place._replace(part="backward"), frame, name
        return self._recorded.get(node._sequence_nr(), Place(part="backward")), None, name

    def _look(self, function: Any, given: Arguments, before: Arguments, outputs: Sequence[Tensor]) -> None:
        name = display_name(function)
        taken = {memory(t) for t in _tensors(given)}
        made_by = next((self._producers.get(_key(t), "") for t in _tensors(given)), "") if name in _HANDED_ON else name
        if name == "exp" and any(self._of_written(tensor) for tensor in _tensors(given)):
            made_by = _WEIGHTS
        elif name in _SUMS and any(self._producers.get(_key(tensor)) == _WEIGHTS for tensor in _tensors(given)):
            made_by = _SUM_OF_WEIGHTS
        for output in outputs:
            where = memory(output)
            if not is_finite(output):
                if len(self.bad) < _MOST:
                    operation = self._noted(function, given, before, output)
                    self.bad.append(operation)
                    self._by_memory[where] = operation
            elif where not in taken or _is_whole(output):
                self._by_memory.pop(where, None)
            self._producers[_key(output)] = made_by

    def _of_written(self, tensor: Tensor) -> bool:
        """True for a tensor that holds −inf of a mask."""
        made = self._by_memory.get(memory(tensor))
        return made is not None and made.written

    def _noted(self, function: Any, given: Arguments, before: Arguments, output: Tensor) -> Operation:
        name = display_name(function)
        place, frame, node = self._here()
        operands = list(zip(_tensors(given), _tensors(before), strict=True))
        if name in _OVERWRITES and writes_in_place(function):
            operands = operands[1:]
        unread = _unread_statistics(function, given)
        fed = [now for now, then in operands if not is_finite(then) and all(now is not t for t in unread)]
        sources: list[Operation | Named] = []
        for tensor in fed:
            known = self._by_memory.get(memory(tensor))
            sources.append(known if known is not None else self._names.named(tensor, frame))
        told = operands[-1:] if name == "div" else operands[:1]
        producer = next((self._producers.get(_key(now), "") for now, _ in told), "")
        noted = Operation(
            self._count, name, place, node, not fed, kinds(output), output.numel(), _name(output.dtype), sources=sources
        )
        # Most bad values have come in: only of an operation that answers for one are the sizes worth their time.
        if all(_on_purpose(source, name) for source in sources):
            noted.count = int((~torch.isfinite(output)).sum())
            noted.rows = tuple(bad_rows(output)[:16])
            noted.sizes = sizes(function, *before, output.detach(), producer)
            by_mask = noted.sizes.kind == "zero-over-zero" and producer == _SUM_OF_WEIGHTS
            if by_mask or (noted.sizes.kind == "inf-minus-inf" and _less_its_greatest(noted)):
                noted.sizes = emptied(noted.sizes, f"{int(output.isnan().sum())} of {noted.entries} entries")
        elif name == "mul" and not node:
            noted.masks = masks_all([then for _, then in operands])
        return noted


class Origin(NamedTuple):
    """Where a bad value came from."""

    operation: Operation
    """The operation that made it, or that was the first to read ``tensor``."""

    tensor: Named | None = None
    """The tensor from outside that held it."""

    masked: bool = False
    """True when it was multiplied by zero on the way, which does not remove it."""


def first_cause(operation: Operation) -> Origin:
    """Follow bad operands back to the operation that made them, or to the tensor from outside that held them.

    Infinities that were written on purpose are no cause: what could not deal with them is. The −inf of a tensor from outside is
    on purpose only where a softmax is what reads it.
    """
    found = _followed(operation)
    if found.tensor is None and found.operation.sizes.kind != "all-masked":
        bias = mask_behind(found.operation)
        if bias is not None and not bias.mask:
            return found._replace(tensor=bias)
    return found


def _followed(operation: Operation) -> Origin:
    seen: set[int] = set()
    reader, masked = operation, False
    while not operation.made_here and id(operation) not in seen:
        seen.add(id(operation))
        if operation.name not in _HANDED_ON:
            reader = operation
        masked = masked or operation.masks
        faults = [source for source in operation.sources if not _on_purpose(source, operation.name)]
        # A tensor with a name says more than what was computed from it beside it.
        first = next((s for s in faults if isinstance(s, Named) and s.owner != "unknown"), None)
        if first is not None:
            return Origin(reader, first, masked)
        earlier = next((s for s in faults if isinstance(s, Operation)), None)
        if earlier is None:
            unknown = next((s for s in faults if isinstance(s, Named)), None)
            return Origin(reader if unknown else operation, unknown, masked)
        operation = earlier
    return Origin(operation, None, masked)


def _unread_statistics(function: Any, given: Arguments) -> list[Tensor]:
    """Running statistics that a normalisation in training mode writes and does not read: an earlier pass may have spoilt them."""
    arguments, keywords = given
    said = dict(zip((a.name for a in function._schema.arguments), arguments, strict=False)) | keywords
    if "running_mean" not in said or not said.get("training", "update" in function.__name__):
        return []
    return [t for t in (said["running_mean"], said.get("running_var")) if isinstance(t, Tensor)]


_GREATEST = ("amax", "max", "scatter_reduce", "segment_reduce", "logsumexp")
"""What gives −inf for a group of which every score is −inf; of sums over groups none does."""

_SUMS = ("sum", "scatter_add", "index_add", "scatter_reduce", "segment_reduce")

_WEIGHTS, _SUM_OF_WEIGHTS = "exp of masked scores", "the sum of exp of masked scores"


def _less_its_greatest(difference: Operation) -> bool:
    """True for −inf − (−inf) of masked scores and the greatest of their group: a softmax in parts, as over edges."""
    if difference.sizes.facts.get("operands") != [-math.inf, -math.inf] or len(difference.sources) != 2:
        return False
    scores, greatest = (_before_handing_on(source) for source in difference.sources)
    if not isinstance(greatest, Operation) or not greatest.name.endswith(_GREATEST):
        return False
    return any(_before_handing_on(source) is scores for source in greatest.sources)


def _before_handing_on(source: Operation | Named) -> Operation | Named:
    """What made the values that views, copies and gathers have handed on."""
    while isinstance(source, Operation) and source.name in _HANDED_ON and source.sources:
        source = source.sources[0]
    return source


def _tensors(value: Any) -> Iterator[Tensor]:
    """Those inside ``value``; of one that is not dense the numbers that it keeps, in which what is bad lies."""
    return (stored(t) for t in tree_leaves(value) if isinstance(t, Tensor))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _key(tensor: Tensor) -> tuple[Any, ...]:
    return memory(tensor), tensor.storage_offset() if tensor.layout is torch.strided else 0, tuple(tensor.shape)


def _is_whole(tensor: Tensor) -> bool:
    """True when the tensor covers all of its memory."""
    try:
        return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    except (RuntimeError, NotImplementedError):
        return False
