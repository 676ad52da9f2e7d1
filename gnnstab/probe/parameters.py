"""Parameters of the model: their gradients every step; their size and their change in steps of the full tier."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gnnstab.probe.keys import Keys
from gnnstab.probe.staging import Stage

_CHUNK = 15
"""Tensors in one `put`: as many of the largest copied size as surely fit into the buffer."""

_SMALL = 1 << 15
"""Entries up to which gradients are joined for their norm; a larger one is worth an operation of its own."""


class Parameters:
    """All trainable parameters, each once, under the first of its names."""

    def __init__(self, model: nn.Module, keys: Keys) -> None:
        self.names: list[str] = []
        self._model = model
        self._keys = keys
        self._parameters: list[Tensor] = []
        self._small: list[Tensor] = []
        self._large: list[Tensor] = []
        self._chunks: dict[tuple[str, tuple[int, ...]], list[tuple[tuple[int, ...], list[int]]]] = {}
        self._before: list[Tensor] = []
        self.refresh()

    def refresh(self) -> None:
        """Look at the model anew: one that was pruned, re-initialised or grown has other parameters than before."""
        named = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        same = len(named) == len(self.names) and all(
            p is named.get(name) for name, p in zip(self.names, self._parameters, strict=True)
        )
        if not same:
            self.names, self._parameters = list(named), list(named.values())
            self._small = [p for p in self._parameters if p.numel() <= _SMALL]
            self._large = [p for p in self._parameters if p.numel() > _SMALL]
            self._chunks.clear()
            self._before = []

    def gradients(self, stage: Stage) -> None:
        """Put every gradient that is there into ``stage``."""
        gradients = [parameter.grad for parameter in self._parameters]
        self._put(stage, "weight_grad", gradients)

    def norm(self) -> float | None:
        """L2 norm of all gradients, None without any; NaN or Inf only where an entry is.

        One copy and one product of all small gradients together, without the extremes of each.
        """
        small = [g for p in self._small if (g := p.grad) is not None]
        large = [g for p in self._large if (g := p.grad) is not None]
        if not small and not large:
            return None
        try:
            parts = large
            if small:
                flat = torch._C._nn.flatten_dense_tensors(small)
                parts = [*large, flat.float() if flat.element_size() < 4 else flat]
            # Whatever there is crosses from its device once.
            square = _square(parts)
        except (RuntimeError, NotImplementedError):  # Sparse gradients, or several devices.
            square = math.nan
        # A square can leave the range of the gradients' own dtype although no entry does.
        return math.sqrt(square) if square < math.inf else _exact_norm([*small, *large])

    def bad_gradients(self) -> list[str]:
        """Names of the parameters whose gradient holds a NaN or an Inf."""
        named = zip(self.names, self._parameters, strict=True)
        return [name for name, p in named if p.grad is not None and not torch.isfinite(_entries(p.grad)).all()]

    def remember(self, stage: Stage) -> None:
        """Put the parameters into ``stage`` before the optimizer moves them; keeps a copy until `change`."""
        self._before = [p.detach().clone() for p in self._parameters]
        self._put(stage, "weight", self._before)

    @property
    def remembers(self) -> bool:
        """True between `remember` and `change`."""
        return bool(self._before)

    def change(self, stage: Stage) -> bool:
        """Put the change since `remember` into ``stage``; False without one."""
        if not self._before:
            return False
        difference = torch._foreach_sub([p.detach() for p in self._parameters], self._before)
        self._before = []
        self._put(stage, "update", difference)
        return True

    def non_finite(self) -> list[str]:
        """Names of the parameters that hold a NaN or an Inf."""
        return [n for n, p in zip(self.names, self._parameters, strict=True) if not torch.isfinite(p).all()]

    def _put(self, stage: Stage, site: str, tensors: Sequence[Tensor | None]) -> None:
        present = tuple([i for i, tensor in enumerate(tensors) if tensor is not None])
        chunks = self._chunks.get((site, present))
        if chunks is None:
            chunks = self._chunks[site, present] = [
                (tuple(self._keys.slot(self.names[i], "train", 0, site) for i in part), list(part))
                for part in (present[k : k + _CHUNK] for k in range(0, len(present), _CHUNK))
            ]
        for slots, positions in chunks:
            stage.put(slots, [tensors[i] for i in positions], fixed=True)  # type: ignore[misc]


def _square(tensors: Sequence[Tensor]) -> float:
    if len(tensors) == 1 and tensors[0].dim() == 1:
        return float(torch.dot(tensors[0], tensors[0]))
    norms = [torch.linalg.vector_norm(t, dtype=torch.float32 if t.element_size() < 4 else None) for t in tensors]
    return float(torch.stack(norms).double().square().sum())


def _entries(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _exact_norm(gradients: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(_entries(g).double().square().sum()) for g in gradients))
