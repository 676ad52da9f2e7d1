"""Parameters of the model: their gradients every step; their size and their change in steps of the full tier."""

from __future__ import annotations


import torch
from torch import Tensor, nn

from gnnstab.probe.keys import Keys
from gnnstab.probe.staging import LARGE, Refuse, Stage
from gnnstab.probe.totals import Totals, merge


class Parameters:
    """All trainable parameters, each once, under the first of its names."""

    def __init__(self, model: nn.Module, keys: Keys, refuse: Refuse) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._keys = keys
        self._names = [name for name, _ in named]
        self._parameters: list[Tensor] = [p for _, p in named]
        self._sites: dict[str, tuple[int, ...]] = {}
        self._present: tuple[int, ...] = ()
        self._slots: tuple[int, ...] = ()
        self._before: list[Tensor] = []
        small = sum(p.numel() for p in self._parameters if p.numel() <= LARGE)
        self._stage = Stage(refuse, max(small, 1))

    def gradients(self) -> Totals:
        """Statistics of every gradient that is there."""
        gradients = [parameter.grad for parameter in self._parameters]
        present = tuple(i for i, gradient in enumerate(gradients) if gradient is not None)
        if not present:
            return merge([])
        if present != self._present:
            self._present = present
            slots = self._all("weight_grad")
            self._slots = tuple(slots[i] for i in present)
        self._stage.put(self._slots, [g for g in gradients if g is not None])
        return merge(self._stage.take())

    def remember(self) -> Totals:
        """Statistics of the parameters before the optimizer moves them; keeps a copy until `change`."""
        if not self._parameters:
            return merge([])
        self._before = [p.detach().clone() for p in self._parameters]
        self._stage.put(self._all("weight"), self._before)
        return merge(self._stage.take())

    def change(self) -> Totals:
        """Statistics of the change since `remember`; empty without one."""
        if not self._before:
            return merge([])
        now = [p.detach() for p in self._parameters]
        difference = torch._foreach_sub(now, self._before)
        self._before = []
        self._stage.put(self._all("update"), difference)
        return merge(self._stage.take())

    def non_finite(self) -> list[str]:
        """Names of the parameters that hold a NaN or an Inf."""
        return [n for n, p in zip(self._names, self._parameters, strict=True) if not torch.isfinite(p).all()]

    def _all(self, site: str) -> tuple[int, ...]:
        slots = self._sites.get(site)
        if slots is None:
            slots = self._sites[site] = tuple(self._keys.slot(name, "train", 0, site) for name in self._names)
        return slots
