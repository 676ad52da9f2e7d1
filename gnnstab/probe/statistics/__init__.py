"""From tensors to named numbers: pure functions, on the device, without host synchronisation (docs/signals.md)."""

from gnnstab.probe.statistics._aggregation import aggregation_measures as aggregation_measures
from gnnstab.probe.statistics._aggregation import growth_over_degree as growth_over_degree
from gnnstab.probe.statistics._features import node_measures as node_measures
from gnnstab.probe.statistics._graph import degree_measures as degree_measures
from gnnstab.probe.statistics._graph import graph_measures as graph_measures
from gnnstab.probe.statistics.layer import activation_measures as activation_measures
from gnnstab.probe.statistics.layer import attention_measures as attention_measures
from gnnstab.probe.statistics.numbers import Measured as Measured
