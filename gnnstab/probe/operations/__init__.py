"""A step watched operation by operation: the first one that made an Inf or NaN, on which line, and of what sizes."""

from gnnstab.probe.operations._naming import TensorNames as TensorNames
from gnnstab.probe.operations._watch import OperationMode as OperationMode
from gnnstab.probe.operations.repeat import Found as Found
from gnnstab.probe.operations.repeat import repeat as repeat
