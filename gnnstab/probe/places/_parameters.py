"""Parameters that a backward leaves without a gradient, and weights that the model does not own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch_geometric.nn import MessagePassing

from gnnstab.layers.lazy import unwritten
from gnnstab.left_out import left_out
from gnnstab.probe.batches.roles import is_target
from gnnstab.probe.places import _autograd as autograd
from gnnstab.probe.places import _unmatched as unmatched
from gnnstab.records.vocabulary import PLACE_NOT_HELD
from gnnstab.sharding import waits_for_others

if TYPE_CHECKING:
    from gnnstab.probe.places._reach import Reach
    from gnnstab.probe.places.survey import ForwardView


CUT_OFF, OUT_OF_REACH, NEVER_CALLED = "cut off", "out of reach", "never called"
"""Why parameters have no gradient: the output depends on them, and no derivative leads back; a module was called with them,
and the output depends on nothing of what it returned; no module was called with them."""

THROWN_AWAY = "thrown away"
"""The same as out of reach, of a part of every layer, or of a layer in front of one like it that the output depends on."""

UNFED = "unfed"
"""The same as never called, of a map that every layer of a kind holds for features of the edges which no output depends on."""

UNMATCHED = "unmatched"
"""The same as never called, of layers under a key that names nothing of the batch, beside a relation of it that nothing reads."""

NO_HISTORY = "no history"
"""The loss depends on no parameter at all, so that no backward of it can be taken."""

OTHER_HEAD = "another head"
"""Why parameters have no gradient: they could stand where the model's last map stands, and this forward did not use them."""


def rows(seen: ForwardView, leaves: list[Tensor], reach: Reach) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """After a backward: ``leaves`` are the tensors that its loss depends on."""
    without: dict[str, list[str]] = {CUT_OFF: [], OUT_OF_REACH: [], NEVER_CALLED: [], OTHER_HEAD: []}
    heads = tuple(f"{head}." for head in _other_heads(seen))
    lazy = unwritten(seen.model)
    for name, parameter in seen.model.named_parameters():
        if name in lazy:
            continue
        if parameter.requires_grad and parameter.grad is None and parameter.numel() and not _left_out(seen, name):
            owner = name.rpartition(".")[0]
            called = not owner or owner in seen.calls.called or _used(parameter, leaves)
            why = OUT_OF_REACH if called else OTHER_HEAD if name.startswith(heads) else NEVER_CALLED
            without[why].append(name)
    if leaves:
        cut = reach.of([*without[OUT_OF_REACH], *without[NEVER_CALLED]], called=without[OUT_OF_REACH])
        without = {why: [name for name in names if name not in cut] for why, names in without.items()} | {
            CUT_OFF: [name for names in without.values() for name in names if name in cut]
        }
        if _thrown_away(seen, without[OUT_OF_REACH]):
            without |= {THROWN_AWAY: without[OUT_OF_REACH], OUT_OF_REACH: []}
        unfed = _unfed(seen, without[NEVER_CALLED], reach)
        strange = list(unmatched.found(seen, without[NEVER_CALLED], reach))
        lost = [name for one in strange for name in one.parameters]
        without |= {UNFED: unfed, UNMATCHED: lost}
        without[NEVER_CALLED] = [name for name in without[NEVER_CALLED] if name not in {*unfed, *lost}]
        for why, names in without.items():
            if names:
                detail: dict[str, Any] = {"parameters": names[:200], "why": why}
                if why == UNMATCHED:
                    detail |= {"key": strange[0].key, "relation": strange[0].relation}
                yield "place.without_gradient", names[0], float(len(names)), detail
    elif names := [name for part in without.values() for name in part]:
        yield "place.without_gradient", names[0], float(len(names)), {"parameters": names[:200], "why": NO_HISTORY}
    idle = [name for name, _ in seen.model.named_parameters() if _left_out(seen, name)]
    idle += _without_effect(seen, reach) if leaves else []
    if idle:
        yield "place.idle", idle[0], float(len(idle)), {"parameters": idle[:200]}
    strangers = _not_owned(seen.model, leaves, list(seen.batch.values()))
    if strangers:
        yield "place.not_owned", strangers[0], float(len(strangers)), {"parameters": strangers[:50]}


def made(model: nn.Module, ran: nn.Module) -> list[tuple[str, str, float, dict[str, Any]]]:
    """Trainable parameters that a copy which ``ran`` has and the model has not: no optimizer that was built before holds them."""
    own = {name for name, _ in model.named_parameters()}
    late = [name for name, p in ran.named_parameters() if p.requires_grad and name not in own]
    if not late:
        return []
    detail = {"parameters": late[:50], "count": len(late), "late": len(late)}
    return [(PLACE_NOT_HELD, late[0], float(len(late)), detail)]


class NotHeld:
    """`not_held` from look to look at one model, which may make parameters of its own while it runs."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {name for name, _ in model.named_parameters()}
        self._began: dict[str, float] = {}

    @property
    def any_so_far(self) -> bool:
        """True once a look has found something, also where a later one finds nothing."""
        return bool(self._began)

    def look(self, model: nn.Module, groups: Iterable[Mapping[str, Any]], ran: Mapping[str, int]) -> dict[str, Any]:
        """What no optimizer holds by now; ``late`` counts those that the model did not have at first.

        ``ran`` is name → id of the tensor that the latest forward of the full tier found there.
        """
        found = not_held(model, groups, self._began)
        own = dict(model.named_parameters())
        if any(ran.get(name, id(own[name])) != id(own[name]) for name in found.get("parameters", ())):
            left_out(
                "the model runs with other parameters than its own, as by functional_call: what trains was not seen"
            )
            return {}
        late = sum(name not in self._names for name in found.get("parameters", ()))
        return {**found, "late": late} if late else found


def not_held(
    model: nn.Module, groups: Iterable[Mapping[str, Any]], began: dict[str, float] | None = None
) -> dict[str, Any]:
    """What of a model no optimizer moves: names, their share of all trainable entries, how many tensors the optimizers hold, and how many of these are ``strangers`` to the model.

    ``groups`` are the parameter groups of all optimizers. Empty when they hold everything. ``began`` keeps a sum of every
    parameter that none holds from call to call: one that has moved all the same is left out, as where the optimizer
    holds master copies in another precision, or one flat tensor that the parameters are views of.
    """
    held = {id(p) for group in groups for p in group["params"]}
    lazy = unwritten(model)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad and name not in lazy}
    missing = [name for name, p in trainable.items() if id(p) not in held]
    if began is not None and held and not waits_for_others(model):
        sums = {name: float(trainable[name].detach().abs().double().sum()) for name in missing}
        missing = [name for name in missing if began.setdefault(name, sums[name]) == sums[name]]
    if not missing or not held:
        return {}
    total = sum(p.numel() for p in trainable.values())
    share = sum(trainable[name].numel() for name in missing) / max(1, total)
    strangers = len(held - {id(p) for p in model.parameters()})
    count = {"count": len(missing), "strangers": strangers, "held": len(held)}
    return {"parameters": missing[:50], "share": share, **count}


def _without_effect(seen: ForwardView, reach: Reach) -> list[str]:
    """Parameters with a gradient of exactly 0 beside others that train, and an output that stays when they are changed: what
    makes the scores of targets that have one neighbour, as of the relation that is read."""
    given = {
        name: p.grad
        for name, p in seen.model.named_parameters()
        if p.grad is not None and p.grad.layout is torch.strided and p.numel()
    }
    zero = [name for name, gradient in given.items() if not gradient.any()]
    if not zero or len(zero) == len(given):
        return []
    used = reach.of(zero, called=zero)
    return [name for name in zero if name not in used]


def _other_heads(seen: ForwardView) -> list[str]:
    """Modules that no part of was called and that take what the last map of the forward takes, to another width.

    A head for another task or a later phase looks so. A layer that was forgotten does not: in the middle of a network it
    would keep the width, and one that fits nowhere takes another.
    """
    weights = [getattr(call.module, "weight", None) for call in seen.calls.all if call.computes]
    maps = [weight for weight in weights if isinstance(weight, Tensor) and weight.dim() == 2]
    if not maps:
        return []
    width, found = maps[-1].size(1), list[str]()
    for name, module in seen.model.named_modules():
        if not name or name.startswith(tuple(f"{head}." for head in found)):
            continue
        called = any(one == name or one.startswith(f"{name}.") for one in seen.calls.called)
        matrices = [p for p in module.parameters() if not is_lazy(p) and p.dim() == 2]
        # A table is looked up and no map; one that nothing reads has lost its way, as by ``.data``.
        passes = any(isinstance(part, (MessagePassing, nn.Embedding)) for part in module.modules())
        if not called and not passes and matrices and matrices[0].size(1) == width != matrices[-1].size(0):
            found.append(name)
    return found


def _thrown_away(seen: ForwardView, silent: Iterable[str]) -> bool:
    """True where the results of a part of every layer are lost, or of one layer in front of another of its kind.

    The last layer of two streams may end in an update that nothing needs, a kind of nodes may have no reader (so nothing is said of
    several kinds of edges), and of several heads one may be picked: none of these is meant.
    """
    if sum(t.dim() == 2 and len(t) == 2 and not t.is_floating_point() for t in seen.batch.values()) > 1:
        return False
    lost = {name.rpartition(".")[0] for name in silent}
    read = {id(leaf) for leaf in autograd.leaves(seen.outputs)}
    lost -= {
        name for name in lost if any(id(p) in read for p in seen.model.get_submodule(name).parameters(recurse=False))
    }
    shapes = {t.shape for t in seen.outputs}
    alike: dict[Any, list[str]] = {}
    for call in seen.calls.all:
        members = alike.setdefault((_role(seen.model, call.name), type(call.module)), [])
        answers = any(t.shape in shapes for t in call.leaving)
        if call.name not in members and not answers and any(True for _ in call.module.parameters(recurse=False)):
            members.append(call.name)
    return any(
        len(members) > 1 and (lost.issuperset(members) or not lost.isdisjoint(members[: _last(members, lost)]))
        for (role, _), members in alike.items()
        if role is not None
    )


def _unfed(seen: ForwardView, silent: Sequence[str], reach: Reach) -> list[str]:
    """Of the parameters that no forward calls: maps of ``silent`` for (edges, columns) numbers that the forward is given and does not read.

    They stand in every layer of their kind that is called, and are as wide as these columns; none else of the batch is as wide, so
    that they can be meant for nothing else.
    """
    pairs = {t.size(1) for t in seen.batch.values() if t.dim() == 2 and len(t) == 2 and not t.is_floating_point()}
    wide = [seen.batch[name] for name in seen.arguments if not is_target(name)]
    wide = [t for t in wide if t.dim() == 2 and t.is_floating_point() and t.layout is torch.strided]
    edges = [t for t in wide if len(t) in pairs - seen.nodes]
    if not silent or len(edges) != 1 or any(t.size(1) == edges[0].size(1) for t in wide if t is not edges[0]):
        return []
    columns = edges[0].size(1)
    named, kinds = set(silent), dict[Any, list[str]]()
    for call in seen.calls.all:
        if isinstance(call.module, MessagePassing) and call.name not in kinds.setdefault(type(call.module), []):
            kinds[type(call.module)].append(call.name)
    found = list[str]()
    for layers in kinds.values():
        for own, weight in seen.model.get_submodule(layers[0]).named_parameters():
            maps = [f"{layer}.{own}" for layer in layers]
            if not is_lazy(weight) and weight.dim() == 2 and weight.size(1) == columns and named.issuperset(maps):
                found += [n for one in maps for n in (one, f"{one.removesuffix('weight')}bias") if n in named]
    return found if found and reach.ignores(edges[0]) else []


def _last(members: list[str], lost: set[str]) -> int:
    """Position of the last member that is read; 0 for none."""
    return max((i for i, name in enumerate(members) if name not in lost), default=0)


def _role(model: nn.Module, name: str) -> str | None:
    """The name of a module without the number of its layer; None within a dictionary, as of relations and kinds of nodes."""
    role, module = list[str](), model
    for part in name.split("."):
        inner = getattr(module, part)
        if isinstance(module, nn.ModuleDict):
            return None
        steps = isinstance(module, nn.Sequential) and next(inner.children(), None) is None
        role.append(part if steps else re.sub(r"\d+", "#", part))
        module = inner
    return ".".join(role)


def _used(parameter: Tensor, leaves: list[Tensor]) -> bool:
    return any(leaf is parameter for leaf in leaves)


def _left_out(seen: ForwardView, name: str) -> bool:
    """True for the root weight of a layer that was asked to have none: PyG keeps the module and never calls it."""
    owner = name.rpartition(".")[0]
    layer = owner.rpartition(".")[0]
    if owner in seen.calls.called or not owner:
        return False
    return getattr(seen.model.get_submodule(layer), "root_weight", True) is False


def _not_owned(model: nn.Module, leaves: list[Tensor], given: list[Tensor]) -> list[str]:
    """Names of the trainable weights that the loss depends on and ``model.parameters()`` does not hold."""
    owned = {id(p) for p in model.parameters()} | {id(t) for t in given}
    missing = [leaf for leaf in leaves if isinstance(leaf, nn.Parameter) and id(leaf) not in owned]
    if not missing:
        return []
    known = {id(p): name for name, p in _hidden(model)}
    return [known.get(id(leaf), f"a parameter of shape {tuple(leaf.shape)}") for leaf in missing]


def _hidden(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of modules that are kept in plain lists, tuples and dictionaries."""
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute.startswith("_"):
                continue
            yield from _within(value, f"{path}.{attribute}" if path else attribute)


def _within(value: Any, name: str) -> Iterator[tuple[str, nn.Parameter]]:
    if isinstance(value, nn.Parameter):
        yield name, value
    elif isinstance(value, nn.Module):
        yield from ((f"{name}.{inner}", p) for inner, p in value.named_parameters())
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from _within(item, f"{name}[{position}]")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _within(item, f"{name}[{key!r}]")


def ungiven(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> list[str] | None:
    """Names of trainable parameters whose gradient, and all that an optimizer keeps of it, is missing or exactly 0.

    None where no gradient is left at all and no optimizer keeps anything: then nothing is known of any. A decay that is added to
    gradients moves moments too, so that moments under one tell nothing.
    """
    if waits_for_others(model):
        return None
    state = {id(p): kept for p, kept in _moments(optimizers)}
    found: dict[str, bool] = {}
    known = False
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or is_lazy(parameter):
            continue
        shown = [parameter.grad, *state.get(id(parameter), ())]
        known = known or any(one is not None for one in shown)
        found[name] = any(one is not None and (one.layout is not torch.strided or bool(one.any())) for one in shown)
    return [name for name, given in found.items() if not given] if known else None


def _moments(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[tuple[Tensor, list[Tensor]]]:
    for optimizer in optimizers:
        decoupled = isinstance(optimizer, torch.optim.AdamW)
        for group in optimizer.param_groups:
            if decoupled or group.get("decoupled_weight_decay") or not group.get("weight_decay"):
                for parameter in group["params"]:
                    kept = optimizer.state.get(parameter, {}).values()
                    yield (
                        parameter,
                        [one for one in kept if isinstance(one, Tensor) and one.shape == parameter.shape and one.dim()],
                    )
