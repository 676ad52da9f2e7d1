"""Whether parameters without a gradient, and tensors of the batch, change the output at all: they are changed, and the forward runs again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from gnnstab.errors import let_through

MOST_OWNERS = 16
"""Modules that are tried one by one; what lies beyond them counts with the parameters that change the output."""


class Reach:
    """Runs the forward of a copy once more for each question.

    Args:
        model: The copy; its weights and buffers are given back.
        again: Runs its forward from the same state of the generators and returns every tensor of its output.
    """

    def __init__(self, model: nn.Module, again: Callable[[], Sequence[Tensor]]) -> None:
        self._named = dict(model.named_parameters())
        self._buffers = {b: b.detach().clone() for b in model.buffers()}
        self._again = again

    def of(self, names: Sequence[str], *, called: Sequence[str]) -> set[str]:
        """Those of the parameters that the output depends on; all of them where two equal forwards already differ.

        An output without a finite entry cannot show it: then those of modules that were ``called`` count.
        """
        if not names:
            return set()
        before = self._outputs(())
        if before and not any(t.isfinite().any() for t in before):
            return set(called)
        if not _same(before, self._outputs(())):
            return set(names)
        if _same(before, self._outputs(names)):
            return set()
        owners: dict[str, list[str]] = {}
        for name in names:
            owners.setdefault(name.rpartition(".")[0], []).append(name)
        tried = list(owners.values())
        beyond = {name for group in tried[MOST_OWNERS:] for name in group}
        return beyond | {n for group in tried[:MOST_OWNERS] if not _same(before, self._outputs(group)) for n in group}

    def ignores(self, given: Tensor) -> bool:
        """True where the output stays the same when a tensor that the forward is given is changed; False where equal forwards differ.

        Whole numbers, as of edges, become 0, an index that every table has.
        """
        before, kept = self._outputs(()), given.detach().clone()
        try:
            with torch.no_grad():
                if not kept.is_floating_point():
                    if not kept.any():
                        return False
                    given.zero_()
                else:
                    ramp = torch.linspace(-0.5, 0.5, kept.numel(), device=kept.device).to(kept.dtype)
                    given.mul_(-1.5).add_(ramp.view_as(kept))
            return _same(before, self._outputs(()))
        except Exception as error:
            let_through(error)
            return False
        finally:
            with torch.no_grad():
                given.copy_(kept)

    def _outputs(self, changed: Iterable[str]) -> list[Tensor]:
        own = [self._named[name] for name in changed]
        kept = [p.detach().clone() for p in own]
        with torch.no_grad():
            for p in own:
                # Far enough for a rounding or an argmax behind it to notice, and no shift of all entries, which a softmax does not see.
                ramp = torch.linspace(-0.5, 0.5, p.numel(), device=p.device).to(p.dtype)
                p.mul_(-1.5).add_(ramp.view_as(p))
            for buffer, value in self._buffers.items():
                buffer.copy_(value)
            try:
                return [t.detach().clone() for t in self._again()]
            except Exception as error:
                if not own:
                    raise
                let_through(error)
                return []  # It refuses them, as a deviation below zero: it depends on them, and no output is like this one.
            finally:
                for p, value in zip(own, kept, strict=True):
                    p.copy_(value)


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """True where every entry is the same; NaN is the same as NaN."""
    return len(one) == len(other) and all(
        torch.equal(a, b) or (a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all()))
        for a, b in zip(one, other, strict=True)
    )
