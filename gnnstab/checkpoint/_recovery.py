"""Checkpoint → facts: layers, numbers, and what the file cannot show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from gnnstab.checkpoint._correspondence import matching_names
from gnnstab.checkpoint._fingerprint import Fingerprint, fingerprint, is_judged, prevailing_label, shared_label
from gnnstab.checkpoint._heads import Heads, heads_of
from gnnstab.checkpoint._layers import find_layers, own_attention
from gnnstab.checkpoint._loading import Checkpoint
from gnnstab.checkpoint._moments import gradient_slope, optimizer_signals, settings_beyond
from gnnstab.checkpoint._naming import is_statistic, listed
from gnnstab.checkpoint._numbers import SLOPE_SQUARED, layer_signals
from gnnstab.checkpoint._optimizer import OptimizerState
from gnnstab.checkpoint._scan import Statistics
from gnnstab.checkpoint._tensor_scan import TensorScan, scan_tensors
from gnnstab.checkpoint._tensors import identity, readable
from gnnstab.checkpoint._training import reshaped, steps_taken, was_trained
from gnnstab.checkpoint._undecidable import assumptions, undecided
from gnnstab.checkpoint.facts import CheckpointFacts
from gnnstab.checkpoint.threads import one_thread
from gnnstab.errors import LoadError, UsageError
from gnnstab.layers import StoredLayer
from gnnstab.records import LayerFacts, Signal
from gnnstab.records.vocabulary import WEIGHT_GAIN_RMS, WEIGHT_NON_FINITE, WEIGHT_RMS

MOST_TOLD = 2000
"""Tensors of a file up to which each one's count of NaN and Inf is told; beyond, those of the layers and the bad ones."""

MOST_SHARED = 20
"""Layers under a second name that are told one by one."""

SLACK = 2**20
"""Bytes of matrices beyond the size of a file that are decomposed: small layers may share their weights."""

LARGE_VECTOR = 1e3
"""RMS from which on a gain or a bias outside of attention is told: GS605 judges none below it."""

SMALLEST_GAIN = 0.1
"""RMS of a gain from which on it is told."""

MOST_LAYERS = 5000
"""Attention layers of one file: each takes about a millisecond, and no network has thousands of them."""

MOST_LINEAR = 64
"""Plain Linear layers whose initialisation is looked at."""


def recover(
    checkpoint: Checkpoint,
    *,
    heads: int | None = None,
    activation: str | None = None,
    concat: bool | None = None,
    alone: bool = False,
) -> CheckpointFacts:
    """Find every attention layer of a checkpoint by names and shapes, and compute what the file alone can tell.

    ``heads`` and ``concat`` decide what concatenated heads leave open, ``activation`` (``relu`` unless given) enters the
    static gain. A file without any attention layer gives facts without layers. ``alone`` says that nothing but the file is
    looked at, so that attention of a class of its own is counted by its names.

    Raises `UsageError` when an option contradicts the file.
    """
    if activation is not None and activation not in SLOPE_SQUARED:
        raise UsageError(f"unknown activation {activation!r}; choose from {', '.join(SLOPE_SQUARED)}")
    with one_thread():
        facts = _recover(checkpoint, heads, activation, concat)
    if alone and not facts.layers and not facts.unjudged:
        facts = replace(facts, unjudged=tuple(own_attention(checkpoint.tensors)))
    return facts


def _recover(checkpoint: Checkpoint, heads: int | None, activation: str | None, concat: bool | None) -> CheckpointFacts:
    convs, unjudged, shared = find_layers(checkpoint.tensors)
    if len(convs) > MOST_LAYERS:
        raise LoadError(f"{checkpoint.path}: holds {len(convs)} attention layers; at most {MOST_LAYERS} are judged")
    known = [checkpoint.known.get(conv.name, {}) for conv in convs]
    decided = [
        heads_of(conv, heads, concat, facts, checkpoint.settings) for conv, facts in zip(convs, known, strict=True)
    ]
    _check_given(convs, decided, heads)
    looked_at = _Fingerprints()
    prints = [[looked_at(weight) for weight in conv.kind.drawn(conv)] for conv in convs]
    layers = tuple(
        _layer_facts(conv, position, decided[position], known[position], prints[position], activation)
        for position, conv in enumerate(convs)
    )
    seen = scan_tensors(checkpoint, _owners(convs))
    optimizer_values, optimizers = _optimizer_values(checkpoint, convs, layers, seen)
    plain = _plain_linear(checkpoint.tensors)
    linear = [looked_at(weight) for weight in plain[:MOST_LINEAR]]
    drawn = [weight for conv in convs for weight in conv.kind.drawn(conv)] + plain[:MOST_LINEAR]
    found = [p for group in prints for p in group] + linear
    trained, reason = was_trained(
        checkpoint, convs, [p for p, w in zip(found, drawn, strict=True) if looked_at.judged(w)]
    )
    affordable = _affordable(convs, checkpoint.size)
    return CheckpointFacts(
        path=checkpoint.path,
        layers=layers,
        values=(
            # Of layers whose weights are all finite; decompositions of others have no meaning.
            *(
                value
                for conv, layer in zip(convs, layers, strict=True)
                if conv.name in affordable
                and not any(identity(tensor) in seen.spoilt for tensor in conv.tensors.values())
                for value in layer_signals(conv, layer, activation or "relu")
            ),
            *_weight_values(convs, seen),
            *optimizer_values,
        ),
        undecided=undecided(layers, checkpoint.settings),
        assumptions=assumptions(layers, [h.source for h in decided], activation),
        notes=(
            *checkpoint.notes,
            *(f"{second} is {first} under another name" for second, first in list(shared.items())[:MOST_SHARED]),
            *seen.notes,
            *_left_out([conv.name for conv in convs if conv.name not in affordable]),
        ),
        unjudged=tuple(unjudged),
        linear_layers=len(plain),
        linear_initialisation=prevailing_label(linear) if linear else None,
        trained=trained,
        trained_reason=reason,
        steps_counted=bool(steps_taken(checkpoint)),
        reshaped=reshaped([conv for conv in convs if conv.name in affordable]) if trained is None else "",
        uninitialised=seen.uninitialised,
        optimizers=optimizers,
        progress=checkpoint.progress,
    )


class _Fingerprints:
    """Fingerprints of matrices, each looked at once under however many names it stands in the file."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[bool, Fingerprint]] = {}

    def __call__(self, weight: Tensor) -> Fingerprint:
        return self._look(weight)[1]

    def judged(self, weight: Tensor) -> bool:
        return self._look(weight)[0]

    def _look(self, weight: Tensor) -> tuple[bool, Fingerprint]:
        key = identity(weight)
        if key not in self._known:
            self._known[key] = is_judged(weight), fingerprint(weight)
        return self._known[key]


def _affordable(convs: Sequence[StoredLayer], size: int) -> frozenset[str]:
    """The layers whose matrices together have no more bytes than the file: further ones are made of the same matrices again.

    Their norms take decompositions, seconds for a matrix of 2000 columns, and one matrix may stand under any number of names.
    """
    spent, names = 0, set[str]()
    for conv in convs:
        matrices = {identity(t): t.numel() * t.itemsize for t in conv.tensors.values() if t.dim() > 1}
        spent += sum(matrices.values())
        if not size or spent <= size + SLACK:
            names.add(conv.name)
    return frozenset(names)


def _left_out(names: Sequence[str]) -> list[str]:
    are = "layers are" if len(names) != 1 else "layer is"
    shown = listed(names, 3)
    return [f"{len(names)} {are} made of matrices of others, whose norms are told: {shown}"] if names else []


def _check_given(convs: Sequence[StoredLayer], decided: Sequence[Heads], given: int | None) -> None:
    """A number of heads that every layer contradicts is a mistake; one that some layer can use is not."""
    if given is None or not convs or any(h.source == "given" or h.heads == given for h in decided):
        return
    first = next((i for i, h in enumerate(decided) if h.heads is not None), 0)
    raise UsageError(
        f"heads={given} contradicts the file: {convs[first].name} has {decided[first].heads}, {decided[first].source}"
    )


def _layer_facts(
    conv: StoredLayer,
    position: int,
    heads: Heads,
    known: Mapping[str, Any],
    prints: list[Fingerprint],
    activation: str | None,
) -> LayerFacts:
    rows, _ = conv.kind.widths(conv)
    return LayerFacts(
        name=conv.name,
        kind=str(known.get("kind", conv.kind.kind)),
        position=position,
        attention=True,
        out_channels=None if heads.heads is None else rows // heads.heads,
        heads=heads.heads,
        concat=heads.concat,
        activation=activation,
        initialisation=shared_label(prints),
        **conv.kind.stored_facts(conv, known),
    )


def _filled(numbers: Statistics) -> dict[str, float]:
    """The one number that all entries hold, as of a single one."""
    return {"entry": numbers.minimum} if numbers.minimum == numbers.maximum else {}


def _sized(name: str, dims: int, size: float) -> bool:
    """True for a matrix called weight; gains and biases start at one and zero, and count where they are larger than any of them begins."""
    return (name.endswith("weight") and dims > 1) or (name.endswith(("weight", "bias")) and size > LARGE_VECTOR)


def _weight_values(convs: Sequence[StoredLayer], seen: TensorScan) -> list[Signal]:
    """RMS of the attention layers' parameters, of other matrices called weight and of large vectors, and NaN and Inf entries of every tensor of the file."""
    owners = _owners(convs)
    few = len(seen.non_finite) <= MOST_TOLD
    values = [
        Signal(
            WEIGHT_RMS,
            numbers.rms,
            owners.get(name, name.rpartition(".")[0]),
            source="weights",
            detail={"parameter": name} | _filled(numbers) | ({} if name in owners else {"plain": True}),
        )
        for name, numbers in seen.parameters.items()
        if not numbers.non_finite and (name in owners or (few and _sized(name, len(seen.shapes[name]), numbers.rms)))
    ]
    values += [
        Signal(WEIGHT_GAIN_RMS, numbers.rms, name.rpartition(".")[0], source="weights", detail={"parameter": name})
        for name, numbers in seen.parameters.items()
        if few and name not in owners and name.endswith("weight") and len(seen.shapes[name]) == 1
        # Below it a gain was shut on purpose, and nothing can be said of how it grew.
        if not numbers.non_finite and numbers.rms >= SMALLEST_GAIN
    ]
    for name, count in seen.non_finite.items():
        if few or name in owners or count:
            layer = owners.get(name, name.rpartition(".")[0])
            detail: dict[str, Any] = {"parameter": name, "tensors": len(seen.non_finite)}
            detail |= {"statistic": True} if is_statistic(name) else {}
            detail |= {"unwritten": True} if name in seen.unwritten else {}
            values.append(Signal(WEIGHT_NON_FINITE, float(count), layer, source="weights", detail=detail))
    return values


def _optimizer_values(
    checkpoint: Checkpoint, convs: Sequence[StoredLayer], layers: Sequence[LayerFacts], seen: TensorScan
) -> tuple[list[Signal], tuple[str, ...]]:
    shapes = {
        prefix: [(name, seen.shapes[name]) for name in names if name in seen.shapes]
        for prefix, names in checkpoint.networks.items()
    }
    values: list[Signal] = []
    lines: list[str] = []
    known: set[tuple[object, ...]] = set()
    tied: set[str] = set()
    for optimizer in checkpoint.optimizers:
        values += settings_beyond(optimizer)
        if _shares_state(optimizer, known):
            lines.append(f"{optimizer.path}: one state stands for several parameters or optimizers; not judged")
            continue
        names, line = matching_names(optimizer, shapes)
        if not tied.isdisjoint(names.values()):
            lines.append(f"{optimizer.path}: another optimizer holds the state of the same parameters; not judged")
            continue
        tied.update(names.values())
        lines.append(line)
        found = optimizer_signals(optimizer, names, _owners(convs), seen.parameters)
        values += [*found, *gradient_slope(found, [layer.name for layer in layers])]
    return values, tuple(lines)


def _shares_state(optimizer: OptimizerState, known: set[tuple[object, ...]]) -> bool:
    """True when a tensor of its state is among ``known``, or is there twice; ``known`` gets all of them."""
    tensors = (tensor for entry in optimizer.entries for tensor in entry.tensors.values())
    views = [identity(tensor) for tensor in tensors if readable(tensor) and tensor.numel() > 1]
    before = len(known)
    known.update(views)
    return len(known) - before < len(views)


def _owners(convs: Sequence[StoredLayer]) -> dict[str, str]:
    return {name: conv.name for conv in convs for name in conv.parameters()}


def _plain_linear(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Weights of Linear layers outside any attention layer: a matrix beside a bias of as many entries as it has rows."""
    found = []
    for name, weight in tensors.items():
        module = name.rpartition(".")[0]
        bias = tensors.get(module + ".bias")
        if name.endswith(".weight") and bias is not None and not module.rpartition(".")[2].startswith("lin_"):
            matrix = readable(weight) and readable(bias) and weight.dim() == 2
            if matrix and tuple(bias.shape) == (weight.shape[0],):
                found.append(weight)
    return found
