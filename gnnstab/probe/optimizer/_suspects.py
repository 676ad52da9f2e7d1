"""What may keep a model from learning and can be undone for a trial: weights that nobody drew so, closed ReLUs, sums over neighbours, scores that spread too far."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from gnnstab.errors import let_through
from gnnstab.layers.lazy import unwritten
from gnnstab.layers.multihead_attention import score_rows
from gnnstab.probe.attaching.hooks import hookable
from gnnstab.probe.optimizer._sums import Divided
from gnnstab.probe.optimizer.softening import Softened, Spreads

SIZE = 3.0
"""Times that a weight is larger or smaller than its layer would draw it, from which on it is drawn anew."""

ALIKE = 1e-4
"""Difference between the rows of a matrix, over its largest entry, below which it is drawn anew: its units are copies of one another."""

CLOSED = 0.02
"""Share of the channels behind a ReLU that are zero on every row from which on it is let through; they may be the first of many."""

APART = 1.0
"""Standard deviation of the scores of one target from which on they are softened."""

SLOPE = 0.3
"""Of a ReLU on negative entries in a trial: small enough to keep its shape, and no entry stays without a gradient."""


class Suspect(NamedTuple):
    """Something that may keep a model from learning, and how it is undone on a copy."""

    cause: str
    names: tuple[str, ...]
    words: str
    """What is done, as a gerund."""

    suspect: str
    undo: Callable[[nn.Module], None]
    """Changes a copy of the model, for good or by hooks that stay on it."""

    mode: AbstractContextManager[Any] = nullcontext()
    """Stands around the trial."""

    setting: str = ""
    """Name of the setting, of the optimizer or of a layer, that is undone."""


def suspects(model: nn.Module, loss: Callable[[], Tensor]) -> Iterator[Suspect]:
    """What ``loss``, which runs forward and backward of ``model``, shows; ``model`` is a copy, and generators are forked."""
    closed, apart = _Closed(), Spreads(model, APART)
    with closed, apart:
        closed.watch(model)
        apart.watch(model)
        loss()
    # Where no gradient arrives, nothing is learned for another reason: GS604 names it.
    drawn = {name: new for name, new in _drawn_anew(model).items() if _arrives(model.get_parameter(name).grad)}
    if drawn:
        names = tuple(drawn)
        # Biases that close ReLUs are what dead units are made of.
        cause = "dead-units" if closed.names and all(new.dim() == 1 for new in drawn.values()) else "unsuitable-init"
        if all(_of_scores(model, name, new) for name, new in drawn.items()):
            cause = "attention-explosion"
        yield Suspect(
            cause, names, f"drawing {listed(names)} anew", f"{listed(names)}: {_differs(model, drawn)}",
            partial(_set, drawn),
        )  # fmt: skip
    if closed.names:
        names = tuple(closed.names)
        yield Suspect(
            "dead-units", names, f"letting a part of what is negative through the ReLU behind {listed(names)}",
            f"the ReLU behind {listed(names)} is closed on every row, in up to {100 * max(closed.names.values()):.0f} % of its channels "
            "before the first step",
            unchanged, _Opened(),
        )  # fmt: skip
    sums = Divided()
    with sums.mode():
        sums.edit(model)
        loss()
    if sums.names:
        divided = Divided()
        yield Suspect(
            "sum-aggregation", sums.names, f"dividing the sums of {listed(sums.names)} by the number of their terms",
            f"the sums of {listed(sums.names)} follow the number of their terms", divided.edit, divided.mode(),
        )  # fmt: skip
    wide = tuple(apart.wide)
    if wide:
        softer = Softened(wide)
        yield Suspect(
            "attention-explosion", wide, f"softening the scores of {listed(wide)}",
            f"the scores of {listed(wide)} spread by up to {apart.widest:.3g} within one target", softer.watch, softer,
        )  # fmt: skip


def listed(names: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def unchanged(model: nn.Module) -> None:
    """What a mode around the trial does needs no change of the model."""


def _drawn_anew(model: nn.Module) -> dict[str, Tensor]:
    """New values of the parameters that no usual initialisation draws as they are: by torch's and PyG's own layers, else after Glorot."""
    fresh: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset) and type(module).__module__.split(".")[0] in ("torch", "torch_geometric"):
            fresh |= {f"{name}.{key}".lstrip("."): value for key, value in _reset(module)}
    # What is still uninitialised belongs to a kind of node or edge that no batch held.
    without = unwritten(model)
    own = {name: parameter for name, parameter in model.named_parameters() if name not in without}
    for name, parameter in own.items():
        if name not in fresh and parameter.dim() >= 2:
            fresh[name] = torch.randn_like(parameter) * math.sqrt(2 / sum(parameter.shape[-2:]))
    return {name: new for name, new in fresh.items() if name in own and _deviates(own[name].detach(), new)}


def _arrives(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.any())


def _of_scores(model: nn.Module, name: str, new: Tensor) -> bool:
    """True where a weight of torch's own attention makes queries or keys, and its part for the values, where it has one, is of the size of ``new``."""
    owner, _, key = name.rpartition(".")
    rows = score_rows(model.get_submodule(owner), key, len(new))
    return rows is not None and not _deviates(model.get_parameter(name).detach()[rows.stop :], new[rows.stop :])


def _reset(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    try:
        twin = copy.deepcopy(module)
        (getattr(twin, "reset_parameters", None) or twin._reset_parameters)()  # type: ignore[operator]
    except Exception as error:  # A lazy layer, or one that some other code has changed: its own values stay.
        let_through(error)
        return
    yield from ((key, parameter.detach()) for key, parameter in twin.named_parameters() if not is_lazy(parameter))


def _deviates(own: Tensor, new: Tensor) -> bool:
    if own.shape != new.shape or not own.numel() or not own.is_floating_point() or not bool(own.isfinite().all()):
        return False
    if own.dim() == 1:
        return float(own.abs().max()) > SIZE and _rms(own) > SIZE * _rms(new)
    if len(own) > 3 and bool(own.any()) and bool((own - own[:1]).abs().max() <= ALIKE * own.abs().max()):
        return True
    return not 1 / SIZE <= _rms(own) / max(_rms(new), 1e-30) <= SIZE


def _differs(model: nn.Module, drawn: dict[str, Tensor]) -> str:
    ratios = [_rms(model.get_parameter(name)) / max(_rms(new), 1e-30) for name, new in drawn.items()]
    worst = max(ratios, key=lambda ratio: abs(math.log(max(ratio, 1e-30))))
    if 1 / SIZE <= worst <= SIZE:
        return "the same numbers in every row"
    return (
        f"is up to {worst:.3g} times as large as its layer draws it"
        if worst > 1
        else f"is {worst:.3g} of the size that its layer draws"
    )


def _rms(values: Tensor) -> float:
    return float(values.detach().double().square().mean().sqrt())


def _set(values: dict[str, Tensor], model: nn.Module) -> None:
    with torch.no_grad():
        for name, value in values.items():
            model.get_parameter(name).copy_(value)


_RELU = (torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu)


class _Closed(TorchFunctionMode):
    """Within the block: behind which module every ReLU stands, and in what share of its channels it is zero on all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, float] = {}
        self._last = ""

    def watch(self, model: nn.Module) -> None:
        """Have a copy tell which of its modules with weights returned last."""
        for name, module in hookable(model):
            if name and next(module.parameters(), None) is not None:
                module.register_forward_hook(partial(self._returned, name))

    def _returned(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self._last = name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _RELU and result.dim() > 1 and result.numel():
            share = float((result <= 0).flatten(0, -2).all(0).float().mean())
            if share >= CLOSED:
                self.names[self._last] = max(share, self.names.get(self._last, 0.0))
        return result


class _Opened(TorchFunctionMode):
    """Within the block every ReLU lets a part of what is negative through."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _RELU:
            return F.leaky_relu(args[0], SLOPE)
        return func(*args, **(kwargs or {}))
