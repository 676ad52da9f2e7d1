"""`StableTransformerConv`: TransformerConv with bounded attention scores."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

# The name `softmax` must stay a global of this module: the probe reads the scores where `message` looks it up.
from torch_geometric.utils import softmax

from gnnstab.errors import FixError
from gnnstab.layers.transformer_conv import dot_scores, edge_term
from gnnstab.nn.score_cap import CAP_SHAPES, cap_scores


class StableTransformerConv(TransformerConv):  # type: ignore[misc]
    """`torch_geometric.nn.TransformerConv` with options that keep its attention scores in range.

    Takes every argument of TransformerConv and loads its state dict. With all options off it computes the same
    numbers bit for bit.

    Args:
        in_channels: Width of the node features, or (source, target) widths.
        out_channels: Width per head.
        heads: Number of heads.
        qk_norm: LayerNorm over the channels of every query and of every key (its edge term included) before their
            product (Dehghani et al. 2023, ViT-22B). Adds ``norm_query`` and ``norm_key``; a state dict without
            them leaves them as they are. Needs ``out_channels`` ≥ 2.
        score_cap: Limit each target's scores to ±τ around their mean; None for no limit. τ = score_cap·√(2 ln d) with
            the target's in-degree d, or ``score_cap`` logits with ``cap_by_degree=False``. 3.0 is a good start.
        cap_by_degree: See ``score_cap``.
        cap_shape: ``soft`` (τ·tanh(s/τ), gradients everywhere) or ``hard`` (clamp).
        fp32_attention: Compute scores and softmax in float32 with autocast off. Under fp16 the product q·k passes
            65 504 long before the softmax could bring it back.
        **kwargs: The remaining arguments of TransformerConv.
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        *args: Any,
        qk_norm: bool = False,
        score_cap: float | None = None,
        cap_by_degree: bool = True,
        cap_shape: str = "soft",
        fp32_attention: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, heads, *args, **kwargs)
        self._set_options(qk_norm, score_cap, cap_by_degree, cap_shape, fp32_attention)

    @classmethod
    def convert_(cls, conv: TransformerConv, **options: Any) -> StableTransformerConv:
        """Turn a TransformerConv into this class in place: same parameters, hooks and settings, plus ``options``.

        Options already set on a `StableTransformerConv` stay. Raises `FixError` for any other subclass, whose own
        ``message`` would be lost.
        """
        if type(conv) is TransformerConv:
            conv.__class__ = cls
            conv._set_options(False, None, True, "soft", False)
        elif type(conv) is not cls:
            raise FixError(
                f"{type(conv).__name__} is a subclass of TransformerConv with code of its own; derive it from "
                "gnnstab.nn.StableTransformerConv instead and pass the option there"
            )
        names = ("qk_norm", "score_cap", "cap_by_degree", "cap_shape", "fp32_attention")
        unknown = sorted(set(options) - set(names))
        if unknown:
            raise FixError(f"unknown option {unknown[0]!r}; choose from {', '.join(names)}")
        conv._set_options(*(options.get(name, getattr(conv, name)) for name in names))
        return conv  # type: ignore[no-any-return]

    def _set_options(
        self, qk_norm: bool, score_cap: float | None, cap_by_degree: bool, cap_shape: str, fp32_attention: bool
    ) -> None:
        if cap_shape not in CAP_SHAPES:
            raise FixError(f"cap_shape={cap_shape!r} is none of {', '.join(CAP_SHAPES)}")
        if score_cap is not None and not score_cap > 0:
            raise FixError(f"score_cap={score_cap} must be positive (3.0 is a good start), or None for no cap")
        if qk_norm and self.out_channels < 2:
            raise FixError("qk_norm needs out_channels ≥ 2: a LayerNorm over one channel returns 0")
        self.qk_norm = qk_norm
        self.score_cap = score_cap
        self.cap_by_degree = cap_by_degree
        self.cap_shape = cap_shape
        self.fp32_attention = fp32_attention
        if qk_norm and "norm_query" not in self._modules:
            like = next(self.parameters())
            for name in ("norm_query", "norm_key"):
                norm = nn.LayerNorm(self.out_channels, device=like.device, dtype=like.dtype)
                self.add_module(name, norm.train(self.training))

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        super().reset_parameters()
        for name in ("norm_query", "norm_key"):
            if name in self._modules:
                self._modules[name].reset_parameters()

    def message(
        self,
        query_i: Tensor,
        key_j: Tensor,
        value_j: Tensor,
        edge_attr: Tensor | None,
        index: Tensor,
        ptr: Tensor | None,
        size_i: int | None,
    ) -> Tensor:
        """Messages α·v of every edge, shape (E, H, C)."""
        edge = edge_term(self, edge_attr)
        if self.fp32_attention:
            with torch.autocast(query_i.device.type, enabled=False):
                score = self._score(query_i.float(), key_j.float(), None if edge is None else edge.float())
                alpha = softmax(self._cap(score, index, size_i), index, ptr, size_i)
            # Under autocast the weights are float32 and the message stays so too, as it does in PyG; a model that was
            # cast as a whole needs its own dtype back for the next Linear.
            alpha = alpha.to(torch.promote_types(value_j.dtype, next(self.parameters()).dtype))
        else:
            score = self._score(query_i, key_j, edge)
            alpha = softmax(self._cap(score, index, size_i), index, ptr, size_i)
        self._alpha = alpha
        alpha = F.dropout(alpha, p=self.dropout, training=self.training)

        out = value_j
        if edge is not None:
            out = out + edge
        return out * alpha.view(-1, self.heads, 1)

    def _score(self, query_i: Tensor, key_j: Tensor, edge: Tensor | None) -> Tensor:
        """Pre-softmax scores (E, H) from queries, keys and edge terms, each (E, H, C)."""
        if edge is not None:
            key_j = key_j + edge
        if self.qk_norm:
            query_i = _layer_norm(self.norm_query, query_i)
            key_j = _layer_norm(self.norm_key, key_j)
        return dot_scores(query_i, key_j)

    def _cap(self, score: Tensor, index: Tensor, size: int | None) -> Tensor:
        if self.score_cap is None:
            return score
        return cap_scores(score, index, size, self.score_cap, by_degree=self.cap_by_degree, shape=self.cap_shape)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A plain TransformerConv has no norms; its weights load all the same, and the norms keep their values.
        for name, value in self.named_parameters():
            if name.startswith(("norm_query.", "norm_key.")):
                state_dict.setdefault(prefix + name, value.detach())
        super()._load_from_state_dict(state_dict, prefix, *args)


def _layer_norm(norm: nn.LayerNorm, value: Tensor) -> Tensor:
    """``norm`` in the dtype of ``value``, whatever the dtype of its parameters."""
    return F.layer_norm(value, norm.normalized_shape, norm.weight.to(value.dtype), norm.bias.to(value.dtype), norm.eps)
