"""Standardised input features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes.base import Fix
from gnnstab.fixes.model_structure import edited_copy
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import FEATURE_COLUMN_RATIO

if TYPE_CHECKING:
    from torch import Tensor, nn


class InputStandardisation(Fix):
    """(x − mean) / std per column, measured on a batch; columns of whole numbers (ids, one-hot) are left alone.

    Options: ``batch`` (needed), ``argument`` (name or position of the model's argument that holds the node features;
    found by itself for a ``Data``, for ``x=`` and for the first floating-point tensor).
    """

    name: ClassVar[str] = "input-standardisation"
    title: ClassVar[str] = "standardised input features"
    causes: ClassVar[tuple[str, ...]] = ("feature-scale",)
    signal: ClassVar[str] = FEATURE_COLUMN_RATIO
    keeps_function: ClassVar[bool] = False
    # Weights that were trained on raw features know nothing of standardised ones.
    needs_fresh_weights: ClassVar[bool] = True
    cost: ClassVar[str] = "none; the statistics have to be stored with the model"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The lines of the data pipeline."""
        return (
            "mean, std = train_x.mean(0), train_x.std(0).clamp(min=1e-6)  # of the training set; leave id columns out\n"
            "x = (x - mean) / std"
        )

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Put the standardisation in front of the whole model, as ``input_standardisation``."""
        from gnnstab.nn.output_hooks import StandardiseHook, StandardiseInput, column_statistics

        with edited_copy(model) as copy:
            x, argument = _features(copy, options)
            mean, std = column_statistics(x)
            copy.input_standardisation = StandardiseInput(mean, std, argument).train(copy.training)
            copy.register_forward_pre_hook(StandardiseHook(), with_kwargs=True)
            return copy


def _features(model: nn.Module, options: dict[str, Any]) -> tuple[Tensor, str | int | None]:
    """The node features of a batch, and the model's argument that they came in by."""
    from torch_geometric.data import Data

    from gnnstab.probe.batches.arguments import as_arguments

    if options.get("batch") is None:
        raise FixError("the features' mean and std have to be measured: pass batch=")
    args, kwargs = as_arguments(options["batch"], model)[0]
    where = options.get("argument")
    if where is not None:
        return (kwargs[where] if isinstance(where, str) else args[where]), where
    for value in (*args, *kwargs.values()):
        if isinstance(value, Data) and value.x is not None:
            return value.x, None
    named: list[tuple[str | int, Any]] = [*enumerate(args), *kwargs.items()]
    named.sort(key=lambda item: item[0] != "x")
    for key, value in named:
        if getattr(value, "ndim", 0) >= 2 and value.is_floating_point():
            return value, key
    raise FixError("no node features found among the model's arguments; name them with argument=")
