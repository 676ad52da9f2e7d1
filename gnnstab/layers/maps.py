"""Linear maps read through their weights: applied without a module call, and measured without any input."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gnnstab.errors import FixError
from gnnstab.records.vocabulary import (
    LOGIT_ALIGNMENT,
    LOGIT_EDGE_SPECTRAL,
    LOGIT_FROBENIUS,
    LOGIT_SPECTRAL,
    LOGIT_SPECTRAL_QK,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gnnstab.records import LayerFacts

BLOCK = 2**20
"""Entries of the largest temporary of the recomputed scores."""


def project(linear: nn.Module | None, x: Tensor) -> Tensor | None:
    """``linear`` applied to ``x`` through its weight alone, in at least float32: no module call, so no hook fires.

    None where this cannot be done without side effects or guessing: a parametrised weight (reading one may advance a
    power iteration), a replaced module, a weight of another width.
    """
    import torch
    import torch.nn.functional as F
    from torch.nn.utils import parametrize

    weight = None if linear is None or parametrize.is_parametrized(linear) else getattr(linear, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        return None
    x = x.detach()
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    bias = getattr(linear, "bias", None)
    return F.linear(x, weight.detach().to(x.dtype), None if bias is None else bias.detach().to(x.dtype))


def in_blocks(edges: int, width: int, part: Callable[[slice], Tensor | None]) -> Tensor | None:
    """The parts for all edges joined, computed for so many edges at a time that (edges, width) is never held whole.

    None as soon as one part is None.
    """
    import torch

    block = max(1, BLOCK // max(1, width))
    parts = [part(slice(start, start + block)) for start in range(0, max(edges, 1), block)]
    known = [one for one in parts if one is not None]
    return torch.cat(known) if len(known) == len(parts) else None


def gain_of(weight: Tensor, facts: LayerFacts) -> float:
    """‖W‖_F/√D of a map (H·C, D); averaged heads reach the output through the mean of their matrices, which is measured then."""
    weight = weight.detach().double()
    if facts.concat is False and facts.heads is not None:
        weight = weight.view(facts.heads, -1, weight.shape[1]).mean(dim=0)
    return float(weight.norm()) / math.sqrt(weight.shape[1])


def scale_rows(rows: Tensor, factors: Sequence[float], name: str) -> None:
    """Multiply every head's rows of a map by its factor, in place; raises `FixError` where the rows are no multiple of the heads."""
    if len(rows) % len(factors):
        raise FixError(f"{name} has {len(rows)} rows, which is no multiple of {len(factors)} heads")
    by_head = rows.view(len(factors), -1)
    by_head *= by_head.new_tensor(factors).unsqueeze(1)


def per_head(weight: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """(H, C, D) of a weight (H·C, D) in float64; with a bias, (H, C, D + 1) that acts on [x; 1]."""
    import torch

    weight = weight.detach().double()
    if bias is not None:
        weight = torch.cat([weight, bias.detach().double().unsqueeze(1)], dim=1)
    return weight.view(heads, weight.shape[0] // heads, weight.shape[1])


def triangle(matrix: Tensor) -> Tensor:
    """R of the QR decomposition of every transposed matrix (H, C, D), shape (H, min(D, C), C)."""
    import torch

    factor: Tensor = torch.linalg.qr(matrix.mT, mode="r").R
    return factor


def product_norms(
    query: Tensor, key: Tensor, query_bias: Tensor | None, key_bias: Tensor | None, edge: Tensor | None, heads: int
) -> dict[str, list[float]]:
    """Norms of the bilinear form behind scores q·(k + e)/√C, by signal name, one value per head.

    W_q and W_k are a head's C rows of the query and key weights; Q̃ = [W_q, b_q] and K̃ = [W_k, b_k] act on [x; 1]. The
    scores are then x̃ᵀ M_h x̃ with **M_h = Q̃ᵀK̃/√C**. M_h is never formed: with Q̃ᵀ = U R and K̃ᵀ = V S (U, V with
    orthonormal columns) its singular values are those of R Sᵀ, a matrix of at most C × C.

    ``logit.spectral_qk`` ‖W_qᵀW_k‖₂/√C; ``logit.spectral`` ‖M_h‖₂; ``logit.frobenius`` ‖M_h without its last column‖_F (the
    key bias adds the same to all scores of a target, which softmax ignores); ``logit.edge_spectral`` ‖Q̃ᵀW_e‖₂/√C;
    ``logit.alignment`` √C·‖W_qᵀW_k‖_F/(‖W_q‖_F‖W_k‖_F).
    """
    import torch

    norm = torch.linalg.matrix_norm
    q, k = triangle(per_head(query, None, heads)), triangle(per_head(key, None, heads))
    with_bias = triangle(per_head(query, query_bias, heads))
    root = math.sqrt(query.shape[0] // heads)
    norms = {
        LOGIT_SPECTRAL_QK: norm(q @ k.mT, 2),
        LOGIT_SPECTRAL: norm(with_bias @ triangle(per_head(key, key_bias, heads)).mT, 2),
        LOGIT_FROBENIUS: norm(with_bias @ k.mT),
    }
    if edge is not None:
        norms[LOGIT_EDGE_SPECTRAL] = norm(with_bias @ triangle(per_head(edge, None, heads)).mT, 2)
    scaled = {name: [value / root for value in values.tolist()] for name, values in norms.items()}
    return {**scaled, LOGIT_ALIGNMENT: _alignment(q, k, root).tolist()}


def _alignment(query: Tensor, key: Tensor, root: float) -> Tensor:
    """√C·‖W_qᵀW_k‖_F/(‖W_q‖_F‖W_k‖_F) per head: 1 for independent matrices of any scale; 0 where one of them is zero."""
    import torch

    norm = torch.linalg.matrix_norm
    scale = norm(query) * norm(key)
    alignment: Tensor = root * norm(query @ key.mT) / scale.clamp(min=torch.finfo(scale.dtype).tiny)
    return alignment


def row_lines(
    owner: str, names: Sequence[str], counts: tuple[str, str], facts: LayerFacts | None, factors: Sequence[float] | None
) -> list[str]:
    """Lines that scale scores, for tensors whose rows are those of the heads; ``counts``: the attributes for heads and rows of each."""
    heads, rows = counts
    if factors is None:
        of_head = f"    rows = slice(h * {owner}.{rows}, (h + 1) * {owner}.{rows})"
        return [
            f"for h in range({owner}.{heads}):",
            of_head,
            *(f"    {owner}.{name}.data[rows] *= gamma[h]" for name in names),
        ]
    width = facts.out_channels if facts and facts.out_channels else 0
    low = [(h, factor) for h, factor in enumerate(factors) if factor < 1.0]
    ends = {h: f"{h * width}:{(h + 1) * width}" if width else f"{h} * C:{h + 1} * C" for h, _ in low}
    return [f"{owner}.{name}.data[{ends[h]}] *= {factor:.4g}" for h, factor in low for name in names]
