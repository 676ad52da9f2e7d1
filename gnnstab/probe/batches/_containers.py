"""PyG's containers of a batch, made anew and filled with what the records of a file say; no code of the file runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.data.storage import BaseStorage

from gnnstab.unpickling import Named, Record

_STORAGES = frozenset(
    f"torch_geometric.data.storage.{kind}" for kind in ("BaseStorage", "GlobalStorage", "NodeStorage", "EdgeStorage")
)

_GRAPHS: dict[str, type[Data] | type[HeteroData]] = {
    "torch_geometric.data.data.Data": Data,
    "torch_geometric.data.hetero_data.HeteroData": HeteroData,
}

_BATCH = "torch_geometric.data.batch.Batch"

_BESIDE = frozenset(
    {
        # What a container remembers of its attributes, once it was asked which belong to nodes.
        "torch_geometric.data.storage.AttrType",
        "torch_geometric.data.graph_store.EdgeLayout",
        "torch_geometric.data.data.DataEdgeAttr",
        "torch_geometric.data.data.DataTensorAttr",
        "torch_geometric.data.batch.DynamicInheritanceGetter",
    }
)

Fill = Callable[[Any], Any]
"""Gives the value that stands for what the file holds at a place."""


def is_container(name: str) -> bool:
    """True for the classes of PyG that a batch is made of."""
    return name in _STORAGES or name in _GRAPHS or name in _BESIDE or name == _BATCH


def container(record: Record, fill: Fill) -> Any:
    """The container that a record describes.

    Raises `ValueError` when the record lacks what every container of its class has.
    """
    if record.name in _STORAGES or record.name in _BESIDE:
        raise ValueError(f"a {record.kind} stands alone")
    graph = _empty(record)
    if isinstance(graph, HeteroData):
        _store(record.attributes.get("_global_store"), graph._global_store, fill)
        for key, store in _stores(record, "_node_store_dict"):
            if not isinstance(key, str):
                raise ValueError("a kind of nodes has no name")
            _store(store, graph[key], fill)
        for key, store in _stores(record, "_edge_store_dict"):
            if not (isinstance(key, tuple) and len(key) == 3 and all(isinstance(part, str) for part in key)):
                raise ValueError("a kind of edges has no name")
            _store(store, graph[key], fill)
    else:
        _store(record.attributes.get("_store"), graph._store, fill)
    return graph


def _empty(record: Record) -> Any:
    if record.name != _BATCH:
        return _GRAPHS[record.name]()
    bases = [_GRAPHS.get(base.name) for base in record.arguments if isinstance(base, Named) and base.name != _BATCH]
    if len(bases) != 1 or bases[0] is None:
        raise ValueError("its graphs are of no class of PyG")
    return Batch(_base_cls=bases[0])


def _stores(record: Record, name: str) -> list[tuple[Any, Any]]:
    stores = record.attributes.get(name)
    if not isinstance(stores, dict):
        raise ValueError(f"it has no {name}")
    return list(stores.items())


def _store(record: Any, target: BaseStorage, fill: Fill) -> None:
    mapping = record.attributes.get("_mapping") if isinstance(record, Record) and record.name in _STORAGES else None
    if not isinstance(mapping, dict):
        raise ValueError("it has no store")
    for key, value in mapping.items():
        if not isinstance(key, str):
            raise ValueError("an attribute has no name")
        target[key] = fill(value)
    for name in ("_num_graphs", "_slice_dict", "_inc_dict"):  # With which a `Batch` gives its graphs back.
        if name in record.attributes:
            target.__dict__[name] = fill(record.attributes[name])
