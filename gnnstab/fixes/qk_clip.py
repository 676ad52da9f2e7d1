"""QK-clip: a weight edit that bounds the scores of every head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes.base import POSITIVE, Fix
from gnnstab.fixes.model_structure import editable_layers
from gnnstab.fixes.printing import written
from gnnstab.layers import FAMILY, layer_named, layer_of
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import ATTENTION_ENTROPY, DEGREE_MEDIAN, SCORE_MAX_ABS

if TYPE_CHECKING:
    from torch import nn

Factors = Mapping[str, Sequence[float]]
"""Layer → factor γ of each head."""


_UNTOUCHED = 1.0 - 1e-3
"""A factor above this is no change that anything could show."""


_ONCE = "# once, on the weights as they are; not at every step"

_UNMEASURED = (
    "# factor of each head: min(1, 3 * sqrt(2 * ln(median in-degree)) / its largest |score|)\n"
    "# no score was measured: diagnose with a batch of data, and the lines are printed with their numbers"
)


class QKClip(Fix):
    """Scales the query rows of every head (weight and bias) by γ = min(1, τ_d / max|s|), τ_d = 3·√(2 ln d), once: max|s| is the
    head's largest |score| before the softmax, d the median in-degree, τ_d the largest score that such a softmax takes.

    Scaling the query alone scales node and edge terms alike; no code changes and the file keeps its layout.
    Options: ``signals`` (a measurement with scores and in-degrees) or ``scores`` ({layer: [max|s| per head]}) with
    ``degree``; ``cap`` (3.0).
    """

    name = "qk-clip"
    title = "QK-clip: scale the query weights of saturated heads"
    options = ("scores", "degree", "cap")
    limits: ClassVar = {"degree": POSITIVE, "cap": POSITIVE}
    causes = ("attention-explosion", "precision")
    signal = ATTENTION_ENTROPY
    edit = "scale_scores"
    keeps_function = True
    costs_no_time = True
    cost = "none; flatter attention in the clipped heads; to be done again where training has made the scores grow anew"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        factors = self._factors_or_none({"signals": signals, **options})
        if factors is None:
            return _UNMEASURED
        known = {layer.name: layer for layer in layers}
        clipped = {
            name: gammas
            for name, gammas in factors.items()
            if (name not in known or FAMILY in known[name].options or layer_named(known[name]).applies("scale_scores"))
            and min(gammas, default=1.0) < _UNTOUCHED
        }
        loops = {tuple(layer_named(f or "").scale_lines("conv", f, None)) for f in map(known.get, clipped)}
        if len(clipped) > 1 and len(loops) == 1 and (body := loops.pop()):
            return f"{_ONCE}\n{_loop(clipped, body)}"
        lines = [line for name, gammas in clipped.items() for line in _edit_lines(name, gammas, known.get(name))]
        once = [_ONCE] if not all(line.startswith("#") for line in lines) else []  # Code to change acts at every step.
        return "\n".join([*once, *lines]) if lines else "# every head is below its cap: nothing to scale"

    def helps(self, signals: Signals, **options: Any) -> bool:
        """True unless the scores were measured and every head is below its cap, or above it by rounding alone."""
        factors = self._factors_or_none({"signals": signals, **options})
        return factors is None or any(gamma < _UNTOUCHED for gammas in factors.values() for gamma in gammas)

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        """Layers without measured scores stay as they are; of a layer of somebody's own what makes its scores is scaled."""
        import torch

        factors = self.factors(**options)
        modules = {type(copy).__name__: copy, **dict(copy.named_modules())}
        own = {name: gammas for name, gammas in factors.items() if name in modules and layer_of(modules[name]) is None}
        signals: Signals | None = options.get("signals")
        with torch.no_grad():
            for name, gammas in own.items():
                _scale_own(modules[name], None if signals is None else signals.layer(name), name, gammas)
            for name, layer, kind in editable_layers(copy, "scale_scores") if len(own) < len(factors) else ():
                kind.scale_scores(layer, factors.get(name, ()))

    def factors(self, **options: Any) -> Factors:
        """γ of every head of every measured layer.

        Raises `FixError` when no scores were measured.
        """
        scores, degree = _measured(options)
        tau = float(options.get("cap", 3.0)) * math.sqrt(2.0 * math.log(max(degree, 2.0)))
        return {layer: [_factor(tau, value) for value in heads] for layer, heads in scores.items()}

    def _factors_or_none(self, options: dict[str, Any]) -> Factors | None:
        try:
            return self.factors(**options)
        except FixError:
            return None


def _scale_own(layer: nn.Module, facts: LayerFacts | None, name: str, gammas: Sequence[float]) -> None:
    """Scale one of the parts that were seen to serve the scores alone: a product of queries and keys is linear in each of them.

    How its rows belong to heads is not known, so that all heads get the smallest factor.
    """
    parts = layer_named(facts).roles.get("score", ()) if facts is not None and FAMILY in facts.options else ()
    if not parts:
        raise FixError(
            f"which weights of {name} make its scores is not known, so that they cannot be scaled on a copy: multiply the scores by hand, as "
            "the change says, and diagnose again"
        )
    for parameter in layer.get_submodule(parts[0]).parameters():
        parameter.mul_(min(gammas, default=1.0))


def _factor(tau: float, largest: float) -> float:
    if math.isnan(largest):
        raise FixError("a head's scores are NaN; qk-clip needs finite scores (measure in fp32)")
    return min(1.0, tau / largest) if largest > 0 else 1.0


def _measured(options: dict[str, Any]) -> tuple[dict[str, list[float]], float]:
    """Largest |score| per layer and head, and the median in-degree."""
    signals: Signals | None = options.get("signals")
    scores: dict[str, list[float]] = {k: list(v) for k, v in (options.get("scores") or {}).items()}
    if not scores and signals is not None:
        for layer in signals.attention_layers:
            found = [s for s in signals.find(SCORE_MAX_ABS, layer=layer.name) if s.head is not None]
            heads = {s.head: max(t.value for t in found if t.head == s.head) for s in found}
            if heads:
                scores[layer.name] = [heads[h] for h in sorted(h for h in heads if h is not None)]
    degree = options.get("degree") or (signals.value(DEGREE_MEDIAN) if signals is not None else None)
    if not scores or degree is None:
        raise FixError(
            "qk-clip needs each head's largest |score| and the median in-degree: pass signals= of a run on a batch"
        )
    return scores, float(degree)


def _edit_lines(name: str, gammas: Sequence[float], layer: LayerFacts | None) -> list[str]:
    kept = [gamma if gamma < _UNTOUCHED else 1.0 for gamma in gammas]
    return layer_named(layer or "").scale_lines(_path(name, layer), layer, kept)


def _loop(factors: Factors, body: Sequence[str]) -> str:
    """The same edit of several layers as one loop."""
    lines = [
        f"    {_path(name)}: [{', '.join(f'{gamma:.4g}' for gamma in gammas)}]," for name, gammas in factors.items()
    ]
    inner = [f"    {line}" for line in body]
    return "\n".join(["gammas = {", *lines, "}", "for conv, gamma in gammas.items():", *inner])


def _path(name: str, layer: LayerFacts | None = None) -> str:
    """``convs.0`` as code: ``model.convs[0]``; ``model`` for a layer that is the model itself and goes by its class."""
    if layer is not None and name == layer.kind:
        return "model"
    return written("model", name.split("."))
