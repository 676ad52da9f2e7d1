"""What a module that was unpickled whole says about its own layers."""

from __future__ import annotations

from typing import Any

from torch import nn

_ATTRIBUTES = ("heads", "concat", "dropout", "out_channels", "root_weight", "beta", "edge_dim", "aggr")


def known_facts(root: nn.Module) -> dict[str, dict[str, Any]]:
    """Module path → configuration of every TransformerConv (or subclass), as far as it holds plain values."""
    facts: dict[str, dict[str, Any]] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        if any(kind.__name__ == "TransformerConv" for kind in type(module).__mro__):
            values = {key: getattr(module, key, None) for key in _ATTRIBUTES}
            facts[name] = {key: v for key, v in values.items() if isinstance(v, (bool, int, float, str))}
            facts[name]["kind"] = type(module).__name__
    return facts
