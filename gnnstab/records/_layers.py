"""What is known of a layer's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """The configuration of one layer; ``None`` means that the source of the facts cannot show it."""

    name: str
    """Module path in the model, or key prefix in the checkpoint."""

    kind: str
    """Class name, e.g. ``TransformerConv``; for a subclass, the subclass' name."""

    position: int
    """Order of first call (model) or of appearance (checkpoint), from 0 over all recorded layers."""

    attention: bool
    """True for a layer whose attention scores are recorded; False for the fallback adapter."""

    in_channels: tuple[int, int] | None = None
    """(source, target) input width."""

    out_channels: int | None = None
    """Width per head."""

    heads: int | None = None
    concat: bool | None = None
    dropout: float | None = None
    """Dropout probability on the attention weights."""

    edge_dim: int | None = None
    """Edge feature width; 0 for none; None when not visible."""

    bias: bool | None = None
    aggregation: str | None = None
    """Reduction over incoming messages: add, mean, max, …"""

    identity_path: bool | None = None
    """True when a path goes around the layer to the next recorded layer's input."""

    beside: tuple[str, ...] | None = None
    """Layers that were called before this one and whose output does not reach its input; None when not visible."""

    norm_before: str | None = None
    """Class name of a normalisation directly before the layer; ``""`` for none; None when not visible."""

    norm_after: str | None = None
    """Class name of a normalisation directly after the layer; ``""`` for none; None when not visible."""

    activation: str | None = None
    """Activation after the layer, ``relu``, ``tanh``, …; None when not visible."""

    initialisation: str | None = None
    """Fingerprint of the weights' distribution, e.g. ``pyg-default``, ``orthogonal(1.41)``, ``unknown``."""

    source_file: str | None = None
    """Path:line of the class that holds the layer, where known."""

    score_format: str | None = None
    """Coarsest number format that the layer's own scores were computed in: ``fp16``, ``bf16``, ``fp32``; None when no
    score was seen. A layer whose attention runs outside autocast differs from the rest of the run."""

    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Facts that only one kind of layer has, by the name of the constructor's argument; see the adapter of the kind in
    `gnnstab.layers`. ``None`` or absent means not visible here too."""

    @property
    def width(self) -> int | None:
        """Width of the output; None where it is not known."""
        if self.out_channels is None or (self.concat and self.heads is None):
            return None
        return self.out_channels * (self.heads or 1) if self.concat else self.out_channels

    @classmethod
    def of(cls, name: str, kind: str, position: int, attention: bool = True, **facts: Any) -> LayerFacts:
        """Facts from names and values alone: what is no field is an option."""
        known = {key: value for key, value in facts.items() if key in _FIELDS}
        options = {key: value for key, value in facts.items() if key not in _FIELDS}
        return cls(name, kind, position, attention, **{"options": options, **known})

    def get(self, name: str) -> Any:
        """A field or an option by its name; None where it is not known or the kind has no such thing."""
        return self.options.get(name) if name not in _FIELDS else getattr(self, name)

    def flat(self) -> dict[str, Any]:
        """Fields and options side by side, by name: the form in JSON."""
        named = {name: getattr(self, name) for name in _FIELDS if name != "options"}
        return {**named, **self.options}


_FIELDS = tuple(one.name for one in fields(LayerFacts))
