"""The same steps with softer attention on a copy: whether sharp scores help the model to learn or keep it from it."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from threading import get_ident
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torch_geometric.nn import BatchNorm, GraphNorm, LayerNorm, Linear, MaxAggregation, MeanAggregation, SumAggregation
from torch_geometric.utils import softmax

from gnnstab.probe.attaching.hooks import hookable
from gnnstab.probe.layers.edge_products import multiplied_products
from gnnstab.probe.optimizer._halved import BY_HEART, halved
from gnnstab.probe.optimizer._score_spreads import MASKED as MASKED
from gnnstab.probe.optimizer._score_spreads import spread as spread
from gnnstab.probe.optimizer._score_spreads import spread_over_edges as spread_over_edges
from gnnstab.probe.optimizer._zeros import of_constants, of_zeros
from gnnstab.records import Signal
from gnnstab.records.rises import LASTING
from gnnstab.records.vocabulary import ATTENTION_ENTROPY, ATTENTION_ONE_HOT_SHARE, OPTIMIZER_SOFTER, SCORE_PRODUCT_SCALE

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench

STEPS = 30
"""Steps of one trial: a model that learns has learned one batch by heart in them, or is about to."""

MORE_STEPS = 100
"""Most steps: at Adam's usual rate of 1e-3 a small network takes 50 to 80 until the loss of a standardised batch has fallen by a factor e."""

WITHOUT_SOFTMAX: frozenset[type] = frozenset({
    nn.Linear, nn.Embedding, nn.Dropout, nn.ReLU, nn.ELU, nn.GELU, nn.LayerNorm, nn.BatchNorm1d, nn.Sequential, nn.ModuleList, nn.ModuleDict,
    Linear, BatchNorm, LayerNorm, GraphNorm, SumAggregation, MeanAggregation, MaxAggregation,
})  # fmt: skip
"""Most modules of most models: classes whose own forward calls no softmax."""

SPREAD = 0.3
"""Standard deviation of the scores of one target that softened attention begins with: weights within a factor 2 of one another."""

SHARP = 0.35
"""Entropy over ln(in-degree) below which attention is sharp, as for GS301."""

ONE_HOT = 0.25
"""Share of the node-heads that look at one neighbour above which it is, too."""

OF_PRODUCTS = 4.0, 0.6
"""Scale of products above which, and entropy below which, scores that are not divided by √d are sharp, as for GS301."""

WIDE = 3.0
"""Standard deviation of the scores of one target from which on attention may be sharp: normal ones give five neighbours an entropy of half of ln 5."""

EXPONENTIALS = frozenset({torch.exp, Tensor.exp})

_SOFTMAXES = frozenset({torch.softmax, Tensor.softmax, F.softmax})

_LOOKED_AT = frozenset({*EXPONENTIALS, *_SOFTMAXES, F.scaled_dot_product_attention, F.multi_head_attention_forward})

FUSED = inspect.signature(F.multi_head_attention_forward)
"""What `nn.MultiheadAttention` hands to the function that holds its scores, where no other function or mode sees them."""


def sharp_layers(values: Sequence[Signal]) -> list[str]:
    """The layers whose attention was measured to be sharp."""
    many, soft = OF_PRODUCTS
    limit = {s.layer: soft for s in values if s.name == SCORE_PRODUCT_SCALE and s.value > many}
    found = [s for s in values if s.name == ATTENTION_ENTROPY and s.layer and s.value < limit.get(s.layer, SHARP)]
    found += [s for s in values if s.name == ATTENTION_ONE_HOT_SHARE and s.value > ONE_HOT]
    return list(dict.fromkeys(s.layer for s in found if s.layer and s.head is None))


def softer_signals(bench: Bench, layers: Sequence[str]) -> Iterator[Signal]:
    """Best loss of a few steps as it is over that of the same steps with the scores of ``layers`` softened; nothing where one has no softmax.

    Raises:
        UsageError: As `Bench.trial`.
    """
    if not layers:
        return
    mode = Softened(layers)
    with mode:
        softer = bench.trial(STEPS, edit=mode.watch).losses
    if mode.softened != set(layers):
        return
    as_is = bench.as_is
    best, undone = min(as_is), min(softer)
    if 0 < best < math.inf and 0 < undone < math.inf:
        detail = {"names": list(layers[:40]), "first": as_is[0], "best": best, "undone": undone, "steps": STEPS}
        detail["trained"] = bool(bench.optimizer.state)
        zeros = of_zeros(bench)
        detail["zeros"] = zeros if zeros < as_is[0] else None
        if not bench.optimizer.state and best < undone:
            detail["unseen"] = _for_half(bench, layers, zeros)
            detail |= _divided(bench, {name: scale for name, scale in mode.scales.items() if scale > OF_PRODUCTS[0]})
        yield Signal(OPTIMIZER_SOFTER, best / undone, source="steps", detail=detail)


def _for_half(bench: Bench, layers: Sequence[str], zeros: float) -> bool:
    """True where steps for half of the rows lower the loss of all further than if those were learned by heart, and further than with softer scores."""
    part = halved(bench)
    if part is None:
        return False
    mode = Softened(layers)
    first = part.trial(0).losses[0]
    enough = math.exp(-BY_HEART) * min(of_constants(bench), zeros, first)
    if not 0 < enough < math.inf:
        return False

    def decided(losses: Sequence[float]) -> bool:
        """Far enough, or after `STEPS` of them not even a third of the way, in ln(loss)."""
        late = len(losses) > STEPS and not losses[-1] < first ** (2 / 3) * enough ** (1 / 3)
        return late or losses[-1] < enough

    losses = part.trial(MORE_STEPS, until=decided).losses
    if not losses[-1] < enough:
        return False
    with mode:
        softer = part.trial(len(losses) - 1, edit=mode.watch).losses
    return LASTING * losses[-1] < min(softer)


def _divided(bench: Bench, scales: Mapping[str, float]) -> dict[str, Any]:
    """Best losses of the rows that steps for the others do not learn, as they are and with the scores divided by ``scales``; empty where it is not known.

    Rows that the steps learn stand in them as at first.
    """
    part = halved(bench, others=True) if scales else None
    if part is None:
        return {}
    as_is = part.trial(MORE_STEPS).losses
    other = halved(bench, others=True)
    assert other is not None
    mode = Divided(scales)
    with mode:
        divided = other.trial(MORE_STEPS, edit=mode.watch).losses
    if mode.softened != set(scales):
        return {}
    return {"scales": dict(scales), "others": min(as_is), "others_divided": min(divided)}


T = TypeVar("T")


class Softened(TorchFunctionMode):
    """Within the block, and within calls of the layers, every softmax gets scores that spread by `SPREAD` at most to begin with.

    So does an exponential, which is how a softmax is written by hand. The factor of a layer is that of its first call, so that training may sharpen the attention anew.
    """

    _least = SPREAD
    """Spread up to which it makes no difference how large it is."""

    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__()
        self._layers = frozenset(layers)
        self._running: list[str] = []
        self._handles: list[RemovableHandle] = []
        self._factors: dict[str, float] = {}
        self.scales: dict[str, float] = {}
        """Layers whose scores over edges are q·k/√d times a number that nobody learns, and that number."""
        self._homes: list[ModuleType] = []
        self._thread = get_ident()
        self._in_softmax = False

    @property
    def softened(self) -> set[str]:
        """The layers in which a softmax was seen."""
        return set(self._factors)

    def watch(self, model: nn.Module) -> None:
        """Have a copy tell which of the layers runs."""
        self._hook(model)
        for home in homes(model):  # None is found again once its softmax is this one: each is given back once.
            self._homes.append(home)
            home.softmax = self._over_edges

    def _hook(self, model: nn.Module) -> None:
        enter, leave = self._enter, self._leave  # One object each: what a copy's hooks reach is looked through.
        for name, module in {type(model).__name__: model, **dict(hookable(model))}.items():
            if name in self._layers:
                self._handles.append(module.register_forward_pre_hook(partial(enter, name)))
                self._handles.append(module.register_forward_hook(leave, always_call=True))

    def __exit__(self, *error: Any) -> None:
        while self._homes:
            self._homes.pop().softmax = softmax  # type: ignore[attr-defined]
        while self._handles:
            self._handles.pop().remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._running or func not in _LOOKED_AT:
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        if args and func in _SOFTMAXES:
            dim = args[1] if len(args) > 1 else kwargs.get("dim", -1)
            return func(args[0] * self._for_scores(args[0], dim), *args[1:], **kwargs)
        if len(args) > 1 and func is F.scaled_dot_product_attention:
            query, key = args[:2]
            scale = kwargs.get("scale") or 1 / math.sqrt(query.shape[-1])
            return func(query * self._for_queries(query, key, scale), *args[1:], **kwargs)
        if func is F.multi_head_attention_forward:
            given = FUSED.bind(*args, **kwargs).arguments
            return func(**given | _with_queries(given, self._for_rows(given)))
        if func in EXPONENTIALS and not self._in_softmax:
            return func(self._softer_exponent(args[0] if args else kwargs["input"]))
        return func(*args, **kwargs)

    def _for_scores(self, scores: Tensor, dim: int) -> float | Tensor:
        """What scores are multiplied with on their way into a softmax."""
        return self._factor(lambda: spread(scores, dim))

    def _for_queries(self, query: Tensor, key: Tensor, scale: float) -> float | Tensor:
        """The same for queries (…, L, E) of fused attention."""
        return self._factor(lambda: spread(query.detach() @ key.detach().transpose(-1, -2) * scale, -1))

    def _for_rows(self, given: Mapping[str, Any]) -> float | Tensor:
        """The same for the rows of the weight that makes the queries of `nn.MultiheadAttention`."""
        return self._factor(lambda: spread(_fused_scores(given), -1))

    def _softer_exponent(self, scores: Tensor) -> Tensor:
        # Which targets they belong to is not known here: the spread over all is no smaller than that within one.
        return scores * self._factor(lambda: spread(scores.flatten(), 0)) if scores.dim() else scores

    def _over_edges(self, src: Tensor, index: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        # Another thread finds this function in the place of PyG's too.
        if self._running and isinstance(index, Tensor) and get_ident() == self._thread:
            if self._running[-1] not in self._factors and (scale := multiplied_products(src)) is not None:
                self.scales[self._running[-1]] = scale
            src = src * self._factor(lambda: spread_over_edges(src, index, self._least))
            self._in_softmax = True
        try:
            result: Tensor = softmax(src, index, *args, **kwargs)
        finally:
            self._in_softmax = False
        return result

    def _enter(self, name: str, module: nn.Module, args: Any) -> None:
        self._running.append(name)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()

    def _factor(self, measured: Callable[[], float]) -> float:
        name = self._running[-1]
        if name not in self._factors:
            self._factors[name] = SPREAD / max(SPREAD, measured())
        return self._factors[name]


class Divided(Softened):
    """The same, with the scores of each layer divided by a number of its own."""

    def __init__(self, by: Mapping[str, float]) -> None:
        super().__init__(list(by))
        self._by = by

    def _factor(self, measured: Callable[[], float]) -> float:
        name = self._running[-1]
        self._factors[name] = 1 / self._by[name]
        return self._factors[name]


class Scaled(Softened):
    """Within the block, and within calls of the layers, every softmax but PyG's own gets its scores times these factors (H,), one per head.

    Where the heads cannot be told apart all are multiplied with the smallest.
    """

    def __init__(self, factors: Mapping[str, Tensor]) -> None:
        super().__init__(list(factors))
        self._given = factors

    def watch(self, model: nn.Module) -> None:
        """The same; who enters the block scales the scores of PyG's softmax."""
        self._hook(model)

    def _factor(self, measured: Callable[[], float]) -> float:
        return float(self._given[self._running[-1]].min())

    def _for_scores(self, scores: Tensor, dim: int) -> float | Tensor:
        return by_head(self._given[self._running[-1]], scores)

    def _for_queries(self, query: Tensor, key: Tensor, scale: float) -> float | Tensor:
        return by_head(self._given[self._running[-1]], query)

    def _for_rows(self, given: Mapping[str, Any]) -> float | Tensor:
        factors, heads = self._given[self._running[-1]], given["num_heads"]
        rows = given["query"].shape[-1]
        return factors.repeat_interleave(rows // heads) if len(factors.reshape(-1)) == heads else factors.min()


def by_head(factors: Tensor, scores: Tensor) -> Tensor:
    """Factors (H,) in a shape that fits scores or queries (…, H, L, S); the smallest where those have no such axis."""
    if scores.dim() > 2 and factors.dim() == 1 and len(factors) == scores.shape[-3]:
        return factors.to(scores)[:, None, None]
    return factors.min().to(scores)


class Spreads(Softened):
    """The same, with the scores as they are: their largest spread in each module of a model that calls a softmax itself."""

    def __init__(self, model: nn.Module, limit: float) -> None:
        super().__init__([n for n, m in model.named_modules() if n and type(m) not in WITHOUT_SOFTMAX])
        self._least = limit

    def _factor(self, measured: Callable[[], float]) -> float:
        name = self._running[-1]
        self._factors[name] = max(self._factors.get(name, 0.0), measured())
        return 1.0

    def _softer_exponent(self, scores: Tensor) -> Tensor:
        # Of a module that nothing is known of: a kernel of distances, or a variance from its logarithm.
        return scores

    @property
    def wide(self) -> list[str]:
        """Names of the modules whose scores spread further than ``limit``."""
        return [name for name, value in self._factors.items() if value > self._least]

    @property
    def widest(self) -> float:
        """The largest spread of all, where one is wide."""
        return max(self._factors.values(), default=0.0)


def outputs_and_wide(twin: nn.Module, forward: Callable[[], T]) -> tuple[T, list[str]]:
    """What ``forward`` of a copy returns, and the modules whose scores spread so far in it that their attention may be sharp."""
    mode = Spreads(twin, WIDE)
    with mode:
        mode.watch(twin)
        return forward(), mode.wide


def _projections(given: Mapping[str, Any]) -> list[tuple[Tensor, Tensor | None]]:
    """Weight (E, in) and bias (E,) of queries and of keys."""
    bias = given.get("in_proj_bias")
    biases = (None, None) if bias is None else bias.chunk(3)[:2]
    if given.get("use_separate_proj_weight"):
        return list(zip((given["q_proj_weight"], given["k_proj_weight"]), biases, strict=True))
    return list(zip(given["in_proj_weight"].chunk(3)[:2], biases, strict=True))


def _fused_scores(given: Mapping[str, Any]) -> Tensor:
    """Scores (N·heads, L, S) of queries (L, N, E) and keys (S, N, E), or without N; −∞ where masked."""
    heads = given["num_heads"]
    sides = zip((given["query"], given["key"]), _projections(given), strict=True)
    query, key = (
        made.reshape(len(made), -1, made.shape[-1] // heads).transpose(0, 1)
        for made in (F.linear(tokens.detach(), weight, bias).detach() for tokens, (weight, bias) in sides)
    )
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    padding = given.get("key_padding_mask")
    if padding is not None:
        padding = padding.reshape(-1, 1, 1, key.shape[1]).expand(-1, heads, -1, -1).flatten(0, 1)
    for mask in (padding, given.get("attn_mask")):
        if mask is not None:
            scores = scores.masked_fill(mask, -math.inf) if mask.dtype is torch.bool else scores + mask
    return scores


def _with_queries(given: Mapping[str, Any], factor: float | Tensor) -> dict[str, Tensor]:
    """The arguments that make the queries, and with them the scores, ``factor`` times as large; one for all or one per row (E,)."""
    ((weight, bias), _), changed = _projections(given), dict[str, Tensor]()
    rows = torch.as_tensor(factor).to(weight).reshape(-1)
    if given.get("use_separate_proj_weight"):
        changed["q_proj_weight"] = weight * rows[:, None]
    else:
        changed["in_proj_weight"] = torch.cat([weight * rows[:, None], given["in_proj_weight"][len(weight) :]])
    if bias is not None:
        changed["in_proj_bias"] = torch.cat([bias * rows, given["in_proj_bias"][len(bias) :]])
    return changed


def homes(module: nn.Module) -> Iterator[Any]:
    """The Python modules in which a layer's class, or a class above it, knows PyG's ``softmax`` by that name."""
    for part in module.modules():
        for kind in type(part).__mro__:
            home = sys.modules.get(kind.__module__)
            if home is not None and vars(home).get("softmax") is softmax:
                yield home
