"""Masks that a forward is given for its edges or its scores, and the same steps with each of them the other way round; or, of one that changes nothing, without the edges that it marks; and a mask by the numbers of nodes taken away."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gnnstab.errors import UsageError, let_through
from gnnstab.probe.batches.arguments import Arguments
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.operations.source_lines import Modules, caller_place
from gnnstab.probe.optimizer._suspects import Suspect, unchanged
from gnnstab.probe.optimizer.learning import seen
from gnnstab.probe.replaying.replica import forked_rng, mapped, rng_snapshot

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench


def turned_masks(bench: Bench) -> list[tuple[Suspect, Bench]]:
    """Each mask of edges or of scores that the loss does not read, with the bench that has it turned round, or applied where the output stays; and a mask by the numbers of nodes."""
    masks = [set(_masks(bench, number)) for number in range(len(bench.calls))]
    by_number = [(one, bench) for one in seen(bench, by_numbers)] if all(map(_unordered, bench.calls)) else []
    return by_number + [found for name in sorted(set.intersection(*masks)) for found in _tried(bench, name)]


def _masks(bench: Bench, number: int) -> Iterator[str]:
    """Names of the masks in the arguments of one forward: one entry for each edge, or for each pair of nodes."""
    args, kwargs = bench.calls[number]
    named = named_tensors(args, kwargs, bench.model)
    edges = {t.shape[1] for t in named.values() if t.dim() == 2 and len(t) == 2 and not t.is_floating_point()}
    nodes = {len(t) for t in named.values() if t.dim() == 2 and t.is_floating_point()}
    for name, tensor in named.items():
        if tensor.dtype != torch.bool or not tensor.dim() or not tensor.any() or tensor.all():
            continue
        pairs = tensor.dim() > 1 and tensor.shape[-1] == tensor.shape[-2] and not _causal(tensor)
        if pairs or (len(tensor) in edges - nodes and tensor.numel() == len(tensor)):
            yield name


def _causal(mask: Tensor) -> bool:
    """True for a mask of what comes later, or earlier: turned round it would show the answer."""
    return any(bool((part.amax((-1, -2)) == 0).all()) for way in (mask, ~mask) for part in (way.triu(1), way.tril(-1)))


def _unordered(call: Arguments) -> bool:
    """True for a graph whose edges lead to nodes of lower and of higher numbers alike, and none of whose tensors grows with the number."""
    tensors = [t for t in named_tensors(*call).values() if t.layout is torch.strided and not t.is_quantized]
    whole = [t for t in tensors if not t.is_floating_point() and t.dim() == 2 and len(t) == 2 and t.shape[1]]
    upward = [(t[0] < t[1]).double().mean() for t in whole]
    for pairs in (t != 0 for t in tensors if _square(t) and t.dim() < 4):
        upward += [
            pairs.triu(1).sum() / pairs.logical_and(pairs.new_ones(pairs.shape[-2:]).fill_diagonal_(False)).sum()
        ]
    rows = [t for t in tensors if t.is_floating_point() and t.dim() in (2, 3) and not _square(t)]
    grows = any(bool((way * t.diff(dim=-2) >= 0).all(-2).any(-1).all()) for t in rows for way in (1, -1))
    return bool(upward) and all(_ONE_WAY < float(share) < 1 - _ONE_WAY for share in upward) and not grows


def _square(tensor: Tensor) -> bool:
    return tensor.dim() > 1 and tensor.shape[-1] == tensor.shape[-2] >= _FEWEST


_ONE_WAY = 0.1
"""Share of the edges that lead to nodes of higher numbers, or of lower ones, up to which the numbers say what comes first."""

_FEWEST = 8
"""Nodes of a graph from which on a mask that is a triangle is no chance."""


def by_numbers(model: nn.Module, forward: Callable[[], Any]) -> Iterator[Suspect]:
    """A mask in ``forward`` of ``model``, a copy, by which each node sees those of lower, or of higher, numbers alone."""
    look = _Triangles(Modules(model))
    with look:
        forward()
    if look.found:
        line = f" ({look.line})" if look.line else ""
        yield Suspect(
            "masking", (), "taking that mask away",
            f"a mask lets each node see those of a {look.found} number alone, as in a text{line}, and the numbers of nodes say nothing: edges of the "
            "batch lead both ways", unchanged, _Triangles(),
        )  # fmt: skip


_READERS = re.compile(
    r"masked_fill_?|where|add_?|sub|mul|logical_(and|or)|bitwise_(and|or)|__(r?add|iadd|sub|mul|and|or)__"
    r"|scaled_dot_product_attention|multi_head_attention_forward"
)
"""Names of torch's functions that a mask may be given to."""


class _Triangles(TorchFunctionMode):
    """Within the block: which line of ``modules`` reads a mask that is exactly a triangle; without them such masks close nothing."""

    def __init__(self, modules: Modules | None = None) -> None:
        super().__init__()
        self.found, self.line, self._modules = "", "", modules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if not _READERS.fullmatch(getattr(func, "__name__", "")):
            return func(*args, **kwargs)
        ways = [way for one in (*args, *kwargs.values()) if (way := _triangle(one))]
        ways += ["lower"] if kwargs.get("is_causal") else []
        if ways and self._modules is not None and not self.found:
            self.found, self.line = ways[0], caller_place(self._modules, "model")[0].words
        if ways and self._modules is None:
            args, kwargs = tuple(map(_opened, args)), {key: _opened(one) for key, one in kwargs.items()}
            kwargs |= {"is_causal": False} if "is_causal" in kwargs else {}
        return func(*args, **kwargs)


def _triangle(mask: Any) -> str:
    """Which numbers a mask leaves open that holds one value on its diagonal and on one side of it, and another one on the other side; empty for any other."""
    if not isinstance(mask, Tensor) or mask.requires_grad or not _square(mask) or mask.is_complex():
        return ""
    one = mask.detach().reshape(-1, *mask.shape[-2:])
    low, high = one[0, 1, 0], one[0, 0, 1]
    size = torch.ones(one.shape[-2:], dtype=torch.bool, device=one.device)
    for way, opened, closed in (("lower", size.tril(), high), ("higher", size.triu(), low)):
        if bool(low != high) and bool((one == torch.where(opened, one[0, 0, 0], closed)).all()):
            return way
    return ""


def _opened(mask: Any) -> Any:
    return torch.full_like(mask, mask.flatten()[0].item()) if _triangle(mask) else mask


def _tried(bench: Bench, name: str) -> Iterator[tuple[Suspect, Bench]]:
    other, turned = _changed(bench, name, _turn)
    mask = named_tensors(*bench.calls[0], bench.model)[name]
    try:
        read, moves = _read_by_loss(bench, other, turned[0], mask)
    except UsageError:
        return
    if not read and moves:
        yield Suspect(
            "masking", (name,), f"using the mask `{name}` the other way round", f"the mask `{name}` seems to be used the wrong way round", unchanged
        ), other  # fmt: skip
    elif not read and mask.dim() == 1:
        for kept, which in ((True, "is not set"), (False, "is set")):
            yield Suspect(
                "masking", (name,), f"leaving out the edges for which it {which}",
                f"the mask `{name}` of edges is handed over and changes nothing in the output", unchanged,
            ), _changed(bench, name, partial(_without, kept))[0]  # fmt: skip


Change = Callable[[Tensor, Any], Any]
"""(the mask, a tensor of the batch) → what stands in its place."""


def _changed(bench: Bench, name: str, change: Change) -> tuple[Bench, list[Any]]:
    """The bench with other arguments, and the batches changed alike."""
    calls, batches = [], []
    for (args, kwargs), batch in zip(bench.calls, bench.batches, strict=True):
        mask = named_tensors(args, kwargs, bench.model)[name]
        calls.append(mapped((tuple(args), dict(kwargs)), partial(change, mask)))
        batches.append(mapped(batch, partial(change, mask)))
    return replace(bench, calls=calls), batches


def _turn(mask: Tensor, tensor: Any) -> Any:
    same = tensor.dtype == torch.bool and tensor.shape == mask.shape and torch.equal(tensor, mask)
    return ~tensor if same else tensor


def _without(kept: bool, mask: Tensor, tensor: Any) -> Any:
    """Edge lists, and what holds a row for each edge, without the edges whose entry in the mask is not ``kept``."""
    if tensor.dim() == 2 and tensor.shape == (2, len(mask)) and not tensor.is_floating_point():
        return tensor[:, mask == kept]
    return tensor[mask == kept] if tensor.dim() and len(tensor) == len(mask) else tensor


def _read_by_loss(bench: Bench, other: Bench, turned: Any, mask: Tensor) -> tuple[bool, bool]:
    """Whether the loss asks for what the mask says, as for edges that are hidden to be foretold, or nothing can be tried; and whether the output moves with it.

    Raises:
        UsageError: Model or optimizer cannot be copied.
    """
    model = bench.twin()
    state = rng_snapshot()
    try:
        with forked_rng(state), torch.no_grad():
            output, _ = bench.forward(model, 0)
        with forked_rng(state), torch.no_grad():
            changed, _ = other.forward(model, 0)
        if not isinstance(output, Tensor) or output.shape != changed.shape:
            return True, True
        with forked_rng(state), torch.enable_grad():
            leaf = output.detach().requires_grad_()
            own = bench.loss(leaf, bench.batches[0])
            own.backward()  # type: ignore[no-untyped-call]
            again = bench.loss(leaf, turned)
    except Exception as error:
        let_through(error)
        return True, True
    if leaf.grad is None or not torch.equal(own, again):
        return True, True
    asked = leaf.grad != 0
    read = any(asked.shape == way.shape and torch.equal(asked, way) for way in (mask, ~mask))
    return read, not torch.equal(output, changed)
