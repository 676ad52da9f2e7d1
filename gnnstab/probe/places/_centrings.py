"""Rows whose own mean is taken away, by a fused norm or by hand, and what a backward leaves in front of that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from gnnstab.probe.places import _autograd as autograd

if TYPE_CHECKING:
    from gnnstab.probe.places._calls import Calls

_MEANS = (
    *("Expand", "View", "ReshapeAlias", "Unsqueeze", "Squeeze", "Index", "Scatter", "Segment", "Mean", "Sum", "Div", "Mul"),
    *("VarMean", "StdMean"),
)  # fmt: skip
"""Beginnings of the operations by which a mean over rows, all or those of a group, is computed and handed to each of them."""

_FUSED = ("NativeBatchNormBackward", "CudnnBatchNormBackward", "MiopenBatchNormBackward")
"""BatchNorm, and torch's InstanceNorm."""

_TURNS = (*autograd.SHAPES, "TransposeBackward", "PermuteBackward", "CloneBackward")
"""What may stand between the argument of a module and the norm."""

_LONGEST = 8
"""Operations of a mean, at most."""

_SIGNS = 2
"""Rows of which a norm leaves the sign alone: their gradient is lost by that."""


class Centrings:
    """Every such place of a forward, and the largest gradients that a backward gives it and leaves in front of it.

    Where what is behind reads nothing but the mean of the rows, or there is a single row, the gradient of the difference and that by
    way of the mean cancel. They do not where a factor on the mean learns, as that of GraphNorm, and a way around has its own.
    """

    def __init__(self, outputs: list[Tensor]) -> None:
        self.passed: dict[Any, tuple[float, float]] = {}
        """What makes the rows → largest gradient given, largest left."""

        self.handles: list[Any] = []
        self._behind: dict[Any, Any] = {}
        self._differences: dict[Any, Tensor] = {}
        heard = set()
        for node in autograd.walk(outputs):
            kind = type(node).__name__
            rows, number = node.next_functions[0] if kind.startswith(("SubBackward", *_FUSED)) else (None, 0)
            if rows is None or hasattr(rows, "variable"):
                continue
            if kind.startswith(_FUSED):
                if not (size := _scale(node)):
                    continue
                self.handles.append(node.register_hook(self._norm(rows, size)))
            else:
                last = _mean_of(node.next_functions[1][0], rows)
                if last is None:
                    continue
                self.handles.append(node.register_hook(self._difference(rows, last)))
                if last not in heard:
                    heard.add(last)
                    self.handles.append(last.register_hook(self._mean(rows, last)))
            if rows not in self._behind:
                self._behind[rows] = node
                self.handles.append(rows.register_prehook(self._arriving(rows, number)))

    def place(self, rows: Any, calls: Calls) -> tuple[str, bool]:
        """Name of the innermost module that is given the rows and takes their mean away, and True; else of the one that returns them."""
        given, behind = {rows}, self._behind[rows]
        while type(rows).__name__.startswith(_TURNS):
            rows = rows.next_functions[0][0]
            given.add(rows)
        for call in calls.all:
            if any(t.grad_fn in given for t in call.entering) and any(
                autograd.reaches(t.grad_fn, behind) for t in call.leaving if t.grad_fn is not None
            ):
                return call.name, True
        return autograd.made_by(rows, calls.maker) or "output", False

    def _note(self, rows: Any, given: float = 0.0, left: float = 0.0) -> None:
        before = self.passed.get(rows, (0.0, 0.0))
        self.passed[rows] = max(before[0], given), max(before[1], left)

    def _norm(self, rows: Any, size: float) -> Any:
        def listen(leaving: tuple[Tensor | None, ...], entering: tuple[Tensor | None, ...]) -> None:
            self._note(rows, size * peak(entering[:1]), peak(leaving[:1]))

        return listen

    def _difference(self, rows: Any, last: Any) -> Any:
        def listen(leaving: tuple[Tensor | None, ...], entering: tuple[Tensor | None, ...]) -> None:
            if (own := leaving[0]) is not None:
                before = self._differences.get(last)
                self._differences[last] = own.detach() if before is None else before + own.detach()
                self._note(rows, given=peak((own,)))

        return listen

    def _mean(self, rows: Any, last: Any) -> Any:
        position = next(i for i, (above, _) in enumerate(last.next_functions) if above is rows)

        def listen(leaving: tuple[Tensor | None, ...], entering: tuple[Tensor | None, ...]) -> None:
            own, back = self._differences.pop(last, None), leaving[position]
            if own is not None and back is not None:
                self._note(rows, left=peak((own + back.detach(),)))

        return listen

    def _arriving(self, rows: Any, number: int) -> Any:
        def listen(arriving: tuple[Tensor | None, ...]) -> None:
            self._note(rows, left=peak(arriving[number : number + 1]))

        return listen


def _mean_of(node: Any, rows: Any) -> Any | None:
    """The first operation of a chain that takes a mean of the rows and ends in ``node``; None where ``node`` is no such mean."""
    for _ in range(_LONGEST):
        if node is None or not type(node).__name__.startswith(_MEANS):
            return None
        above = [one for one, _ in node.next_functions if one is not None]
        if rows in above:
            return node
        if not above or any(hasattr(one, "variable") for one in above):
            return None
        node = above[0]
    return None


def _scale(node: Any) -> float:
    """Largest factor that a fused norm multiplies its rows by; 0 where its statistics are not those of the rows, or these are too few."""
    given, spread = autograd.saved(node, "_saved_input"), autograd.saved(node, "_saved_result2")
    if given is None or spread is None or not spread.numel():
        return 0.0
    weight = autograd.saved(node, "_saved_weight")
    factors = spread.detach() if weight is None else spread.detach() * weight.detach().abs()
    return float(factors.max()) if given.numel() > _SIGNS * given.shape[1] else 0.0


def peak(gradients: tuple[Tensor | None, ...]) -> float:
    """Largest entry of several gradients, by size; 0 where there is none."""
    return max((float(g.detach().abs().max()) for g in gradients if g is not None and g.numel()), default=0.0)
