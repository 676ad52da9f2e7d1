"""The settings of an optimizer as a trace keeps them, and an optimizer of the same kind made of them for another model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from gnnstab.errors import let_through

SETTINGS = "optimizer.settings"
"""Key of a trace's metadata."""

MOST_NAMES = 2000
"""Parameters of an optimizer with several groups up to which a trace names those of each."""


def kept_settings(optimizer: torch.optim.Optimizer, model: nn.Module) -> str:
    """Per group its plain settings, and the names of its parameters where there are several; empty where these are too many."""
    several = len(optimizer.param_groups) > 1
    if several and sum(len(group["params"]) for group in optimizer.param_groups) > MOST_NAMES:
        return ""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key != "params" and _plain(value)}
        held = [names[id(p)] for p in group["params"] if id(p) in names] if several else None
        groups.append({"names": held, "settings": settings})
    return json.dumps(groups)


def made_of(kind: str, groups: Any, model: nn.Module) -> torch.optim.Optimizer | None:
    """An optimizer of torch's class ``kind`` that moves ``model`` as the groups say, of a trace that may come from a stranger; None where it cannot be made."""
    known = vars(torch.optim).get(kind)
    if not (isinstance(known, type) and issubclass(known, torch.optim.Optimizer) and isinstance(groups, list)):
        return None
    maker: Callable[..., torch.optim.Optimizer] = known
    own, made = dict(model.named_parameters()), []
    for group in groups:
        settings, held = (group.get("settings"), group.get("names")) if isinstance(group, Mapping) else (None, None)
        if not isinstance(settings, dict) or not isinstance(held, (list, type(None))):
            return None
        named = own.values() if held is None else [own[name] for name in held if name in own]
        plain = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items() if _plain(v)}
        made.append({**plain, "params": [p for p in named if p.requires_grad]})
    try:
        return maker([group for group in made if group["params"]])
    except Exception as error:
        let_through(error)
        return None


def _plain(value: Any) -> bool:
    """True of numbers, switches, and pairs of numbers."""
    if isinstance(value, (tuple, list)):
        return all(type(part) in (int, float) for part in value)
    return value is None or type(value) in (bool, int, float)
