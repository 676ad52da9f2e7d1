"""The table of the built-in rules."""

from gnnstab.rules.base import Rule
from gnnstab.rules.gs101_no_dropout import NoDropout
from gnnstab.rules.gs102_beta_disabled import BetaDisabled
from gnnstab.rules.gs103_no_residual import NoResidual
from gnnstab.rules.gs104_gate_saturated import GateSaturated
from gnnstab.rules.gs105_dropout_on_sparse_neighbourhood import DropoutOnSparseNeighbourhood
from gnnstab.rules.gs106_post_norm_without_identity import PostNormWithoutIdentity
from gnnstab.rules.gs107_beta_silently_off import BetaSilentlyOff
from gnnstab.rules.gs108_graph_norm_hazard import GraphNormHazard
from gnnstab.rules.gs201_unstable_init_gain import UnstableInitGain
from gnnstab.rules.gs202_init_missed_convolutions import InitMissedConvolutions
from gnnstab.rules.gs203_vanishing_gradient import VanishingGradient
from gnnstab.rules.gs204_exploding_gradient import ExplodingGradient
from gnnstab.rules.gs301_attention_explosion import AttentionExplosion
from gnnstab.rules.gs302_attention_saturated_by_input import AttentionSaturatedByInput
from gnnstab.rules.gs303_logit_bound import LogitBound
from gnnstab.rules.gs304_attention_unused import AttentionUnused
from gnnstab.rules.gs305_softmax_misused import SoftmaxMisused
from gnnstab.rules.gs401_sum_aggregation_growth import SumAggregationGrowth
from gnnstab.rules.gs402_isolated_nodes import IsolatedNodes
from gnnstab.rules.gs403_hub_dilution import HubDilution
from gnnstab.rules.gs404_no_self_term import NoSelfTerm
from gnnstab.rules.gs405_degree_one_attention import DegreeOneAttention
from gnnstab.rules.gs406_feature_scale import FeatureScale
from gnnstab.rules.gs407_constant_or_non_finite_feature import ConstantOrNonFiniteFeature
from gnnstab.rules.gs408_batch_dependence import BatchDependence
from gnnstab.rules.gs501_precision_headroom import PrecisionHeadroom
from gnnstab.rules.gs502_non_finite_value import NonFiniteValue
from gnnstab.rules.gs503_underflow import Underflow
from gnnstab.rules.gs601_learning_rate_too_high import LearningRateTooHigh
from gnnstab.rules.gs602_adam_epsilon_dominates import AdamEpsilonDominates
from gnnstab.rules.gs603_gradient_spike import GradientSpike
from gnnstab.rules.gs604_never_updated_parameter import NeverUpdatedParameter
from gnnstab.rules.gs605_absurd_weight import AbsurdWeight
from gnnstab.rules.gs606_rate_jump import RateJump
from gnnstab.rules.gs701_dead_units import DeadUnits
from gnnstab.rules.gs702_saturated_tanh import SaturatedTanh
from gnnstab.rules.gs703_active_clamp import ActiveClamp
from gnnstab.rules.gs704_oversmoothing import Oversmoothing
from gnnstab.rules.gs901_blind_layer import BlindLayer
from gnnstab.rules.gs902_tool_failure import ToolFailure
from gnnstab.rules.gs903_incomplete_trace import IncompleteTrace

RULES: tuple[type[Rule], ...] = (
    NoDropout,
    BetaDisabled,
    NoResidual,
    GateSaturated,
    DropoutOnSparseNeighbourhood,
    PostNormWithoutIdentity,
    BetaSilentlyOff,
    GraphNormHazard,
    UnstableInitGain,
    InitMissedConvolutions,
    VanishingGradient,
    ExplodingGradient,
    AttentionExplosion,
    AttentionSaturatedByInput,
    LogitBound,
    AttentionUnused,
    SoftmaxMisused,
    SumAggregationGrowth,
    IsolatedNodes,
    HubDilution,
    NoSelfTerm,
    DegreeOneAttention,
    FeatureScale,
    ConstantOrNonFiniteFeature,
    BatchDependence,
    PrecisionHeadroom,
    NonFiniteValue,
    Underflow,
    LearningRateTooHigh,
    AdamEpsilonDominates,
    GradientSpike,
    NeverUpdatedParameter,
    AbsurdWeight,
    RateJump,
    DeadUnits,
    SaturatedTanh,
    ActiveClamp,
    Oversmoothing,
    BlindLayer,
    ToolFailure,
    IncompleteTrace,
)
"""Every built-in rule, by code."""
