"""Suspects in the model: sums, initial gains, query and key weights, missing paths, clamps, biases, number formats."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from gnnstab.errors import FixError
from gnnstab.fixes.aggregation import set_aggregation
from gnnstab.fixes.identity import add_identity
from gnnstab.fixes.model_structure import duplicate, sum_aggregators
from gnnstab.layers import layer_named
from gnnstab.records import LayerFacts
from gnnstab.records.vocabulary import (
    AGGREGATION_RMS,
    GAIN_SKIP,
    GAIN_VALUE,
    LOGIT_FROBENIUS,
    LOSS_OVER_ZERO,
    PLACE_DEAD_SHARE,
    PLACE_GAIN,
    PLACE_SATURATED_SHARE,
    POOL_SUM_SIZE,
    SCORE_PRODUCT_SCALE,
    SUM_BY_HAND_SIZE,
)
from gnnstab.rules.gs201_unstable_init_gain import UnstableInitGain
from gnnstab.rules.gs301_attention_explosion import AttentionExplosion
from gnnstab.rules.gs401_sum_aggregation_growth import SumAggregationGrowth
from gnnstab.rules.queries import factor_on_scores, fresh, large_gain, measured, per_head
from gnnstab.verification.interventions._measuring import Look
from gnnstab.verification.interventions._trial import Case, Edit, Trial

LOGIT_REFERENCE = 1.0
"""Spread of the logits of one target at an input of RMS 1 that query and key of gain 1 give."""

GAINS = (0.5, 1.7)
"""√(value gain² + skip gain²) of initialisations in use: .8 for PyG's default, 1.4 for gain 1 in both."""

MADE_GAINS = (0.2, UnstableInitGain.gain)
"""The same of weights that were trained, which moves gains as well: what lies beyond was drawn so, or nothing is left of it."""

DEAD = 0.5
"""Share of the channels of a layer that are negative on every node; by chance about a quarter are, on a few nodes."""

_SIZE = ("attention.", "score.", "precision.", "output.", "input.", "clip.", PLACE_SATURATED_SHARE)
"""Symptoms that the size of node states brings about."""


def divide_sums(case: Case, base: Look) -> Iterator[Trial]:
    """The sums of messages divided by the in-degree."""
    if not case.suffers(*_SIZE, LOSS_OVER_ZERO, "gradient.", "channels."):
        return
    pooled = [s.value for s in case.signals.find(POOL_SUM_SIZE)]
    if pooled:
        yield _trial(
            "divide-pooled", "sum-aggregation", ["the pooling"], "dividing the pooled sums by the number of nodes",
            f"a pooling adds up the nodes of graphs of up to {max(pooled):.0f} nodes", Edit(pool_mean=True),
            deviates=case.suffers(LOSS_OVER_ZERO),
        )  # fmt: skip
    summed = [s.value for s in case.signals.find(SUM_BY_HAND_SIZE)]
    if summed:
        yield _trial(
            "divide-sums-by-hand", "sum-aggregation", ["the model's own code"], "dividing the sums by the size of their groups",
            f"{{}} adds up the features of up to {max(summed):.0f} rows", Edit(hand_mean=True),
            deviates=case.suffers(LOSS_OVER_ZERO),
        )  # fmt: skip
    attending = SumAggregationGrowth().of_attention(case.signals)
    if attending:
        # Layers of one class do the same, whether it shows in each of them or not.
        kinds = {layer.kind for layer in case.signals.attention_layers if layer.name in {s.layer for s in attending}}
        same = [layer.name for layer in case.signals.attention_layers if layer.kind in kinds]
        yield _trial(
            "divide-attention-sums", "sum-aggregation", same, "dividing what {} adds up by the in-degree",
            f"what {{}} adds up beside its weights follows the in-degree and reaches RMS {max(s.value for s in attending):.2g}",
            Edit(model=_as_means(same)),
        )  # fmt: skip
    attention = {layer.name for layer in case.signals.attention_layers}
    try:
        names = [name for name, _ in sum_aggregators(case.model) if name not in attention]
    except FixError:
        return
    if not names:
        return
    grown = [s.value for s in case.signals.find(AGGREGATION_RMS) if math.isfinite(s.value)]
    size = f" and reaches RMS {max(grown):.2g}" if grown else ""
    yield _trial(
        "divide-sums", "sum-aggregation", names, "dividing the sum of {} by the in-degree",
        f"the sum over neighbours in {{}} follows the in-degree{size}", Edit(model=_as_means(names)),
        deviates=bool(grown) and max(grown) > 2.0,
    )  # fmt: skip


def _as_means(names: Sequence[str]) -> Callable[[nn.Module], AbstractContextManager[nn.Module]]:
    """An edit with which layers of a model take the mean, and that gives them their sums back."""

    @contextmanager
    def edited(model: nn.Module) -> Iterator[nn.Module]:
        # A model that is itself a layer is recorded under the name of its class.
        sums: list[Any] = [model if name == type(model).__name__ else model.get_submodule(name) for name in names]
        before = [(module.aggr, module.aggr_module) for module in sums]
        try:
            for module in sums:
                set_aggregation(module, "mean")
            yield model
        finally:
            for module, (name, reduction) in zip(sums, before, strict=True):
                module.aggr, module.aggr_module = name, reduction

    return edited


def unit_gains(case: Case, base: Look) -> Iterator[Trial]:
    """Layers whose weights carry a gain outside the initialisations in use, scaled to a gain of 1.

    Where query and key are as large as the values, the initialisation made all of them, and all are scaled.
    """
    if not case.suffers(*_SIZE, "gradient.", "smoothness.", "channels."):
        return
    yield from _of_single_weights(case)
    if _began_well(case):
        return
    gains = {layer.name: _gain(case, layer) for layer in case.signals.attention_layers}
    trained = case.signals.kind == "trace" or case.signals.context.get("trained") is True
    low, high = MADE_GAINS if trained and not fresh(case.signals) else GAINS
    odd = {name: gain for name, gain in gains.items() if gain and not low <= gain <= high}
    if odd:
        alike = [
            layer
            for layer in case.signals.attention_layers
            if layer.name in odd and large_gain(layer.name, case.signals)
        ]
        scores = {name: factors for name, factors, _ in _wide(case, alike)}
        worst = max(odd.values(), key=lambda gain: abs(math.log(gain)))
        # What feeds these layers was drawn as wide; their own scores are scaled as a whole.
        own = [(layer.name, part) for layer in alike for part in layer_named(layer).roles.get("score", ())]
        beside = {
            name: gain
            for name, gain in (_wide_weights(case).items() if alike else ())
            if not any(f"{name}.".startswith(f"{layer}.{part}.") for layer, part in own)
        }
        yield _trial(
            "unit-gains", "unsuitable-init", [*odd, *beside], "scaling the weights of {} to a gain of 1",
            f"the weights of {{}} carry a gain of {worst:.2g}",
            Edit(
                model=_divided(beside) if beside else None,
                output_factors={name: 1.0 / gain for name, gain in odd.items()}, score_factors=scores,
            ),
        )  # fmt: skip


def _began_well(case: Case) -> bool:
    """True for a run whose symptoms were none at its first full measurement: how its weights were drawn has not made them."""
    first = [
        [
            series.values[0]
            for series in case.signals.over_steps(s.goal.signal, layer=s.goal.layer)
            if len(series.values)
        ]
        for s in case.symptoms
    ]
    return (
        case.signals.kind == "trace"
        and bool(first)
        and all(
            values and all(map(symptom.goal.crossed, values))
            for symptom, values in zip(case.symptoms, first, strict=True)
        )
    )


def _of_single_weights(case: Case) -> Iterator[Trial]:
    """Weights anywhere on the way that were drawn far too wide, as GS201 has seen it.

    Of a layer whose own scores are all that suffers they are the queries and keys: `rescale_queries` tells of those.
    """
    found = _wide_weights(case)
    suffering = {symptom.goal.layer for symptom in case.symptoms}
    scores = all(symptom.goal.signal.startswith(("attention.", "score.")) for symptom in case.symptoms)
    if scores and len(suffering) == 1:
        found = {name: gain for name, gain in found.items() if not name.startswith(f"{next(iter(suffering))}.")}
    if found:
        yield _trial(
            "unit-gains", "unsuitable-init", found, "scaling the weight of {} to a gain of 1",
            f"the weight of {{}} has a gain of {max(found.values()):.3g}", Edit(model=_divided(found)),
        )  # fmt: skip


def _wide_weights(case: Case) -> dict[str, float]:
    """Module → gain of its weight, of those that GS201 has warned of."""
    return {str(f.layer): f.value for f in case.findings if f.signal == PLACE_GAIN and math.isfinite(f.value)}


def _divided(gains: Mapping[str, float]) -> Callable[[nn.Module], AbstractContextManager[nn.Module]]:
    """An edit that divides the weights of modules by their gains, and puts them back."""

    @contextmanager
    def edited(model: nn.Module) -> Iterator[nn.Module]:
        # A table of embeddings may be read without a call of its module, which no hook would see.
        weights = [model.get_submodule(name).get_parameter("weight").data for name in gains]
        before = [weight.clone() for weight in weights]
        try:
            for weight, gain in zip(weights, gains.values(), strict=True):
                weight.div_(gain)
            yield model
        finally:
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)

    return edited


def divide_products(case: Case, base: Look) -> Iterator[Trial]:
    """Scores that are many times q·k/√d, divided by what is too much."""
    limit = AttentionExplosion().product_scale
    scales = {str(s.layer): s.value for s in measured(case.signals.find(SCORE_PRODUCT_SCALE)) if s.value > limit}
    if scales and case.suffers("attention.", "score.", "precision.", "gradient."):
        yield _trial(
            "divide-products", "attention-explosion", scales, "dividing the scores of {} down to q·k/√d",
            f"the scores of {{}} are {max(scales.values()):.3g} times q·k/√d",
            Edit(score_factors={name: torch.tensor(1 / scale) for name, scale in scales.items()}),
        )  # fmt: skip


def rescale_queries(case: Case, base: Look) -> Iterator[Trial]:
    """Heads whose query and key weights spread the logits more than weights of gain 1, scaled down to those."""
    if not case.suffers("attention.", "score.", "precision.", "gradient.", "output."):
        return
    wide = _wide(case, case.signals.attention_layers)
    factors, spreads = {name: gammas for name, gammas, _ in wide}, [spread for *_, spread in wide]
    if factors:
        own = [layer for layer in case.signals.attention_layers if layer.name in factors]
        products = all(layer_named(layer).multiplies for layer in own)
        told = max((factor_on_scores(case.signals, layer) for layer in own), key=len)
        query, both = ("query", "query and key") if products else ("score", "score")
        yield _trial(
            "rescale-queries", "attention-explosion", factors,
            f"scaling the {query} weights of {{}} to a logit spread of {LOGIT_REFERENCE:g} at an input of RMS 1",
            f"the {both} weights of {{}}{told} spread the logits by up to {max(spreads):.3g} at an input of RMS 1",
            Edit(score_factors=factors), deviates=max(spreads) > 2 * LOGIT_REFERENCE,
        )  # fmt: skip


def identity_paths(case: Case, base: Look) -> Iterator[Trial]:
    """An identity of weight 1 around every attention layer that has none."""
    around = [layer for layer in case.signals.attention_layers if layer.identity_path is False]
    bare = [layer.name for layer in around]
    projected = all(layer.get("residual") for layer in around)
    if not bare or not case.suffers("gradient.", "smoothness."):
        return

    @contextmanager
    def edited(model: nn.Module) -> Iterator[nn.Module]:
        copy = duplicate(model)
        add_identity(copy, 1.0)
        yield copy

    yield _trial(
        "identity-paths", "no-residual", bare, "laying an identity path around the layers",
        "no identity path leads around {}" + (", only the projection that each adds (residual=True)" if projected else ""),
        Edit(model=edited), deviates=False,
    )  # fmt: skip


def post_norms(case: Case, base: Look) -> Iterator[Trial]:
    """The gradient passes around the normalisations that stand on the residual path itself."""
    names = base.post_norms
    if names and case.suffers("gradient."):
        yield _trial(
            "post-norms", "normalization-misuse", names, "letting the gradient pass around {}",
            "the normalisations {} stand after the residual sum (post-norm), so that every gradient passes through all of them",
            Edit(model=_hooked(names, lambda module: module.register_forward_hook(_around))), deviates=False,
        )  # fmt: skip


def _hooked(
    names: Sequence[str], register: Callable[[nn.Module], RemovableHandle]
) -> Callable[[nn.Module], AbstractContextManager[nn.Module]]:
    """An edit of a model that hooks these of its modules, and takes the hooks off again."""

    @contextmanager
    def edited(model: nn.Module) -> Iterator[nn.Module]:
        hooks = [register(model.get_submodule(name)) for name in names]
        try:
            yield model
        finally:
            for hook in hooks:
                hook.remove()

    return edited


def _around(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    """The same numbers, and the gradient of the identity."""
    x: torch.Tensor = args[0]
    return output if x.shape != output.shape else x + (output - x).detach()


def full_precision(case: Case, base: Look) -> Iterator[Trial]:
    """The same forward in fp32."""
    if case.precision != "fp32" and case.suffers("precision.", "output.", "input.", "score.", "attention.", "loss"):
        said = f"the forward runs in {case.precision}"
        yield _trial("full-precision", "precision", (), "computing in fp32", said, Edit(precision="fp32"))


def clamps_off(case: Case, base: Look) -> Iterator[Trial]:
    """Clamps with an upper limit let everything through."""
    if any(finding.cause == "active-clamp" for finding in case.findings):
        yield _trial(
            "clamps-off", "active-clamp", (), "taking the clamp off", "a clamp cuts values off on the way",
            Edit(unclamped=True), deviates=False,
        )  # fmt: skip


def centred_units(case: Case, base: Look) -> Iterator[Trial]:
    """Channels that are negative on every node get back a mean of zero, as with the bias that they were made with."""
    if not case.suffers("channels.", "gradient."):
        return
    dead = [str(f.layer) for f in case.findings if f.signal == PLACE_DEAD_SHARE]
    for name, output in base.outputs.items():
        if output.dim() == 2 and (output <= 0).all(0).sum() > DEAD * output.shape[-1]:
            dead.append(name)
    if dead:
        yield _trial(
            "centred-units", "dead-units", dead, "restoring the bias of the dead units of {}",
            "units of {} are negative on every node", Edit(centred=frozenset(dead)),
        )  # fmt: skip


def norms_told_of_graphs(case: Case, base: Look) -> Iterator[Trial]:
    """Normalisations over the nodes of a graph get the ``batch`` that they were called without."""
    from gnnstab.probe.attaching.norms import graphs_in

    found: Any = case.signals.context.get("norm_without_batch", ())
    vectors = graphs_in(case.batch)
    if not found or not vectors:
        return
    names, told = [str(name) for name in found], _Told(vectors)
    yield _trial(
        "norms-told-of-graphs", "normalization-misuse", names, "passing batch to {}",
        "the normalisation {} takes the graphs of one batch together",
        Edit(model=_hooked(names, lambda module: module.register_forward_pre_hook(told, with_kwargs=True))),
    )  # fmt: skip


class _Told:
    """A hook that adds ``batch`` where its length fits the nodes."""

    def __init__(self, vectors: list[torch.Tensor]) -> None:
        self._vectors = vectors

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        nodes = args[0].shape[0] if args else -1
        fitting = next((v for v in self._vectors if len(v) == nodes), None)
        return None if fitting is None or len(args) > 1 else (args, {"batch": fitting, **kwargs})


def _wide(case: Case, layers: Sequence[LayerFacts]) -> list[tuple[str, torch.Tensor, float]]:
    """(layer, (H,) factors on its scores, widest spread) of layers whose logits spread beyond the reference at RMS 1."""
    found = []
    for layer in layers:
        spreads = {s.head or 0: s.value for s in per_head(case.signals, LOGIT_FROBENIUS, layer.name)}
        if spreads and max(spreads.values()) > LOGIT_REFERENCE:
            heads = [spreads.get(head, 0.0) for head in range(layer.heads or max(spreads) + 1)]
            gammas = [LOGIT_REFERENCE / max(spread, LOGIT_REFERENCE) for spread in heads]
            found.append((layer.name, torch.tensor(gammas), max(spreads.values())))
    return found


def _gain(case: Case, layer: LayerFacts) -> float | None:
    found = [case.signals.value(name, layer=layer.name) for name in (GAIN_VALUE, GAIN_SKIP)]
    known = [value for value in found if value is not None and math.isfinite(value)]
    return math.sqrt(sum(value**2 for value in known)) if known else None


def _trial(
    name: str, cause: str, places: Iterable[str], words: str, suspect: str, edit: Edit, *, deviates: bool = True
) -> Trial:
    """A trial whose texts say ``{}`` for the places: the first three of them, and how many more there are."""
    names = list(places)
    place = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return Trial(name, cause, words.replace("{}", place), suspect.replace("{}", place), edit, deviates, place)
