"""A look at every place where data passes: each tensor of the batch, each module, each activation, the output, each parameter."""

from gnnstab.probe.places._autograd import SHAPES as SHAPES
from gnnstab.probe.places._autograd import walk_nodes as walk_nodes
from gnnstab.probe.places._numbers import dead_share as dead_share
from gnnstab.probe.places._numbers import rms as rms
from gnnstab.probe.places._numbers import saturated_share as saturated_share
from gnnstab.probe.places._padding import filled_rows as filled_rows
from gnnstab.probe.places._parameters import NotHeld as NotHeld
from gnnstab.probe.places._parameters import not_held as not_held
from gnnstab.probe.places._parameters import ungiven as ungiven
from gnnstab.probe.places.survey import Place as Place
from gnnstab.probe.places.survey import survey as survey
from gnnstab.probe.places.survey import to_json as to_json
