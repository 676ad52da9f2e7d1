"""The table of the fixes."""

from gnnstab.fixes.activation_clamp import ActivationClamp
from gnnstab.fixes.adam_eps import AdamEps
from gnnstab.fixes.aggregation import Aggregation
from gnnstab.fixes.base import Fix
from gnnstab.fixes.beta import Beta
from gnnstab.fixes.clean_data import CleanData
from gnnstab.fixes.depth_init import DepthInit
from gnnstab.fixes.dropout import Dropout
from gnnstab.fixes.fp32_attention import Fp32Attention
from gnnstab.fixes.fp32_operation import Fp32Operation
from gnnstab.fixes.gradient_clipping import GradientClipping
from gnnstab.fixes.graph_norm import GraphNorm
from gnnstab.fixes.input_standardisation import InputStandardisation
from gnnstab.fixes.layer_norm import LayerNormInstead
from gnnstab.fixes.lower_lr import LowerLearningRate
from gnnstab.fixes.mean_aggregation_root import MeanAggregationRoot
from gnnstab.fixes.norm_after_sum import NormAfterSum
from gnnstab.fixes.pre_norm_residual import PreNormResidual
from gnnstab.fixes.qk_clip import QKClip
from gnnstab.fixes.qk_norm import QKNorm
from gnnstab.fixes.reconnect import Reconnect
from gnnstab.fixes.reinit_gate import ReinitGate
from gnnstab.fixes.reinit_layers import ReinitLayers
from gnnstab.fixes.reinit_qk import ReinitQK
from gnnstab.fixes.remove_clamp import RemoveClamp
from gnnstab.fixes.residual import Residual
from gnnstab.fixes.residual_depth_init import ResidualDepthInit
from gnnstab.fixes.root_term import RootWeight
from gnnstab.fixes.safe_operation import SafeOperation
from gnnstab.fixes.score_cap import ScoreCap
from gnnstab.fixes.set_mask import SetMask
from gnnstab.fixes.unit_gain_init import UnitGainInit

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
        SafeOperation(),
        SetMask(),
        Fp32Operation(),
        Reconnect(),
    )
}
"""Every fix by name."""
