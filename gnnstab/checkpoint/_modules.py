"""What a module that was unpickled whole says about its own layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from gnnstab.layers import layer_of


def known_facts(root: nn.Module) -> dict[str, dict[str, Any]]:
    """Module path → configuration of every attention layer, as far as it is known."""
    facts: dict[str, dict[str, Any]] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        kind = layer_of(module)
        if kind is not None:
            shown = kind.facts(name, module, 0).flat()
            facts[name] = {key: value for key, value in shown.items() if value is not None}
    return facts
