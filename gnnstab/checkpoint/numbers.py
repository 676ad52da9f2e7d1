"""Numbers that the weights of one TransformerConv give without any input.

For head h with C channels, W_q and W_k are its rows of the query and key weights; Q̃ = [W_q, b_q] and K̃ = [W_k, b_k] act on
[x; 1]. The scores are then x̃ᵀ M_h x̃ with **M_h = Q̃ᵀK̃/√C**. M_h is never formed: with Q̃ᵀ = U R and K̃ᵀ = V S (U, V with
orthonormal columns) its singular values are those of R Sᵀ, a matrix of at most C × C.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gnnstab.checkpoint.layers import Conv
from gnnstab.records import LayerFacts, Signal
from gnnstab.records.vocabulary import LOGIT_EDGE_SPECTRAL

SLOPE_SQUARED = {"relu": 0.5, "leaky_relu": 0.5, "gelu": 0.5, "elu": 0.5, "silu": 0.5, "tanh": 1.0, "identity": 1.0}
"""φ, the mean squared slope of the activation around zero (ReLU ½; tanh and identity 1; the smooth ReLUs as ReLU)."""


def layer_signals(conv: Conv, facts: LayerFacts, activation: str) -> list[Signal]:
    """Gains and, when the heads are known, logit norms per head (``head=h``) and their maximum (``head=None``)."""
    signals = gain_signals(conv, facts, activation)
    if facts.heads is not None:
        for name, values in logit_norms(conv, facts.heads).items():
            signals += [Signal(name, value, facts.name, head, source="weights") for head, value in enumerate(values)]
            signals.append(
                Signal(name, max(values), facts.name, None, source="weights", detail={"over heads": "maximum"})
            )
    return signals


def logit_norms(conv: Conv, heads: int) -> dict[str, list[float]]:
    """Signal name → one value per head.

    ``logit.spectral_qk`` ‖W_qᵀW_k‖₂/√C; ``logit.spectral`` ‖M_h‖₂; ``logit.frobenius`` ‖M_h without its last column‖_F (the
    key bias adds the same to all scores of a target, which softmax ignores); ``logit.edge_spectral`` ‖Q̃ᵀW_e‖₂/√C;
    ``logit.alignment`` √C·‖W_qᵀW_k‖_F/(‖W_q‖_F‖W_k‖_F).
    """
    query, key = _triangle(conv, "query", heads, bias=False), _triangle(conv, "key", heads, bias=False)
    query_bias, key_bias = _triangle(conv, "query", heads, bias=True), _triangle(conv, "key", heads, bias=True)
    root = math.sqrt(conv.rows // heads)
    norms = {
        "logit.spectral_qk": torch.linalg.matrix_norm(query @ key.mT, 2),
        "logit.spectral": torch.linalg.matrix_norm(query_bias @ key_bias.mT, 2),
        "logit.frobenius": torch.linalg.matrix_norm(query_bias @ key.mT),
    }
    if "edge" in conv.weights:
        edge = _triangle(conv, "edge", heads, bias=False)
        norms[LOGIT_EDGE_SPECTRAL] = torch.linalg.matrix_norm(query_bias @ edge.mT, 2)
    scaled = {name: [value / root for value in values.tolist()] for name, values in norms.items()}
    return {**scaled, "logit.alignment": _alignment(query, key, root).tolist()}


def _alignment(query: Tensor, key: Tensor, root: float) -> Tensor:
    """√C·‖W_qᵀW_k‖_F/(‖W_q‖_F‖W_k‖_F) per head: 1 for independent matrices of any scale; 0 where one of them is zero."""
    scale = torch.linalg.matrix_norm(query) * torch.linalg.matrix_norm(key)
    alignment: Tensor = root * torch.linalg.matrix_norm(query @ key.mT) / scale.clamp(min=torch.finfo(scale.dtype).tiny)
    return alignment


def _triangle(conv: Conv, part: str, heads: int, *, bias: bool) -> Tensor:
    """R of the QR decomposition of every head's transposed weight, shape (heads, min(D, C), C)."""
    weight = conv.weights[part].detach().double()
    if bias and part in conv.biases:
        weight = torch.cat([weight, conv.biases[part].detach().double().unsqueeze(1)], dim=1)
    per_head = weight.view(heads, weight.shape[0] // heads, weight.shape[1])
    triangle: Tensor = torch.linalg.qr(per_head.mT, mode="r").R
    return triangle


def gain_signals(conv: Conv, facts: LayerFacts, activation: str) -> list[Signal]:
    """``gain.value``, ``gain.skip`` and the interval of the static log gain λ per layer.

    When heads are averaged, the values reach the output through the mean of the heads' matrices, and that mean is
    measured. With r, the weight of an identity path around the layer, taken as 0:
    λ ∈ [½ ln(φ b g_s²), ½ ln(φ b (g_s² + g_v²))], b = ¼ behind an open beta gate, else 1.
    """
    value = conv.weights["value"].detach().double()
    if facts.concat is False and facts.heads is not None:
        value = value.view(facts.heads, -1, value.shape[1]).mean(dim=0)
    skip = conv.weights["skip"].detach().double()
    g_value = float(torch.linalg.vector_norm(value)) / math.sqrt(value.shape[1])
    g_skip = 0.0 if facts.root_weight is False else float(torch.linalg.vector_norm(skip)) / math.sqrt(skip.shape[1])
    factor = SLOPE_SQUARED[activation] * (0.25 if facts.beta else 1.0)
    detail = {"activation": activation, "beta": bool(facts.beta), "identity": 0.0}
    return [
        Signal("gain.value", g_value, facts.name, source="weights"),
        Signal("gain.skip", g_skip, facts.name, source="weights"),
        Signal("gain.lambda_low", _half_log(factor * g_skip**2), facts.name, source="weights", detail=detail),
        Signal(
            "gain.lambda_high",
            _half_log(factor * (g_skip**2 + g_value**2)),
            facts.name,
            source="weights",
            detail=detail,
        ),
    ]


def _half_log(square: float) -> float:
    return 0.5 * math.log(square) if square > 0 else -math.inf
