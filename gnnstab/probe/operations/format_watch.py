"""How close the operations of a run come to the ends of their number formats, and how fast: seen in place, in few steps.

What grows or shrinks inside a layer or a loss shows at no recorded site. In step 19, in step 38 and every 200 steps from there on one forward
of the run and what follows it up to the backward are followed function by function; nothing is computed twice, and no value changes. Two looks
give a pace: where something heads for an end, the looks come closer together.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.overrides import TorchFunctionMode

from gnnstab.errors import let_through
from gnnstab.probe.buffering.device_copy import DeviceCopy, is_on_host
from gnnstab.probe.layers.functions import DIVIDES, above_and_below
from gnnstab.probe.operations._operands import UNWRITTEN
from gnnstab.probe.operations.in_place import reason_against
from gnnstab.probe.operations.source_lines import Modules, Place, caller_place
from gnnstab.records.rises import Nearing
from gnnstab.torch_private import (
    FUNCTION,
    graph_task,
    not_compiled_alone,
    set_grad_enabled,
    transforms,
    without_torch_function,
)
from gnnstab.undisturbed import nothing_aside

FIRST = 19
"""Step of the first look, and the steps to the second one."""

SELDOM = 200
"""Steps to the next look while nothing moves: a look costs about half a step of a small network."""

FEWEST = 8
"""The fewest steps to the next look while nothing is under way."""

CLOSEST = 3
"""Fewest steps between two looks."""

PART = 3
"""A look comes after a third of the steps that are left at the present pace."""

UNDER_WAY = 0.15
"""Share of the way to an end, in logarithms, from which on a place is worth its name."""

MULTIPLIES = 2.0
"""ln of the size from which on exponents may well multiply and not only rise: what a norm hands on seldom has an entry above e²."""

HALFWAY = 0.4
"""The same from which on the rules are told, and the next look comes after `LATEST` steps at the latest."""

LATEST = 9

STANDS = 0.25
"""Share of the pace of what a divisor is made of that it has at least: a root has half."""

LOOKS = 6
"""Looks that are remembered: the first, and the latest."""

CHAIN = 4
"""Operations behind each other that a divisor is followed back: the entries, their squares, the sum of these, its root."""

GROWS = frozenset(
    {
        *("exp", "exp2", "expm1", "sinh", "cosh", "square", "pow", "rpow", "prod", "cumprod", "ldexp"),
        *("mul", "multiply", "rmul", "imul", "addcmul", "addcdiv", "reciprocal", "rsqrt"),
        *("div", "divide", "true_divide", "truediv", "rtruediv", "itruediv"),
        *("sum", "cumsum", "logcumsumexp", "norm", "vector_norm", "scatter_add", "index_add", "segment_reduce"),
    }
)
"""What can give entries of another order of magnitude than it is given, by itself or where it is repeated. Linear maps grow with their
weights and their input, which are recorded; in fp16 they are followed too."""

CARRIES = frozenset(
    {
        *("add", "radd", "iadd", "sqrt", "abs", "mean", "clamp", "clamp_min", "maximum", "where"),
        *("unsqueeze", "view", "reshape", "getitem"),
    }
)
"""What stands between squares and the divisor that is made of them; followed where it reads what was followed last."""

LOGARITHMS = frozenset({"log", "log2", "log10"})
"""What follows a number on its way to 0 at an even pace."""

DIFFERENCES = frozenset({"sub", "rsub", "subtract"})
"""One of a number and a tensor ends at half the rounding of that number, from where on it is 0."""

BACKWARDS = frozenset({Tensor.backward, torch.autograd.grad})

_Key = tuple[Any, ...]


class FormatWatch:
    """Follows one training forward and its loss in some steps, and the gradients of the same step where they are computed in fp16.

    Args:
        model: Its modules name the places.
    """

    def __init__(self, model: nn.Module) -> None:
        self.next = FIRST
        """The step of the next look."""

        self.busy = False
        """True from the beginning of a look until its numbers are on the host."""

        self.news: list[Nearing] = []
        """What the last look says of the places that come close to an end; whoever reads it clears it."""

        self._model = model
        self._modules: Modules | None = None
        self._mode: _Following | None = None
        self._step = -1
        self._sent: tuple[int, list[_Key], dict[_Key, _Seen], DeviceCopy] | None = None
        self._looks: dict[_Key, list[tuple[int, float]]] = defaultdict(list)
        self._near = False

    def begin(self, step: int) -> None:
        """A training forward is about to run in the step of a look."""
        if self._mode is not None or self._step == step:
            return
        if reason_against(self._model) or transforms() or FUNCTION.stack() or not nothing_aside():
            # Compiled code would be compiled anew under a mode, and modes of the user's own are left in the order they were entered in.
            self._rest(step)
            return
        if self._modules is None:
            self._modules = Modules(self._model)
        self._step, self.busy = step, True
        self._mode = _Following(self._modules if self._near else None)
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def ended(self) -> None:
        """Nothing more of this step is followed: the backward has begun, another forward begins, or the step is over."""
        if self._mode is not None:
            self._mode.active = False
        stack = FUNCTION.stack()
        kept = [one for one in stack if type(one) is not _Following or one.active]
        if len(kept) < len(stack):
            FUNCTION.replace(kept)

    def step_ends(self, step: int, unscaled: bool) -> None:
        """The step is over; ``unscaled``: nobody scales the loss, and takes the scale back where gradients overflow."""
        self.ended()
        if self._sent is not None:
            self._arrive()
        mode, self._mode = self._mode, None
        if mode is None:
            self.busy = self._sent is not None
            return
        # Within a backward the mode is off the stack, and comes back when that returns.
        returns = graph_task() != -1
        if mode.error is not None:
            raise mode.error
        if mode.half and unscaled:
            for name, parameter in self._model.named_parameters():
                given = parameter.grad
                if given is not None and given.layout is torch.strided and given.numel():
                    size = torch.linalg.vector_norm(given, math.inf)
                    mode.seen["gradient", name] = _Seen(size, torch.float16, f"the backward at {name}")
        keys = list(mode.seen)
        if not keys:
            self._rest(step)
            self.busy = returns
            return
        self._sent = step, keys, mode.seen, DeviceCopy([mode.seen[key].size.float() for key in keys])
        if all(is_on_host(one.size) for one in mode.seen.values()):
            self._arrive()
        self.busy = returns or self._sent is not None

    def _arrive(self) -> None:
        """The numbers of a look are there: what comes close, and when to look again."""
        assert self._sent is not None
        (step, keys, seen, copy), self._sent = self._sent, None
        left, self._near = math.inf, False
        for key, size in zip(keys, copy.result().tolist(), strict=True):
            one = seen[key]
            if not 0 < size < math.inf:
                self._looks.pop(key, None)
                continue
            looks, end = self._looks[key], one.end
            looks.append((step, one.sign * math.log(size)))
            del looks[1 : -LOOKS + 1]
            # A divisor with an eps beside it stands still while what is added to that shrinks.
            pace, way = _pace(looks), looks[-1][1] / end
            if one.into and not _pace(self._looks[one.into]) > STANDS * pace:
                continue
            self._near = self._near or way >= UNDER_WAY
            left = min(left, LATEST if max(high for _, high in looks) >= HALFWAY * end else math.inf)
            if pace > 0:
                left = min(left, max(_soonest(list(looks), end) / PART, CLOSEST if way >= UNDER_WAY else FEWEST))
            if pace > 0 and way >= HALFWAY:
                self.news.append(Nearing(step, one.name, one.where, str(one.dtype).removeprefix("torch."), one.sign < 0, end, tuple(looks)))  # fmt: skip
        self._rest(step, left)

    def _rest(self, step: int, left: float = math.inf) -> None:
        """Look again after so many steps, or as seldom as ever; after an odd number, since batches often come in turns of four or eight."""
        self.next = step + (int(min(FIRST if step < 2 * FIRST else SELDOM, left)) | 1)


class _Seen:
    """The largest entry of one result, and what is known of the place."""

    __slots__ = ("dtype", "end", "into", "name", "place", "sign", "size")

    def __init__(
        self,
        size: Tensor,
        dtype: torch.dtype,
        name: str,
        place: Place | None = None,
        sign: int = 1,
        into: _Key | None = None,
        end: float | None = None,
    ) -> None:
        self.size, self.dtype, self.name, self.place = size, dtype, name, place
        self.sign, self.into = sign, into
        self.end = _end(dtype, sign) if end is None else end
        """ln of the largest number of the format, or −ln of the smallest."""

    @property
    def where(self) -> str:
        place = self.place
        if place is None:
            return ""
        module = f"in {place.module}" if place.module else ""
        text = f"{place.words}: `{place.text}`" if place.words and place.text else place.words
        return ", ".join(filter(None, (module, text)))


class _Following(TorchFunctionMode):
    """Notes the largest |entry| of the results of a forward that can grow, by the place in the code and how often it was passed.

    Args:
        modules: Names places; None where nothing is near an end.
    """

    def __init__(self, modules: Modules | None) -> None:
        super().__init__()
        self.active = True
        self.half = False
        """True once a result was in fp16."""

        self.error: Exception | None = None
        self.seen: dict[_Key, _Seen] = {}
        self._modules = modules
        self._passed: dict[_Key, int] = defaultdict(int)
        self._last: Tensor | None = None
        self._difference: Tensor | None = None
        """The latest result of one of `DIFFERENCES`."""

        self._from = 0.0
        """Size of the number in it; 0 where it is one of two tensors."""

        self._run: list[_Key] = []
        """Keys of operations in a row, each of which reads what the one before it has made; the last one made ``_last``."""

    @not_compiled_alone
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the function; look at what it gives."""
        if func in BACKWARDS:
            self.active = False
        output = func(*args, **kwargs) if kwargs else func(*args)
        if is_dynamo_compiling():
            return output
        if type(output) is Tensor and self.active and self.error is None:
            name = getattr(func, "__name__", "an operation").strip("_")
            chained = len(args) > 0 and args[0] is self._last
            grows = name in GROWS or (chained and name in CARRIES) or output.dtype is torch.float16
            if name in DIFFERENCES:
                self._difference, self._from = output, _number_in(args)
            if not (grows or name in LOGARITHMS) or not output.is_floating_point():
                return output
            grad = torch.is_grad_enabled()
            set_grad_enabled(False)
            try:
                with without_torch_function():
                    self._look(func, name, args, output, chained)
            except Exception as error:
                let_through(error)
                self.error = error
            finally:
                set_grad_enabled(grad)
        return output

    def _look(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], output: Tensor, chained: bool) -> None:
        if (
            output.layout is not torch.strided
            or not output.numel()
            or output.is_meta
            or name in UNWRITTEN
            or transforms()
        ):
            return
        frame = sys._getframe(2)
        while frame.f_code.co_name == "__torch_function__" and frame.f_back is not None:
            frame = frame.f_back
        if str(frame.f_globals.get("__name__", "")).startswith("gnnstab.probe"):
            return
        site = (frame.f_code, frame.f_lasti, func)
        self._passed[site] += 1
        key: _Key = (*site, self._passed[site])
        place = caller_place(self._modules, "model")[0] if self._modules else None
        if name in LOGARITHMS:
            given = args[0] if args else None
            if type(given) is Tensor and given.is_floating_point():
                rounded = self._from if given is self._difference else 0.0
                end = -math.log(rounded * torch.finfo(given.dtype).eps / 2) if rounded else None
                self.seen[key] = _Seen(given.abs().min(), given.dtype, name, place, -1, end=end)
            return
        if func in DIVIDES and self._last is not None and above_and_below(func, args)[1] is self._last:
            into = (*self._run[-1], "divides")
            for one in reversed(self._run):
                made, shrinking = self.seen[one], (*one, "divides")
                self.seen[shrinking] = _Seen(made.size, made.dtype, made.name, place, -1, into)
        size = torch.linalg.vector_norm(output, math.inf)
        self.seen[key] = _Seen(size, output.dtype, name, place)
        if output.dtype is torch.float16:
            self.half = True
            for i, given in enumerate(args):
                # Under autocast what comes in is converted first.
                if type(given) is Tensor and given.dtype is torch.float32 and given.numel():
                    entering = (*key, i)
                    self.seen[entering] = _Seen(torch.linalg.vector_norm(given, math.inf), output.dtype, name, place)
        self._run = [*self._run[1 - CHAIN :], key] if chained else [key]
        self._last = output


def _number_in(args: tuple[Any, ...]) -> float:
    """Size of the number among the arguments of a difference; 0 where there is none."""
    return next((abs(float(one)) for one in args if type(one) in (int, float)), 0.0)


@cache
def _end(dtype: torch.dtype, sign: int) -> float:
    limits = torch.finfo(dtype)
    return math.log(limits.max) if sign > 0 else -math.log(limits.smallest_normal * limits.eps)


def _pace(looks: Sequence[tuple[int, float]]) -> float:
    """Change per step over the last three looks, since batches differ; 0 of fewer than two."""
    if not looks:
        return 0.0
    (before, low), (after, high) = looks[max(len(looks) - 3, 0)], looks[-1]
    return (high - low) / max(after - before, 1)


def _soonest(looks: list[tuple[int, float]], end: float) -> float:
    """Steps until ``end`` is reached, along a straight line or, from `MULTIPLIES` on, an exponential through the last two or three looks, whichever is soonest."""
    (after, high), left = looks[-1], math.inf
    for before, low in looks[-3:-1]:
        if low < high < end:
            left = min(left, (end - high) / (high - low) * (after - before))
            if low > 0 and high >= MULTIPLIES:
                left = min(left, math.log(end / high) / math.log(high / low) * (after - before))
    return left
