"""What went into an operation that gave Inf or NaN: which kind of undefined or too large it is, and the sizes in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gnnstab.characters import counted
from gnnstab.errors import let_through
from gnnstab.torch_private import tree_map

LOW = (torch.float16, torch.bfloat16)
_SIGNS = {"add": "+", "sub": "−", "mul": "·", "div": "/", "pow": "**"}
_LOGS = ("log", "log2", "log10")
_DOMAINS = ("acos", "asin", "acosh", "atanh", "log1p", "lgamma", "erfinv", "digamma", "logit")
_EXPONENTIALS = ("exp", "exp2", "expm1", "cosh", "sinh")
_SOFTMAXES = ("softmax", "log_softmax")
_WRITES = (
    "masked_fill",
    "fill",
    "full",
    "full_like",
    "new_full",
    "where",
    "scalar_tensor",
    "lift_fresh",
    "constant_pad_nd",
)
UNWRITTEN = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"})
"""What hands out memory as it is: the numbers in it are nobody's yet."""


class Sizes(NamedTuple):
    """What an operation was fed where it went wrong."""

    kind: str
    """``log-of-zero``, ``overflow``, …: see docs/nan.md."""

    words: str
    """``log(0) = −inf at 12 of 256 entries``."""

    facts: Mapping[str, Any] = {}
    """``operands`` (values at the first entry), ``largest`` (of all finite operands), ``float32`` (largest value of the same
    operation in float32; None where it is not finite there either)."""


def display_name(function: Any) -> str:
    """``log`` for ``aten._log.default``, ``index_add`` for ``aten.index_add_.default``."""
    name = str(function._schema.name).partition("::")[2]
    name = name.removeprefix("_").rstrip("_")
    return {"true_divide": "div", "divide": "div", "multiply": "mul", "safe_softmax": "softmax"}.get(name, name)


def writes_in_place(function: Any) -> bool:
    """True for an operation that changes one of its arguments."""
    return bool(function._schema.is_mutable)


def sizes(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor, producer: str = "") -> Sizes:
    """Describe the operands (as they were before the call) of an operation whose ``output`` is not finite.

    ``producer`` names the operation that made the first operand.
    """
    name = display_name(function)
    bad = ~torch.isfinite(output)
    count = f"{int(bad.sum())} of {output.numel()} entries" if output.numel() > 1 else "its only entry"
    if name in UNWRITTEN:
        return Sizes("uninitialised", f"`{name}` gives memory as it is: {count} hold NaN or Inf and were never written")
    if name in _WRITES and _written_scalar(args, kwargs):
        return Sizes("written", f"`{name}` writes {_value(output[bad][0])} at {count}")
    operands = [a for a in args if isinstance(a, (Tensor, int, float)) and not isinstance(a, bool)]
    shape = output.shape
    if name in _SOFTMAXES:
        return _softmax(name, args[0], output)
    if name in ("to_copy", "copy"):
        return _overflow(name, operands[-1:], output, count, function, args, kwargs)
    if name not in ("sum", "mean") and operands and all(_fits(a, shape) for a in operands) and _by_entry(name):
        return _elementwise(name, operands, output, bad, count, producer, function, args, kwargs)
    return _overflow(name, operands, output, count, function, args, kwargs)


def _elementwise(
    name: str, operands: Sequence[Any], output: Tensor, bad: Tensor, count: str, producer: str,
    function: Any, args: Sequence[Any], kwargs: Mapping[str, Any],
) -> Sizes:  # fmt: skip
    if name in ("add", "sub"):
        operands = operands[:2]
    values = [_at(a, bad) for a in operands]
    first = _chosen(values, output[bad])
    here = [float(v[first]) for v in values]
    result = float(output[bad][first])
    kind = kind_of(name, here, result)
    facts: dict[str, Any] = {"operands": here, "largest": _largest(operands)}
    formula = _formula(name, here)
    if not kind:
        kind = "overflow"
        facts["float32"] = in_float32(function, args, kwargs) if output.dtype in LOW else None
    left = values[-1] if name == "div" else values[0]
    same = bool((left == left[first]).all())
    given = ""
    if producer and name != "div":
        given = f"{_quoted(producer)} gave {_value(left[first])}{'' if same else ' and the like'} for {count}; "
    elif producer and same:
        given = f"the divisor {_value(left[first])} came from {_quoted(producer)}; "
    at = "" if given.endswith(f"for {count}; ") else f" at {count}"
    exact = facts.get("float32")
    wide = f" ({exact:.4g} in float32; {_dtype(output)} ends at {torch.finfo(output.dtype).max:.5g})" if exact else ""
    if kind == "exp-overflow":
        limit = math.log(torch.finfo(output.dtype).max)
        wide = f" (the operand reaches {facts['largest']:.4g}; `{name}` in {_dtype(output)} ends at {limit:.3g})"
        facts["float32"] = in_float32(function, args, kwargs) if output.dtype in LOW else None
    return Sizes(kind, f"{given}{formula} = {_value(output[bad][first])}{at}{wide}", {**facts, "result": result})


def _quoted(producer: str) -> str:
    """The name of a function as code: it reads as no word of the sentence; what was made by several is said in words."""
    return producer if " " in producer else f"`{producer}`"


def kind_of(name: str, here: Sequence[float], result: float) -> str:
    """The kind of an element-wise operation by its operands at one entry; empty for plain overflow."""
    a, b = here[0], here[1] if len(here) > 1 else math.nan
    infinite = [v for v in here if math.isinf(v)]
    if name in ("add", "sub") and len(infinite) > 1:
        return "inf-minus-inf"
    if name == "mul" and infinite and 0 in here:
        return "zero-times-inf"
    if name == "div" and len(infinite) > 1:
        return "inf-over-inf"
    if name in _LOGS or name == "xlogy":
        return "log-of-zero" if a == 0 else "log-of-negative" if a < 0 else ""
    if name in ("div", "remainder", "fmod", "addcdiv", "floor_divide") and here[-1] == 0:
        return "zero-over-zero" if a == 0 else "division-by-zero"
    if name in ("reciprocal", "rsqrt") and a == 0:
        return "division-by-zero"
    if name in ("sqrt", "rsqrt") and a < 0:
        return "root-of-negative"
    if name == "pow":
        return "division-by-zero" if a == 0 and b < 0 else "root-of-negative" if a < 0 and math.isnan(result) else ""
    if name in _DOMAINS:
        return "outside-domain"
    if name in _EXPONENTIALS and math.isfinite(a):
        return "exp-overflow"
    if math.isnan(result) and infinite:
        return "undefined-of-inf"
    return ""


def masks_all(operands: Sequence[Any]) -> bool:
    """True when one factor of a product is zero wherever the other is not finite."""
    tensors = [t for t in operands if isinstance(t, Tensor) and t.is_floating_point()]
    if len(tensors) != 2:
        return False
    for factor, other in (tensors, tensors[::-1]):
        bad = ~torch.isfinite(other)
        # Entries of the product that are bad although this factor is not zero there.
        if bool(bad.any()) and not bool((bad & (factor != 0)).any()):
            return True
    return False


def in_float32(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float | None:
    """Largest |value| of the same operation on operands in float32; None when it is not finite there or cannot be run."""
    if torch.Tag.nondeterministic_seeded in function.tags:
        return None
    try:
        if display_name(function) in ("to_copy", "copy"):
            source = next(a for a in reversed(args) if isinstance(a, Tensor))
            return _size(source.float())
        else:
            result: Any = function(*tree_map(_widened, tuple(args)), **tree_map(_widened, dict(kwargs)))
    except Exception as error:  # some operations take low precision alone
        let_through(error)
        return None
    return _size(result[0] if isinstance(result, (tuple, list)) else result)


def _size(result: Any) -> float | None:
    if not isinstance(result, Tensor) or not result.numel() or not bool(torch.isfinite(result).all()):
        return None
    return float(result.abs().max())


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in LOW:
        return value.float()
    if isinstance(value, Tensor):
        return value.clone()
    return torch.float32 if value in LOW else value


def _overflow(
    name: str, operands: Sequence[Any], output: Tensor, count: str, function: Any, args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Sizes:  # fmt: skip
    if bool(torch.isnan(output).any()) and (nothing := _of_nothing(name, args)):
        return Sizes("mean-of-nothing", f"`{name}` takes the mean over nothing: {nothing}", {"largest": 0.0})
    floats = [a for a in operands if isinstance(a, Tensor) and a.is_floating_point() and a.numel()]
    floats += [t for a in args if isinstance(a, (list, tuple)) for t in a if isinstance(t, Tensor) and t.numel()]
    largest = _largest(floats)
    low = output.dtype in LOW
    exact = in_float32(function, args, kwargs) if low else None
    infinite = any(bool(torch.isinf(t).any()) for t in floats if t.is_floating_point())
    facts = {"largest": largest, "float32": exact}
    if infinite:
        kind = "inf-minus-inf" if name in ("sum", "mean", "mm", "addmm", "bmm", "cumsum") else "undefined-of-inf"
        return Sizes(kind, f"`{name}` of operands that hold Inf gave NaN at {count}", facts)
    if name in ("to_copy", "copy"):
        said = f"the conversion of values up to {largest:.4g} to {_dtype(output)} gave Inf at {count}"
    else:
        said = f"`{name}` of operands up to {largest:.4g} gave {_value(output[~torch.isfinite(output)][0])} at {count}"
    if bool(torch.isnan(output).any()) and not low and largest < 1e15:
        # With one value in each group n − 1 is 0.
        alone = name in ("std", "var") and floats[0].numel() <= output.numel()
        shape = (
            f"`{name}` over one value, of an operand of shape {tuple(floats[0].shape)}, divides by n − 1 = 0 at {count}"
            if alone
            else ""
        )
        return Sizes("deviation-of-one", shape, facts) if alone else Sizes("undefined", said, facts)
    limit = f"{_dtype(output)} ends at {torch.finfo(output.dtype).max:.5g}"
    wide = f" ({exact:.4g} in float32; {limit})" if exact else f" ({limit})"
    return Sizes("overflow", said + wide, facts)


def _of_nothing(name: str, args: Sequence[Any]) -> str:
    """Why a reduction has no entries to go over; empty where it has some."""
    first = args[0] if args else None
    if isinstance(first, Tensor) and not first.numel():
        return f"its operand of shape {tuple(first.shape)} has no entries"
    if name.startswith("nll_loss") and len(args) > 4 and bool((args[1] == args[4]).all()):
        return f"every target is {args[4]}, which the loss leaves out"
    return ""


def _softmax(name: str, scores: Tensor, output: Tensor) -> Sizes:
    masked = torch.isneginf(scores)
    bad = ~torch.isfinite(output)
    axis = -1
    for dim in range(scores.dim()):
        if bool(masked.all(dim).any()):
            axis = dim
            break
    rows = int(masked.all(axis).sum()) if scores.dim() else int(masked.all())
    if rows:
        return Sizes(
            "all-masked",
            f"`{name}`: in {counted(rows, 'row')} every score is −inf, so that nothing is left to weigh",
        )
    if bool(torch.isposinf(scores).any()):
        return Sizes(
            "inf-minus-inf",
            f"`{name}` subtracts the largest score, and that is +inf: ∞ − ∞ at {int(bad.sum())} entries",
        )
    return Sizes("written", f"`{name}` gives −inf where the score is −inf")


def emptied(found: Sizes, count: str) -> Sizes:
    """The same where a mask has left nothing to weigh in a group of a softmax in parts."""
    formula = found.words.rpartition("; ")[2].partition(" at ")[0]
    words = f"every score of a target is −inf, so that nothing is left to weigh, at {count}: {formula}"
    return Sizes("all-masked", words, found.facts)


def _written_scalar(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    values = [*args, *kwargs.values()]
    numbers = [float(v) for v in values if isinstance(v, (int, float))]
    numbers += [float(v) for v in values if isinstance(v, Tensor) and v.numel() == 1 and not v.is_complex()]
    return any(not math.isfinite(n) for n in numbers)


def _by_entry(name: str) -> bool:
    return not name.endswith(
        ("mm", "norm", "norm_backward", "convolution", "matmul", "scatter_reduce", "index_add", "scatter_add")
    )


def _fits(value: Any, shape: torch.Size) -> bool:
    if not isinstance(value, Tensor):
        return True
    aligned = zip(reversed(value.shape), reversed(shape), strict=False)
    return value.dim() <= len(shape) and all(own in (1, size) for own, size in aligned)


def _at(value: Any, bad: Tensor) -> Tensor:
    """The values of an operand at the entries of the output that went wrong."""
    tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value), device=bad.device)
    tensor = tensor.to_dense() if tensor.is_sparse else tensor
    return tensor.expand(bad.shape)[bad].double()


def _chosen(values: Sequence[Tensor], results: Tensor) -> int:
    """The first entry that is NaN or Inf although nothing that went in was; the first of all where there is none."""
    finite = torch.stack([torch.isfinite(v) for v in values]).all(0)
    found = finite.nonzero().flatten()
    if len(found):
        return int(found[0])
    nan_in = torch.stack([torch.isnan(v) for v in values]).any(0)
    fresh = (torch.isnan(results) & ~nan_in).nonzero().flatten()
    return int(fresh[0]) if len(fresh) else 0


def _formula(name: str, here: Sequence[float]) -> str:
    words = [_value(v) for v in here]
    if name in _SIGNS and len(words) == 2:
        right = f"({words[1]})" if words[1].startswith("−") else words[1]
        left = f"({words[0]})" if name == "pow" and words[0].startswith("−") else words[0]
        return f"{left} {_SIGNS[name]} {right}"
    return f"{name}({', '.join(words)})"


def _value(value: Any) -> str:
    number = float(value)
    if number == 0:
        return "0"
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "inf" if number > 0 else "−inf"
    return f"{number:.4g}".replace("-", "−")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _largest(operands: Sequence[Any]) -> float:
    sizes = [0.0]
    for value in operands:
        if isinstance(value, Tensor) and value.numel() and value.is_floating_point():
            finite = value.detach()[torch.isfinite(value.detach())]
            sizes += [float(finite.abs().max())] if finite.numel() else []
        elif isinstance(value, (int, float)) and math.isfinite(value):
            sizes.append(abs(float(value)))
    return max(sizes)
