"""How a weight matrix was initialised, as long as training has not blurred it.

The order of the tests matters: entries of an orthogonal matrix look Gaussian, so orthogonality is tested first, and on
the whole (stacked) matrix, since one head's rows of an orthogonal matrix are not orthogonal by themselves.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from gnnstab.checkpoint._scan import finite

SMALLEST = 64
"""Entries below which no distribution is claimed."""

NARROWEST = 4
"""Rows or columns below which orthogonality means nothing: any single row is orthogonal."""

LARGEST = 4_000_000
"""Entries above which a matrix is not looked at, for the time that its Gram matrix would take."""

PRISTINE, LIGHT = 0.02, 0.5
"""Limits on δ/δ_iid: untouched; touched by up to some 300 Adam steps (measured at lr 5e-4)."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The verdict on one matrix."""

    family: str
    """``orthogonal``, ``pyg-default`` (also torch's own default), ``xavier-uniform``, ``he-uniform``, ``xavier-normal``,
    ``he-normal``, ``constant`` or ``unknown``."""

    gain: float = 1.0
    """Gain over the family's standard scale."""

    pristine: bool = False
    """True when not even a few optimizer steps seem to have been taken."""

    @property
    def label(self) -> str:
        """``pyg-default``, ``orthogonal(1.41)``, ``orthogonal(1.00), lightly trained``, ``unknown``, …"""
        if self.family in ("unknown", "constant"):
            return self.family
        scale = "" if self.family == "pyg-default" else f"({self.gain:.2f})"
        return f"{self.family}{scale}" + ("" if self.pristine else ", lightly trained")


WIDEST = 1e30
"""Largest entry, and one over the smallest, of a matrix whose fourth powers float64 holds; nothing draws such."""

UNKNOWN = Fingerprint("unknown")


def is_judged(weight: Tensor) -> bool:
    """True for a matrix of a size at which a distribution can be told, without NaN and Inf."""
    return SMALLEST <= weight.numel() <= LARGEST and finite(weight)


def fingerprint(weight: Tensor) -> Fingerprint:
    """The initialisation of a 2-D weight (out, in), or `UNKNOWN`."""
    out, width = (int(n) for n in weight.shape)
    if not is_judged(weight):
        return UNKNOWN
    slack = 8 * torch.finfo(weight.dtype).eps
    matrix = weight.detach().double()
    if float(matrix.max()) == float(matrix.min()):
        return Fingerprint("constant", float(matrix.flatten()[0]), pristine=True)
    if not 1 / WIDEST < float(matrix.abs().max()) < WIDEST:
        return UNKNOWN
    return _orthogonal(matrix) or _uniform(matrix, out, width, slack) or _normal(matrix, out, width) or UNKNOWN


def shared_label(prints: list[Fingerprint]) -> str:
    """The label that all matrices share (gains within 5 %), else ``mixed`` when all are known, else ``unknown``."""
    if not prints or any(p.family == "unknown" for p in prints):
        return "unknown"
    first = prints[0]
    if any(p.family != first.family or abs(p.gain - first.gain) > 0.05 * abs(first.gain) for p in prints):
        return "mixed"
    gain = sum(p.gain for p in prints) / len(prints)
    return Fingerprint(first.family, gain, all(p.pristine for p in prints)).label


def prevailing_label(prints: list[Fingerprint]) -> str:
    """The label of the family that most matrices have, with its median gain; ``unknown`` when no half of them agrees.

    Networks give their last layer a smaller gain, which does not change how the others were initialised.
    """
    families = [p.family for p in prints]
    family = max(families, key=families.count, default="unknown")
    members = [p for p in prints if p.family == family]
    if family == "unknown" or 2 * len(members) < len(prints):
        return "unknown"
    return Fingerprint(family, statistics.median(p.gain for p in members), all(p.pristine for p in members)).label


def _orthogonal(matrix: Tensor) -> Fingerprint | None:
    """δ = ‖G/c − I‖_F/√r of the short side's Gram matrix G, c its mean diagonal, against √(r/max) of an i.i.d. matrix."""
    short, long = sorted(int(n) for n in matrix.shape)
    if short < NARROWEST:
        return None
    gram = matrix @ matrix.mT if matrix.shape[0] == short else matrix.mT @ matrix
    scale = float(gram.diagonal().mean())
    if scale <= 0:
        return None
    delta = float(torch.linalg.matrix_norm(gram / scale - torch.eye(short, dtype=gram.dtype))) / math.sqrt(short)
    ratio = delta / math.sqrt(short / long)
    return Fingerprint("orthogonal", math.sqrt(scale), ratio < PRISTINE) if ratio < LIGHT else None


def _uniform(matrix: Tensor, out: int, width: int, slack: float) -> Fingerprint | None:
    """A flat distribution with a sharp edge.

    A sharp edge at the bound of a known scheme is proof; the moments alone still say "lightly trained".
    """
    n = matrix.numel()
    square, kurtosis = _moments(matrix)
    largest = float(matrix.abs().max())
    # 1.148/√n and 0.447/√n: standard errors of the kurtosis and of √3·rms over the bound of n uniform numbers.
    if abs(kurtosis - 1.8) > 6 * 1.148 / math.sqrt(n):
        return None
    noise = 0.447 / math.sqrt(n)
    xavier = math.sqrt(6 / (out + width))
    schemes = (("pyg-default", 1 / math.sqrt(width)), ("xavier-uniform", xavier), ("he-uniform", math.sqrt(6 / width)))
    ratio = largest / math.sqrt(3 * square)
    for family, bound in schemes:
        # The largest of n uniform numbers misses the bound by more than 10/n of it once in e¹⁰ draws.
        if bound * (1 - 10 / n) <= largest <= bound * (1 + slack) and abs(ratio - 1) < 4 * noise:
            return Fingerprint(family, pristine=True)
    if n >= 1024 and abs(ratio - 1) < 4 * noise and _sharp_edge(matrix, largest):
        return Fingerprint("xavier-uniform", largest / xavier, pristine=True)
    if ratio > 1.05 + 3 * noise:
        return None
    for family, bound in schemes:
        if abs(math.sqrt(3 * square) / bound - 1) < 0.02 + 4 * noise:
            return Fingerprint(family, pristine=False)
    return None


def _moments(matrix: Tensor) -> tuple[float, float]:
    """Mean square and kurtosis around zero."""
    squares = matrix.square()
    square = float(squares.mean())
    return square, float(squares.square_().mean()) / square**2


def _sharp_edge(matrix: Tensor, largest: float) -> bool:
    """True when the outermost 5 % of the range hold their share of the entries, as they stop doing within few steps."""
    n = matrix.numel()
    share = float((matrix.abs() > 0.95 * largest).double().mean())
    return abs(share - 0.05) < 4 * math.sqrt(0.05 * 0.95 / n) and share > 0


def _normal(matrix: Tensor, out: int, width: int) -> Fingerprint | None:
    """A Gaussian of a known scheme's scale, without the outlying singular value that training adds."""
    n = matrix.numel()
    if n < 1024:
        # Six standard errors of the kurtosis would let almost anything pass.
        return None
    square, kurtosis = _moments(matrix)
    if abs(kurtosis - 3) > 6 * math.sqrt(24 / n):
        return None
    short = matrix @ matrix.mT if out <= width else matrix.mT @ matrix
    largest = math.sqrt(float(torch.linalg.eigvalsh(short)[-1]))
    if largest > 1.05 * math.sqrt(square) * (math.sqrt(out) + math.sqrt(width)):
        return None
    noise = 4 / math.sqrt(2 * n)
    for family, variance in (("xavier-normal", 2 / (out + width)), ("he-normal", 2 / width)):
        if abs(math.sqrt(square / variance) - 1) < noise:
            return Fingerprint(family, pristine=True)
    return None
