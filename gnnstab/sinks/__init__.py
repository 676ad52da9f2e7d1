"""Sinks: a run's numbers, findings and report in the tools that people already use.

::

    gnnstab.Monitor(model, optimizer=optimizer, sinks=[TensorBoardSink("runs/7agents")])
    replay(Trace.open("run.gnnstab"), [MlflowSink(experiment="agents")])
"""

from typing import TYPE_CHECKING

from gnnstab.feed import Feed as Feed
from gnnstab.feed import Sink as Sink
from gnnstab.feed import step_values as step_values
from gnnstab.plugins import on_first_use
from gnnstab.sinks.recorded import replay as replay

if TYPE_CHECKING:
    from gnnstab.sinks.export import to_pandas as to_pandas
    from gnnstab.sinks.export import to_parquet as to_parquet
    from gnnstab.sinks.lightning import GnnstabCallback as GnnstabCallback
    from gnnstab.sinks.mlflow import MlflowSink as MlflowSink
    from gnnstab.sinks.tensorboard import TensorBoardSink as TensorBoardSink
    from gnnstab.sinks.wandb import WandbSink as WandbSink

# Each needs a package that need not be there.
__getattr__ = on_first_use(
    __name__,
    lightning="GnnstabCallback",
    mlflow="MlflowSink",
    tensorboard="TensorBoardSink",
    wandb="WandbSink",
    export="to_pandas to_parquet",
)
