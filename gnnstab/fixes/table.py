"""The table of the fixes, and what to do with one by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gnnstab.errors import FixError, hint
from gnnstab.fixes._bounded_scores import Fp32Attention, QKNorm, ScoreCap
from gnnstab.fixes._initialisation import DepthInit, ReinitGate, ReinitLayers, ReinitQK, UnitGainInit
from gnnstab.fixes._kept import KeepResult
from gnnstab.fixes._layer_settings import Beta, Dropout, RootWeight
from gnnstab.fixes._loop import CorrectSettings, FloatWeights, ScalerStep
from gnnstab.fixes._norms_and_clamps import (
    ActivationClamp,
    GraphNorm,
    InputStandardisation,
    LayerNormInstead,
    RemoveClamp,
)
from gnnstab.fixes._rounds import MixFirstState
from gnnstab.fixes._training import AdamEps, GradientClipping, LowerLearningRate
from gnnstab.fixes._unmoved import Reconnect
from gnnstab.fixes._weighing import WeighMessages
from gnnstab.fixes.aggregation import Aggregation, MeanAggregationRoot, NormAfterSum
from gnnstab.fixes.base import Fix
from gnnstab.fixes.by_hand import (
    CleanData,
    ClearGradients,
    DivideSum,
    Fp32Operation,
    LowerDecay,
    SafeOperation,
    SetMask,
    StandardiseTargets,
    UndoNormalisation,
)
from gnnstab.fixes.identity import PreNormResidual, Residual, ResidualDepthInit
from gnnstab.fixes.qk_clip import QKClip
from gnnstab.randomness import keeps_random_state
from gnnstab.records import LayerFacts, Signals

if TYPE_CHECKING:
    from torch import nn

FIXES: dict[str, Fix] = {
    fix.name: fix
    for fix in (
        # Phases 1 to 3 of the document that the project grew from, in its order, and its stop-gap.
        Dropout(),
        Beta(),
        Residual(),
        DepthInit(),
        LowerLearningRate(),
        GraphNorm(),
        ScoreCap(),
        Aggregation(),
        ActivationClamp(),
        # What measurements found to work.
        PreNormResidual(),
        ResidualDepthInit(),
        UnitGainInit(),
        QKNorm(),
        QKClip(),
        MeanAggregationRoot(),
        NormAfterSum(),
        Fp32Attention(),
        GradientClipping(),
        AdamEps(),
        InputStandardisation(),
        ReinitQK(),
        ReinitGate(),
        ReinitLayers(),
        LayerNormInstead(),
        RootWeight(),
        RemoveClamp(),
        # What can only be done by hand.
        CleanData(),
        StandardiseTargets(),
        SafeOperation(),
        DivideSum(),
        WeighMessages(),
        MixFirstState(),
        ClearGradients(),
        LowerDecay(),
        CorrectSettings(),
        ScalerStep(),
        FloatWeights(),
        SetMask(),
        UndoNormalisation(),
        Fp32Operation(),
        Reconnect(),
        KeepResult(),
    )
}
"""Every fix by name."""

FORMER = {"qk-redraw": "reinit-qk", "gate-redraw": "reinit-gate", "layer-redraw": "reinit-layers"}
"""Former names, accepted in version 0.1."""


def find(name: str) -> Fix:
    """The fix of that name, or of that former name.

    Raises `FixError` with the nearest names when there is none.
    """
    name = FORMER.get(name, name)
    if name in FIXES:
        return FIXES[name]
    raise FixError(f"unknown fix {name!r}; {hint(name, FIXES, 'choose from ' + ', '.join(FIXES))}")


def addressing(cause: str) -> list[Fix]:
    """The fixes that address a cause: first those that name it first, then in the table's order."""
    found = [fix for fix in FIXES.values() if cause in fix.causes]
    return sorted(found, key=lambda fix: fix.causes.index(cause))


_GIVEN = ("batch", "signals", "seed")
"""Options that every fix may be given, whether it needs them or not."""


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise `FixError` for an option that the fix has not, with the nearest names, and for a number out of its range."""
    fix = find(name)
    known = fix.options
    for option, value in options.items():
        if option not in known and option not in _GIVEN:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise FixError(f"{name} has no option {option!r}; {hint(option, known, has)}")
        if option in fix.limits and value is not None:
            fix.limits[option].check(f"{name} {option}", value)


@keeps_random_state
def apply(model: nn.Module, name: str, **options: Any) -> nn.Module:
    """A changed deep copy of ``model``; the model, its mode and the random state stay as they are.

    The copy trains, saves and loads (apply the same fix to a new model before ``load_state_dict``). Fixes of the
    training alone return an unchanged copy; their numbers are in ``find(name).training_options()``. The options are
    those of the fix' docstring.

    Raises `FixError` for an option that the fix has not, and when the model offers no place for the change.
    """
    check_options(name, options)
    return find(name).apply(model, **options)


def change(name: str, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
    """The exact change as code for these layers, with the user's own arguments; raises `FixError` for an option that the fix has not."""
    check_options(name, options)
    return find(name).change(layers, signals, **options)
