"""What each kind of attention layer is: one adapter per file, one line per kind in `table.LAYERS`.

The only room that knows the names of a layer's parameters and the formula of its scores. Every other room asks:
`layer_of` for a module, `layer_named` for recorded facts, `plays` for a parameter.
"""

from gnnstab.layers.base import Call as Call
from gnnstab.layers.base import Layer as Layer
from gnnstab.layers.base import StoredLayer as StoredLayer
from gnnstab.layers.generic import FAMILY as FAMILY
from gnnstab.layers.table import LAYERS as LAYERS
from gnnstab.layers.table import kinds as kinds
from gnnstab.layers.table import layer_named as layer_named
from gnnstab.layers.table import layer_of as layer_of
from gnnstab.layers.table import parts as parts
from gnnstab.layers.table import plays as plays
from gnnstab.layers.table import weights as weights
