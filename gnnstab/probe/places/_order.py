"""Whether the answer for a graph depends on where it stands in its batch: the graphs run once more in the reverse order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch_geometric.data import Batch

from gnnstab.errors import let_through
from gnnstab.probe.attaching.hooks import hookable
from gnnstab.probe.places._passes import ROUNDING, Passes, Row, moved
from gnnstab.probe.replaying.replica import mapped, tensors_in
from gnnstab.records.vocabulary import PLACE_ORDER_DIFFERENCE
from gnnstab.stored import is_dense

if TYPE_CHECKING:
    from gnnstab.probe.places._alone import Company

Turned = Callable[[Tensor, str], Tensor | None]
"""(tensor, name) → the same graphs in the reverse order; None where nobody can say."""


def rows(
    run: Passes,
    one: list[Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    named: Mapping[str, Tensor],
    company: Company,
) -> Iterator[Row]:
    """The change of the output ``one`` under another order of the graphs, and the first module whose own output moves; nothing where it stays, or nobody can turn the batch round."""
    called = {id(tensor): name.rpartition(".")[2] for name, tensor in named.items()}
    try:
        other = _reversed(args, kwargs, called, company.turned)
        change = moved([_whole(company.turned(t, "")) for t in one], run(*other))
        if change > ROUNDING:
            with _returned(run.model) as before:
                run(args, kwargs)
            with _returned(run.model) as after:
                run(*other)
            first = next((name for name in after if _moves(before.get(name, []), after[name], company.turned)), "")
            yield PLACE_ORDER_DIFFERENCE, "output", change, {"module": first}
    except Exception as error:  # A stranger's forward may ask for the order, as where indices of nodes come along.
        let_through(error)


def _reversed(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], called: Mapping[int, str], turned: Turned
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def other(value: Any) -> Any:
        if isinstance(value, Batch) and getattr(value, "_slice_dict", None):
            return Batch.from_data_list(value.to_data_list()[::-1])
        return mapped(value, lambda tensor: _whole(turned(tensor, called.get(id(tensor), ""))))

    return tuple(map(other, args)), {key: other(value) for key, value in kwargs.items()}


def _whole(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ValueError("a tensor of which nobody can say what belongs to which graph")
    return tensor


@contextmanager
def _returned(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Name → what each module of a copy returned in its first call, in the order in which the calls ended."""
    found: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found.setdefault(name, [t.detach() for _, t in tensors_in([output]) if is_dense(t)])

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in hookable(model) if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _moves(before: list[Tensor], after: list[Tensor], turned: Turned) -> bool:
    pairs = [(turned(a, ""), b, a) for a, b in zip(before, after, strict=False) if a.shape == b.shape]
    known = [(a, b) for a, b, whole in pairs if a is not None and a is not whole and a.is_floating_point()]
    return moved([a for a, _ in known], [b for _, b in known]) > ROUNDING
