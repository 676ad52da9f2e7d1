"""What to write instead of an operation that gave Inf or NaN, by its name, its kind and where its operand came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEAVE_EMPTY = (
    "leave out what has too few entries, as a batch of which a mask selects nothing or a graph of one node, or divide by "
    "max(count, 1)"
)

_BY_KIND: Mapping[str, str] = {
    "log-of-zero": "keep the operand away from zero: x.clamp_min(1e-12).log(), or compute the logarithm directly where a "
    "function gives it (logsigmoid, log_softmax, log1p)",
    "log-of-negative": "the logarithm needs a positive operand: find out why it is negative, or clamp it with clamp_min(1e-12)",
    "division-by-zero": "keep the divisor away from zero: divide by x.clamp_min(eps), or set the entries without a divisor "
    "with torch.where on the operands, before the division (after it the gradient stays NaN)",
    "zero-over-zero": "decide what 0/0 is to be: divide by x.clamp_min(eps), or leave empty groups out before the division "
    "(torch.where after it leaves the gradient NaN)",
    "root-of-negative": "the operand must not be negative: clamp_min(0) against rounding, or find out where the sign comes from",
    "inf-minus-inf": "one of the two must stay finite: subtract the maximum before exponentials, or use a large finite number "
    "in place of infinity",
    "inf-over-inf": "subtract the maximum of each group before exp (softmax does), so that neither side overflows",
    "zero-times-inf": "set masked entries with masked_fill or torch.where before they are used; 0 · inf is NaN",
    "undefined-of-inf": "the operand was infinite already: replace the infinity before it arrives here",
    "exp-overflow": "bound the exponent: subtract the maximum of each group before exp, or use softmax or log_softmax; for a scale or a "
    "variance use softplus, or clamp its logarithm first",
    "outside-domain": "keep the operand inside the domain, with a margin for rounding: x.clamp(-1 + 1e-6, 1 - 1e-6)",
    "all-masked": "leave one entry open in every row (a self-loop), or skip empty rows and set their result with torch.where "
    "on the operands before the softmax",
    "uninitialised": "write the memory before it is read: torch.zeros in place of torch.empty",
    "written": "the code writes an infinity or NaN itself: use a large finite number, or do not read these entries",
    "deviation-of-one": "a single value has no deviation: pass unbiased=False, which gives 0, or leave out what has fewer than two rows",
    "mean-of-nothing": LEAVE_EMPTY,
    "undefined": "look at the operands of this line",
}

_DERIVATIVES: Mapping[str, str] = {
    "Sqrt": "the derivative of a root is infinite at zero: put eps inside it, (x + 1e-12).sqrt()",
    "Pow": "the derivative of a power below 1 is infinite at zero: put eps inside it, (x + 1e-12) ** p",
    "Norm": "the derivative of a norm at zero is undefined: (x.square().sum(-1) + 1e-12).sqrt()",
    "Atan2": "atan2(0, 0) has no derivative: add eps to one argument where both are zero",
    "Acos": "the derivative of acos is infinite at ±1: clamp the operand to ±(1 − 1e-6), or use atan2",
    "Asin": "the derivative of asin is infinite at ±1: clamp the operand to ±(1 − 1e-6), or use atan2",
    "Log": "the derivative of a logarithm is infinite at zero: clamp_min(1e-12) before it",
    "Std": "the derivative of a standard deviation is undefined where all values are equal: (x.var() + 1e-12).sqrt()",
    "Div": "the entry that torch.where or a mask drops is still differentiated: make the divisor safe before the division",
    "Rsqrt": "put eps inside the root: (x + 1e-12).rsqrt()",
    "Cdist": "the distance of a point to itself has no derivative: leave the diagonal out, or put eps inside the root",
}

_WITH_PRODUCER: Mapping[tuple[str, str], str] = {
    ("log", "sigmoid"): "write torch.nn.functional.logsigmoid(x) in place of log(sigmoid(x)); with targets, "
    "binary_cross_entropy_with_logits",
    (
        "log",
        "softmax",
    ): "write log_softmax in place of log(softmax(x)), or cross_entropy on the scores; where a mask makes p exactly 0, "
    "torch.special.entr(p) gives −p·log(p) with 0 there",
    ("log", "exp"): "log(exp(x)) is x; for a sum of exponentials use torch.logsumexp",
    (
        "log",
        "sum",
    ): "use torch.logsumexp in place of the logarithm of a sum of exponentials, or clamp_min(1e-12) before log",
}


_HALF = 65504.0
"""Largest number of float16."""


def advice(operation: Mapping[str, Any], cause: str) -> str:
    """What to change, for the operation that an event describes and the cause that it was given."""
    name, kind, node = str(operation.get("name", "")), str(operation.get("kind", "")), str(operation.get("node", ""))
    if cause == "precision":
        return _in_float32(operation)
    if cause == "non-finite-data":
        return _of_data(operation)
    if cause == "feature-scale":
        which = " and ".join(f"`{n}`" for n in operation.get("undone", ()))
        return f"standardise {which} (mean 0, deviation 1 per column, with numbers of the training set)"
    if node:
        start = next((text for key, text in _DERIVATIVES.items() if key in node), "")
        if start:
            return start
    words = str(operation.get("words", "")).replace("`", "")  # older traces name functions without quotes
    for (made, producer), text in _WITH_PRODUCER.items():
        if name == made and words.startswith(f"{producer} gave"):
            return text
    return _BY_KIND.get(kind, "")


def _in_float32(operation: Mapping[str, Any]) -> str:
    operands = (operation.get("facts") or {}).get("operands") or ()
    if operation.get("name") in ("mul", "add", "sub") and any(abs(float(v)) > _HALF for v in operands[1:]):
        dtype = operation.get("dtype")
        return f"the constant does not fit {dtype}: write torch.finfo(x.dtype).min, or masked_fill(mask, -torch.inf) where it is a mask"
    if operation.get("place") == "loss":
        return "compute the loss in float32: output.float() and targets.float() before it, outside of autocast"
    where = operation.get("module") or "this operation"
    back = (
        "; a GradScaler guards gradients that become too small or too large, it cannot mend one operation"
        if operation.get("node")
        else ""
    )
    return (
        f"compute {where} in float32: with torch.autocast(device_type, enabled=False) and .float() on its input{back}"
    )


def _of_data(operation: Mapping[str, Any]) -> str:
    tensor = operation.get("tensor") or {}
    name = str(tensor.get("name") or "the tensor")
    if operation.get("masked"):
        return (
            f"multiplying by a mask does not remove NaN (0 · NaN = NaN): fill the masked entries of `{name}` where it is made, or with "
            "torch.where before they are used"
        )
    if operation.get("place") == "loss" or name.rpartition(".")[2] in ("y", "target", "targets", "label", "labels"):
        return f"leave out what has no target (mask = torch.isfinite({name})), and find out where the entries come from"
    return (
        f"mend `{name}` where it is made; nan_to_num would turn a missing value into a measured zero. Memory from torch.empty must be "
        "written before it is read"
    )
