"""Was this checkpoint trained, as far as the file tells?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gnnstab.checkpoint._fingerprint import Fingerprint
from gnnstab.checkpoint._loading import Checkpoint
from gnnstab.checkpoint._optimizer import plain_number
from gnnstab.checkpoint._scan import scan
from gnnstab.checkpoint._tensors import identity, readable
from gnnstab.layers import StoredLayer


def was_trained(
    checkpoint: Checkpoint, convs: Sequence[StoredLayer], prints: Sequence[Fingerprint]
) -> tuple[bool | None, str]:
    """(True, False or None, what it was read from). None: no evidence either way."""
    for evidence in (
        steps_taken(checkpoint),
        _passed(checkpoint.tensors),
        _moved_norm(checkpoint.tensors),
        _moved_bias(convs),
    ):
        if evidence:
            return True, evidence
    light = sum(p.family != "unknown" and not p.pristine for p in prints)
    if light:
        return True, f"{light} weight matrices are close to, but not at, a known initialisation"
    if prints and all(p.family != "unknown" for p in prints):
        return False, f"all {len(prints)} weight matrices looked at still have their initial distribution"
    return None, "the weights match no known initialisation and the file holds no step count"


def steps_taken(checkpoint: Checkpoint) -> str:
    """What counts steps of a training, in words; empty where the file holds no count."""
    for name, value in checkpoint.progress.items():
        if value > 0:
            return f"{name} = {value} in the file"
    steps = [e.step for optimizer in checkpoint.optimizers for e in optimizer.entries if e.step]
    if steps:
        return f"the optimizer took {max(steps):.0f} steps"
    return ""


SPREAD, FLAT, NARROWEST, WIDEST = 1.01, 0.5, 16, 512
"""Stable rank ‖W‖_F²/‖W‖² above which rows are not all alike, its share of that of independent entries below which few directions are large,
and the least and the largest short side of a matrix that is looked at."""


def reshaped(convs: Sequence[StoredLayer]) -> str:
    """In words, where most matrices (out, in) have few large directions, as training gives them and no initialisation in use; else empty."""
    judged = concentrated = 0
    for weight in (
        w.detach().double() for conv in convs for w in conv.tensors.values() if w.dim() == 2 and readable(w)
    ):
        short, long = sorted(int(n) for n in weight.shape)
        if not bool(weight.isfinite().all()) or not bool(weight.any()):
            continue
        weight = weight / weight.abs().max()
        gram = weight @ weight.mT if short == weight.shape[0] else weight.mT @ weight
        rank = float(gram.trace() / torch.linalg.eigvalsh(gram)[-1])
        judged += 1
        concentrated += SPREAD < rank < FLAT * short * long / (math.sqrt(short) + math.sqrt(long)) ** 2
    if 2 * concentrated <= judged:
        return ""
    return f"{concentrated} of {judged} weight matrices have few large directions, as training gives them"


def _passed(tensors: Mapping[str, Tensor]) -> str:
    """A BatchNorm counts forwards in training mode."""
    for name, tensor in tensors.items():
        if name.endswith("num_batches_tracked") and (count := plain_number(tensor)) and count > 0:
            return f"{name} = {count:.0f}"
    return ""


def _moved_norm(tensors: Mapping[str, Tensor]) -> str:
    """Weights of normalisations start at exactly 1."""
    for name, weight in tensors.items():
        bias = tensors.get(name.removesuffix("weight") + "bias")
        if not name.endswith(".weight") or bias is None or not readable(weight) or not readable(bias):
            continue
        like_a_norm = weight.dim() == 1 and 1 < weight.numel() <= 2**20 and weight.shape == bias.shape
        if like_a_norm and not bool((weight == 1).all()):
            return f"{name} is a normalisation's weight and no longer 1"
    return ""


def _moved_bias(convs: Sequence[StoredLayer]) -> str:
    """Biases of PyG's own initialisation stay within ±1/√D; weights that do so too while a bias does not were trained."""
    known: dict[tuple[object, ...], float] = {}
    for conv in convs:
        for name, bias in conv.tensors.items():
            weight = conv.tensors.get(name.removesuffix("bias") + "weight")
            if not name.endswith(".bias") or weight is None:
                continue
            bound = 1 / math.sqrt(int(weight.shape[1]))
            view = identity(weight)
            if view not in known:
                known[view] = _largest(weight)
            if known[view] <= bound and _largest(bias) > bound * 1.01:
                return f"{conv.name}.{name} left the range of its initialisation"
    return ""


def _largest(tensor: Tensor) -> float:
    """Size of the largest entry; NaN where one is not finite."""
    numbers = scan(tensor)
    return math.nan if numbers.non_finite else max(-numbers.minimum, numbers.maximum)
