"""Sinks: a run's numbers, findings and report in the tools that people already use.

::

    gnnstab.Monitor(model, optimizer=optimizer, sinks=[TensorBoardSink("runs/7agents")])
    replay(Trace.open("run.gnnstab"), [MlflowSink(experiment="agents")])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gnnstab.feed import Feed as Feed
from gnnstab.feed import Sink as Sink
from gnnstab.feed import step_values as step_values
from gnnstab.sinks.recorded import replay as replay

if TYPE_CHECKING:
    from gnnstab.sinks.export import to_pandas as to_pandas
    from gnnstab.sinks.export import to_parquet as to_parquet
    from gnnstab.sinks.lightning import GnnstabCallback as GnnstabCallback
    from gnnstab.sinks.mlflow import MlflowSink as MlflowSink
    from gnnstab.sinks.tensorboard import TensorBoardSink as TensorBoardSink
    from gnnstab.sinks.wandb import WandbSink as WandbSink

# Loaded on first use: each needs a package that need not be there.
_HOMES = {
    "GnnstabCallback": "gnnstab.sinks.lightning",
    "MlflowSink": "gnnstab.sinks.mlflow",
    "TensorBoardSink": "gnnstab.sinks.tensorboard",
    "WandbSink": "gnnstab.sinks.wandb",
    "to_pandas": "gnnstab.sinks.export",
    "to_parquet": "gnnstab.sinks.export",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gnnstab.sinks' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
