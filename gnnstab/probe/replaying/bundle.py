"""Everything that is needed to reproduce a non-finite value: one folder beside the trace.

``event.json`` (what happened, where; mode and autocast of the forward), ``layers.json`` (facts of the layers),
``batch.pt`` (arguments of the forward), ``rng.pt`` (random generators before it), ``weights.pt`` (state dict before the
step's update). The ``.pt`` files hold tensors in plain containers and are read with ``weights_only=True`` alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch_geometric.data import Data, HeteroData

from gnnstab.errors import LoadError
from gnnstab.layers.edges import plain_tensor
from gnnstab.probe.attaching.forward_tracker import ForwardInputs
from gnnstab.probe.batches.batch_file import load_plain
from gnnstab.probe.replaying.replica import Autocast
from gnnstab.records import Event, LayerFacts
from gnnstab.sharding import WHY, is_sharded

_KIND, _VALUE = "gnnstab.kind", "gnnstab.value"
_EVENT = "event.json"
_LARGEST_JSON = 20_000_000
_MOST_LEFT_OUT, _LONGEST_LEFT_OUT = 500, 1000
"""Values of which a bundle says that it lacks them, and characters of each."""

_MOST_SHOWN = 3

_DATA = {"Data": Data, "HeteroData": HeteroData}


@dataclass(frozen=True)
class Bundle:
    """A bundle as it was read."""

    event: dict[str, Any]
    """The event, field by field, with JSON's types."""

    layers: tuple[dict[str, Any], ...]
    inputs: ForwardInputs
    weights: dict[str, Tensor]
    left_out: tuple[str, ...]
    """Arguments that could not be saved, each with the reason."""


def write(
    folder: str | os.PathLike[str],
    model: nn.Module,
    inputs: ForwardInputs,
    event: Event,
    layers: Sequence[LayerFacts] = (),
) -> Path:
    """Write a bundle into a new folder and return its path.

    Raises:
        OSError: The folder exists or cannot be written.
    """
    path = Path(folder)
    path.mkdir(parents=True)
    left_out: list[str] = []
    batch = {
        "args": [_plain(value, f"argument {i}", left_out) for i, value in enumerate(inputs.args)],
        "kwargs": {key: _plain(value, key, left_out) for key, value in inputs.kwargs.items()},
    }
    torch.save(batch, path / "batch.pt")
    torch.save({"cpu": inputs.rng["cpu"], "cuda": dict(inputs.rng.get("cuda") or {})}, path / "rng.pt")
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    left_out += [f"{name}: {WHY}" for name, value in state.items() if is_sharded(value)]
    weights = {name: value.detach().clone() for name, value in state.items() if not is_sharded(value)}
    torch.save(weights, path / "weights.pt")
    about = {
        "event": dataclasses.asdict(event),
        "mode": inputs.mode,
        "autocast": [inputs.autocast[0], str(inputs.autocast[1]).removeprefix("torch."), inputs.autocast[2]],
        "left_out": _told(left_out),
    }
    _write_json(path / "event.json", about)
    _write_json(path / "layers.json", [dataclasses.asdict(facts) for facts in layers])
    return path


def read(folder: str | os.PathLike[str]) -> Bundle:
    """Read a bundle; nothing in it is run.

    Raises:
        LoadError: The folder is no bundle, or one of its files is damaged.
    """
    path = Path(folder)
    if not os.path.lexists(path / _EVENT):
        within = sorted(name for name in os.listdir(path) if (path / name / _EVENT).is_file()) if path.is_dir() else []
        raise LoadError(f"{path}: no bundle, it has no {_EVENT}{_shown('; in it stand', [path / n for n in within])}")
    about = _read_json(path / _EVENT)
    batch, rng, weights = (load_plain(path / name, "bundle file") for name in ("batch.pt", "rng.pt", "weights.pt"))
    try:
        for content in (about, batch, rng, weights):
            if not isinstance(content, Mapping):
                raise TypeError(f"a {type(content).__name__} stands where a dict belongs")
        device, dtype, enabled = about["autocast"]
        return Bundle(
            event=dict(about["event"]),
            layers=tuple(dict(facts) for facts in _read_json(path / "layers.json")),
            inputs=ForwardInputs(
                tuple(_revived(value) for value in batch["args"]),
                {_text(key): _revived(value) for key, value in batch["kwargs"].items()},
                {"cpu": _tensor(rng["cpu"]), "cuda": dict(rng["cuda"])},
                Autocast(str(device), _dtype(dtype), bool(enabled)),
                str(about["mode"]),
            ),
            weights={_text(name): _tensor(value) for name, value in weights.items()},
            left_out=_left_out(about["left_out"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LoadError(f"{path}: not a bundle of gnnstab ({type(error).__name__}: {error})") from error


def beside(trace: str | os.PathLike[str]) -> str:
    """Where the bundles of a trace stand, in words: ``; its bundles: run.bundle-12, run.bundle-40``, or that there is none."""
    path = Path(trace)
    start = f"{path.name.removesuffix('.gnnstab')}.bundle-"
    try:
        found = sorted(
            n for n in os.listdir(path.parent) if n.startswith(start) and (path.parent / n / _EVENT).is_file()
        )
    except OSError:
        found = []
    return _shown("; its bundles:", [path.parent / name for name in found]) or "; no bundle stands beside it"


def _shown(words: str, paths: Sequence[Path]) -> str:
    more = ", …" if len(paths) > _MOST_SHOWN else ""
    return f"{words} {', '.join(map(str, paths[:_MOST_SHOWN]))}{more}" if paths else ""


def _told(left_out: list[str]) -> list[str]:
    """As much of it as is read again."""
    more = len(left_out) - _MOST_LEFT_OUT
    shown = left_out if more <= 0 else [*left_out[: _MOST_LEFT_OUT - 1], f"{more + 1} more"]
    return [text[:_LONGEST_LEFT_OUT] for text in shown]


def _left_out(told: Any) -> tuple[str, ...]:
    if not isinstance(told, list) or len(told) > _MOST_LEFT_OUT:
        raise ValueError(f"left_out is no list of at most {_MOST_LEFT_OUT} texts")
    if not all(isinstance(text, str) and len(text) <= _LONGEST_LEFT_OUT for text in told):
        raise ValueError(f"left_out holds something else than texts of at most {_LONGEST_LEFT_OUT} characters")
    return tuple(told)


def _plain(value: Any, name: str, left_out: list[str]) -> Any:
    """``value`` in types that ``weights_only`` loads."""
    if isinstance(value, Tensor):
        # A subclass such as EdgeIndex would need its class to be loaded; its numbers do not.
        return plain_tensor(value).detach().clone()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        items = [_plain(item, f"{name}[{i}]", left_out) for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{name}[{key!r}]", left_out) for key, item in value.items()}
    if hasattr(value, "to_dict"):
        kind = "HeteroData" if isinstance(value, HeteroData) else "Data"
        return {_KIND: kind, _VALUE: _plain(value.to_dict(), name, left_out)}
    left_out.append(f"{name}: a {type(value).__name__} cannot be saved without its code")
    return None


def _revived(value: Any) -> Any:
    if isinstance(value, dict) and _KIND in value:
        return _DATA[_text(value[_KIND])].from_dict(_revived(value[_VALUE]))
    if isinstance(value, dict):
        return {key: _revived(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_revived(item) for item in value)
    return value


def _text(value: Any) -> str:
    """A name; what a file of somebody else puts in its place is never written out or hashed."""
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} stands where a name belongs")
    return value


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"a {type(value).__name__} stands where a tensor belongs")
    if is_lazy(value) or value.is_meta:
        raise TypeError("a tensor without numbers stands where weights belong")
    return value


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return found


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, default=str), encoding="utf-8")


def _read_json(path: Path) -> Any:
    try:
        if path.exists() and not path.is_file():
            raise LoadError(f"{path}: is not a regular file")
        if path.stat().st_size > _LARGEST_JSON:
            raise LoadError(f"{path}: larger than {_LARGEST_JSON} bytes, which no part of a bundle is")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"{path}: cannot be read as part of a bundle ({type(error).__name__}: {error})") from error
