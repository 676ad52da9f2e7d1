"""What a repeated step showed, as one sentence and as the facts that go into the event of the trace."""

from __future__ import annotations

import math
from typing import Any

from gnnstab.probe.operations._naming import Named
from gnnstab.probe.operations._watch import Operation, Origin, mask_behind
from gnnstab.probe.operations.repeat import Found

_IN_WORDS = {"model": "the model's forward", "loss": "the loss", "backward": "the backward"}


def facts(found: Found, how: str = "repeated") -> dict[str, Any]:
    """What is known about the first bad value, JSON-able.

    Args:
        found: What the step showed.
        how: ``repeated`` (on a copy), ``watched`` (the run's own step) or ``loss repeated`` (the loss of a later step, on the
            output of this one).
    """
    origin = found.origin
    if origin is None:
        return {}
    operation, sizes = origin.operation, origin.operation.sizes
    place = operation.place
    told: dict[str, Any] = {
        "how": how,
        "name": operation.name,
        "kind": sizes.kind,
        "kinds": operation.kinds,
        "words": sizes.words,
        "place": "backward" if operation.node else place.part,
        "node": operation.node,
        "module": place.module,
        "file": place.file,
        "line": place.line,
        "code": place.text[:200],
        "dtype": operation.dtype,
        "bad": operation.count,
        "entries": operation.entries,
        "rows": list(operation.rows),
        "made_here": operation.made_here or origin.tensor is None,
        "facts": {k: _number(v) for k, v in sizes.facts.items() if v is not None},
        "output_largest": _number(found.largest),
        "symptom": found.symptom,
        "masked": origin.masked,
    }
    if origin.tensor is not None:
        told["tensor"] = named(origin.tensor)
    if found.exact:
        told["fits_float32"] = True
    if found.wide:
        told["finite_in_float32"] = True
    if found.undone:
        told["undone"] = list(found.undone)
    return told


def named(tensor: Named) -> dict[str, Any]:
    """A tensor from outside, JSON-able."""
    return {
        "name": tensor.name,
        "owner": tensor.owner,
        "rows": list(tensor.rows),
        "kinds": tensor.kinds,
        "words": tensor.words,
    }


def sentence(origin: Origin) -> str:
    """Where the first bad value was made or came in, and of what sizes."""
    operation = origin.operation
    where = spot(operation)
    if origin.tensor is None:
        mask = mask_behind(operation) if operation.sizes.kind == "all-masked" else None
        held = f" (the −inf are those of `{mask.name}`)" if mask is not None and mask.name else ""
        return f"{operation.sizes.words}{held}, {where}"
    return f"{origin.tensor.words} and came in at `{operation.name}`, {where}"


def spot(operation: Operation) -> str:
    """``in the loss, line 26 of loss.py (`return …`)``."""
    place = operation.place
    part = "the backward of " if operation.node else ""
    whose = _IN_WORDS.get(place.part, "the step")
    if place.module:
        whose = place.module
    node = f" ({operation.node})" if operation.node else ""
    at = f", {place.words}" if place.words else ""
    code = f": `{place.text[:120]}`" if place.text else ""
    return f"in {part}{whose}{node}{at}{code}"


def _number(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_number(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
