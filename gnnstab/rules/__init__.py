"""The rules: signals → findings, causes and advice. One file per rule; `RULES` is the table."""

from gnnstab.rules.attribution import causes as causes
from gnnstab.rules.base import Rule as Rule
from gnnstab.rules.counsel import advice as advice
from gnnstab.rules.engine import Outcome as Outcome
from gnnstab.rules.engine import Override as Override
from gnnstab.rules.engine import Suppression as Suppression
from gnnstab.rules.engine import run as run
from gnnstab.rules.gs101_no_dropout import NoDropout
from gnnstab.rules.gs102_beta_disabled import BetaDisabled
from gnnstab.rules.gs103_no_residual import NoResidual
from gnnstab.rules.gs201_unstable_init_gain import UnstableInitGain
from gnnstab.rules.gs203_vanishing_gradient import VanishingGradient
from gnnstab.rules.gs204_exploding_gradient import ExplodingGradient
from gnnstab.rules.gs301_attention_explosion import AttentionExplosion
from gnnstab.rules.gs302_attention_saturated_by_input import AttentionSaturatedByInput
from gnnstab.rules.gs303_logit_bound import LogitBound
from gnnstab.rules.gs401_sum_aggregation_growth import SumAggregationGrowth
from gnnstab.rules.gs402_isolated_nodes import IsolatedNodes
from gnnstab.rules.gs406_feature_scale import FeatureScale
from gnnstab.rules.gs501_precision_headroom import PrecisionHeadroom
from gnnstab.rules.gs502_non_finite_value import NonFiniteValue
from gnnstab.rules.gs604_never_updated_parameter import NeverUpdatedParameter
from gnnstab.rules.gs901_blind_layer import BlindLayer

RULES: tuple[type[Rule], ...] = (
    NoDropout,
    BetaDisabled,
    NoResidual,
    UnstableInitGain,
    VanishingGradient,
    ExplodingGradient,
    AttentionExplosion,
    AttentionSaturatedByInput,
    LogitBound,
    SumAggregationGrowth,
    IsolatedNodes,
    FeatureScale,
    PrecisionHeadroom,
    NonFiniteValue,
    NeverUpdatedParameter,
    BlindLayer,
)
"""Every built-in rule, by code."""
