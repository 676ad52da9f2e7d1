"""A copy of a model that runs beside the user's: no hooks of theirs, no trace left on it, on the generators, on the inputs."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary
from torch_geometric.data.data import BaseData
from torch_geometric.inspector import Inspector

from gnnstab.errors import GnnstabError, UsageError, let_through
from gnnstab.left_out import left_out
from gnnstab.own_draws import generator_of
from gnnstab.probe.replaying._own_state import Guard
from gnnstab.probe.replaying.computing_hooks import Hooked, computing_hooks, foreign, keep_notes, own_hook
from gnnstab.probe.replaying.known import Known, known_of
from gnnstab.probe.replaying.outside import keep_around
from gnnstab.probe.replaying.reach import (
    CONTAINERS,
    FLAGS,
    SHARED,
    held_by,
    holds_nothing,
    own_copy,
    own_function,
    shared_with,
)
from gnnstab.randomness import deep_copy, given_back, same_random_state

HOOK_TABLES = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
"""Endings of the attribute names under which torch and torch_geometric keep hooks."""


class Autocast(NamedTuple):
    """The autocast state of a forward pass."""

    device_type: str
    dtype: torch.dtype
    enabled: bool = True

    @classmethod
    def of(cls, model: nn.Module, precision: str) -> Autocast:
        """That of ``fp16`` or ``bf16`` on the model's device; for ``fp32`` one that is off."""
        return cls(device_of(model).type, DTYPES.get(precision, torch.bfloat16), precision in DTYPES)

    def context(self) -> torch.autocast:
        """To run a forward in. Without the cache: weights may change between two forwards, some of which keep no gradients."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.enabled, cache_enabled=False)


DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
NO_AUTOCAST = Autocast("cpu", torch.bfloat16, False)


class ForwardInputs(NamedTuple):
    """One outer forward, ready to be run again; of the run's own, held by reference until the end of the step."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012  # nobody changes it
    rng: Any = None
    """As `rng_snapshot` gives it; None for the present state."""

    autocast: Autocast = NO_AUTOCAST
    mode: str = "train"
    answer: Any = None
    """Of a forward that is kept beyond its step: the `Answer` of the forward tracker."""

    @property
    def grad(self) -> bool:
        """Whether gradients were enabled."""
        return self.mode == "train" or self.mode.endswith("-grad")

    def mapped(self, change: Callable[[Any], Any]) -> ForwardInputs:
        """The same forward with other tensors, see `mapped`."""
        return self._replace(args=mapped(self.args, change), kwargs=mapped(self.kwargs, change))


def device_of(model: nn.Module) -> torch.device:
    """That of the first parameter that has numbers."""
    return next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))


def rng_snapshot() -> dict[str, Any]:
    """The generator states to hand to a later replay: ``cpu`` (a tensor) and ``cuda`` (device index → tensor)."""
    cpu = generator_of("cpu").get_state()
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {"cpu": cpu, "cuda": {}}
    return {"cpu": cpu, "cuda": {i: generator_of(f"cuda:{i}").get_state() for i in range(torch.cuda.device_count())}}


def replica(model: nn.Module, known: Known | None = None) -> nn.Module:
    """A deep copy without the hooks that only look on, and without ``message`` overrides on instances.

    Those never enter the copy, so whatever they hold on to (a logger, an open file) is not copied. Kept are the hooks that are part of what the
    model computes (`computing_hooks`), or write into what it holds (`keep_notes`). ``known``: what earlier copies have shown.

    Raises:
        UsageError: The model holds something that cannot be copied, or a copy would wait for other processes.
    """
    shared = known_of(model)
    if shared is not None and known is not None and shared.copied and not known.copied:
        known.learn(shared)
    known = shared if known is None else known
    memo: dict[int, Any] = {}
    hooks, notes = list[Hooked](), list[Hooked]()
    for module in model.modules():
        kept = computing_hooks(module)
        # Most of a module is names, flags and empty tables, for each of which `copy.deepcopy` would take a call or several.
        memo.update(zip(map(id, vars(module)), vars(module), strict=True))
        for name, value in vars(module).items():
            if type(value) in FLAGS:
                memo[id(value)] = value
            elif type(value) in CONTAINERS and not value:
                memo[id(value)] = type(value)()
            elif name.endswith(HOOK_TABLES) and isinstance(value, dict):
                memo[id(value)] = own = type(value)()
                # The tables with flags (`_with_kwargs`) share the keys of the tables that hold the hooks.
                hooks += [(own, k, v) for k, v in value.items() if k in kept]
                notes += [(own, k, v) for k, v in value.items() if k not in kept and foreign(v, name)]
            elif name == "message":
                memo[id(value)] = None
            elif isinstance(value, Inspector):
                # What the signatures of its class say: no forward changes it, and it is half of a layer.
                memo[id(value)] = value
    memo.update(without_history(model))
    try:
        twin = deep_copy(model, memo, again=known is not None and known.copied)
        for own, key, hook in hooks:  # They may hang on the model.
            own[key] = own_hook(hook, memo, model)
    except Exception as error:
        let_through(error)
        raise left_out(f"{type(model).__name__} cannot be copied for a replay: {error}") from error
    hooks += keep_notes(notes, memo, model)
    functions = _with_own_closures(twin, memo)
    for module in twin.modules():
        vars(module).pop("message", None)
        if getattr(module, "_compiled_call_impl", None) is not None:
            module._compiled_call_impl = None
    if known is None:
        return _guarded(apart(twin, model, functions), model, memo)
    if not known.copied:
        # With functions and hooks each copy has some of its own.
        apart(twin, model, functions, None if functions or hooks else known.around)
    guarded = _guarded(twin, model, memo, known)
    if shared is not None and not shared.copied:
        shared.learn(known)
    return guarded


def _with_own_closures(twin: nn.Module, memo: dict[int, Any]) -> list[FunctionType]:
    """Give functions that hang on a copy, which deepcopy keeps as they are, the copy's own parts in their closures; returns them."""
    for module in twin.modules():
        for name, value in list(vars(module).items()):
            if type(value) is FunctionType and value.__closure__:
                try:
                    vars(module)[name] = own_function(value, memo)
                except Exception as error:  # What the function shares is then found, and said.
                    let_through(error)
    return [value for value in memo.values() if isinstance(value, FunctionType)]


def apart(
    twin: nn.Module, model: nn.Module, functions: Iterable[FunctionType] = (), code: list[Any] | None = None
) -> nn.Module:
    """``twin``, if running it changes nothing of ``model``, of which it is a copy, and of the run around it.

    ``functions`` are over the copy's own parts, see `own_function`; ``code`` as of `shared_with`.

    Raises:
        UsageError: It would.
    """
    shared = shared_with(twin, model, functions, code)
    if shared:
        raise left_out(f"{type(model).__name__} cannot be copied for a replay: its copy shares {shared} {SHARED}")
    return twin


def whole_copy(model: nn.Module, advice: str = "", kind: type[GnnstabError] = UsageError) -> nn.Module:
    """A deep copy with all hooks; raises ``kind``, with ``advice`` at the end, where there can be none."""
    memo = without_history(model)
    try:
        twin = deep_copy(model, memo)
        return _guarded(apart(twin, model, _with_own_closures(twin, memo)), model, memo)
    except Exception as error:
        let_through(error)
        why = (str(error).splitlines() or [""])[0][:160]
        raise kind(f"{type(model).__name__} cannot be copied ({type(error).__name__}: {why}){advice}") from error


def without_history(model: nn.Module) -> dict[int, Any]:
    """The memo with which `copy.deepcopy` copies the numbers of a tensor that a module keeps from an earlier forward.

    Such a tensor still hangs in its autograd graph and refuses to be copied.
    """
    tensors = (t for value in held_by(model) for _, t in tensors_in(value))
    return {id(t): t.detach().clone() for t in tensors if t.grad_fn is not None}


def left_by_forward(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors that modules hold as plain attributes, as a forward leaves a penalty for the loss: ``enc.kl``, ``aux.0``."""
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute not in ("_parameters", "_buffers", "_modules") and not attribute.endswith(HOOK_TABLES):
                yield from tensors_in(value, f"{path}.{attribute}".lstrip("."))


_WRAPPERS = ("OptimizedModule", "DistributedDataParallel", "DataParallel")


def unwrap(model: nn.Module) -> tuple[nn.Module, str]:
    """The model inside ``torch.compile`` and ``DistributedDataParallel`` wrappers, and the prefix of its module paths.

    Raises:
        UsageError: The model as a whole was scripted or traced.
    """
    prefix = ""
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError(
            f"{type(model).__name__}: a scripted or traced model runs no Python code that could be watched; give gnnstab the module as it "
            "was before torch.jit.script or torch.jit.trace"
        )
    while True:
        for name in ("_orig_mod", "module"):
            inner = model._modules.get(name)
            if inner is not None and len(model._modules) == 1 and type(model).__name__ in _WRAPPERS:
                model, prefix = inner, f"{prefix}{name}."
                break
        else:
            return model, prefix


def run_replica(twin: nn.Module, inputs: ForwardInputs) -> Any:
    """One forward of ``twin`` on copies of the inputs, without autograd, from their random numbers."""
    given = copied(inputs)
    with forked_rng(inputs.rng), torch.no_grad(), inputs.autocast.context():
        return eager(twin)(*given.args, **given.kwargs)


def eager(twin: nn.Module) -> Callable[..., Any]:
    """The call of a copy that runs all of its Python code, and is refused what would change the run's own tensors.

    Hooks registered after compilation are not seen by compiled parts; run those eagerly.

    Raises:
        UsageError: When called: an operation would write into a tensor that the copy shares with the run.
    """
    compiled = any(type(m).__name__ == "OptimizedModule" for m in twin.modules())
    run = torch.compiler.disable(twin) if compiled else twin  # type: ignore[no-untyped-call]
    guard = GUARDS.get(twin)

    def called(*args: Any, **kwargs: Any) -> Any:
        with given_back():
            keep_around(twin, None if guard is None else guard.around)
            return run(*args, **kwargs) if guard is None else guard(twin, run, args, kwargs)

    return called


GUARDS: MutableMapping[nn.Module, Guard] = WeakIdKeyDictionary()
"""Of every copy; nothing hangs on the copy itself, which the user may get."""


def _guarded(twin: nn.Module, model: nn.Module, memo: dict[int, Any], known: Known | None = None) -> nn.Module:
    guard = GUARDS[twin] = Guard(memo.values(), tensors_in)
    if known is not None:
        guard.know(known)
    elif (own := GUARDS.get(model)) is not None:  # A copy of a copy does what that does.
        guard.seen = own.seen
    return twin


@contextmanager
def forked_rng(state: Mapping[str, Any] | Tensor | None = None) -> Iterator[None]:
    """Set every generator to ``state`` inside, and give all of them back as they were."""
    with same_random_state():
        _set_rng(state)
        yield


def _set_rng(state: Mapping[str, Any] | Tensor | None) -> None:
    if state is None:
        return
    states: Mapping[str, Any] = {"cpu": state} if isinstance(state, Tensor) else state
    if states.get("cpu") is not None:
        generator_of("cpu").set_state(states["cpu"].cpu())
    for device, value in (states.get("cuda") or {}).items() if torch.cuda.is_initialized() else ():  # type: ignore[no-untyped-call]
        generator_of(f"cuda:{int(device)}").set_state(value.cpu())


def mapped(value: Any, change: Callable[[Any], Any], other: Callable[[Any], Any] = lambda value: value) -> Any:
    """``value`` with ``change(tensor)`` in the place of every tensor, through containers and torch_geometric data objects.

    Whatever is neither becomes ``other(it)``.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, BaseData):
        data = copy.copy(value)
        for store in data.stores:
            for key, item in list(store.items()):
                if item is not None:
                    store[key] = mapped(item, change, other)
        return data
    if isinstance(value, (dict, UserDict)):
        return _refilled(value, {k: mapped(v, change, other) for k, v in value.items()})
    if isinstance(value, (list, tuple)):
        return _filled(value, [mapped(v, change, other) for v in value])
    return other(value)


def _refilled(value: dict[Any, Any] | UserDict[Any, Any], items: dict[Any, Any]) -> Any:
    """One of the class of ``value``, whose methods and attributes a model may use, with other values."""
    if type(value) is dict:
        return items
    try:
        twin = copy.copy(value)
        twin.update(items)
    except Exception as error:  # A class of the user's may forbid either.
        let_through(error)
        return items
    return twin


def _filled(value: list[Any] | tuple[Any, ...], items: list[Any]) -> Any:
    """One like ``value`` with other items; a subclass may take anything when it is made."""
    if isinstance(value, list):
        twin = copy.copy(value)
        twin[:] = items
        return twin
    try:
        return tuple.__new__(type(value), items)
    except TypeError:  # torch's own in C, which only their own ``__new__`` makes.
        return type(value)(items)


def copied(value: Any) -> Any:
    """``value`` with every tensor cloned, floating ones without their history, and a copy of whatever else can change.

    Raises:
        UsageError: Something in it has no copy: an iterator, a queue, a tensor whose memory has been freed, a list that holds itself.
    """
    try:
        return mapped(value, _clone, own_copy)
    except RecursionError as error:
        raise UsageError("the model is called with a container that holds itself") from error


def _clone(tensor: Tensor) -> Tensor:
    if type(tensor) is Tensor and tensor.layout is torch.strided and not tensor.is_meta and tensor.numel():
        last = tensor.storage_offset() + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        if tensor.untyped_storage().nbytes() < (last + 1) * tensor.element_size():
            raise UsageError("the memory of a tensor that the model was called with has been freed")
    return tensor.detach().clone() if tensor.is_floating_point() else tensor.clone()


def tracked(value: Any) -> Any:
    """A copy of the arguments whose floating tensors have a gradient, so that the first layer's input has one too.

    The copies are no leaves, so that a model may change its input in place, and the caller's tensors stay as they are.
    """
    return mapped(value, lambda t: (t.detach().requires_grad_() if t.is_floating_point() else t).clone(), own_copy)


def on_device(value: Any, device: torch.device) -> Any:
    """The arguments on a device; what cannot move is handed on as it is."""
    return mapped(value, lambda t: t.to(device))


def tensors_in(value: Any, name: str = "", within: tuple[Any, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside ``value`` with the name of where it sits: ``x``, ``0``, ``paper.x``, ``a__to__b.edge_index``.

    Containers, data of torch_geometric, dataclasses and objects of the user's own classes are looked into; ``within`` are those around ``value``.
    """
    if isinstance(value, Tensor):
        yield name, value
    elif not any(value is one for one in within):
        for own, item in parts_of(value):
            if not holds_nothing(item):
                yield from tensors_in(item, f"{name}.{own}" if name else own, (*within, value))


def parts_of(value: Any) -> Iterator[tuple[str, Any]]:
    """(name, part) of what may hold tensors."""
    if isinstance(value, (list, tuple)):
        yield from ((str(position), item) for position, item in enumerate(value))
    elif isinstance(value, (dict, UserDict)):
        for key, item in value.items():
            yield "__".join(map(str, key)) if isinstance(key, tuple) else str(key), item
    elif isinstance(value, BaseData):
        yield from parts_of(value.to_dict())
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name, None)) for field in fields(value))
