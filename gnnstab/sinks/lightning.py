"""A Lightning callback: the monitor around ``trainer.fit``, its numbers in the Trainer's loggers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gnnstab.errors import MissingExtra, UsageError, warn
from gnnstab.feed import PREFIX
from gnnstab.monitor import Monitor
from gnnstab.records import Diagnosis, Finding
from gnnstab.rules.explanation import is_warning
from gnnstab.trace import rank_path

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise MissingExtra("lightning", "lightning") from error

ACTIONS = ("warn", "stop", "ignore")


class GnnstabCallback(Callback):  # type: ignore[misc]  # lightning's own types are not followed
    """Watches the module that a Trainer fits.

    ``on_finding``, of warnings and errors: ``"warn"``, ``"stop"`` (the Trainer stops after the batch, on all ranks) or ``"ignore"``.
    ``trace``: path of the trace; in a distributed run every rank writes its own, ``run.rank0.gnnstab``, ….
    ``options`` go to `Monitor` (``schedule``, ``budget``, ``sinks``). After fitting, ``diagnosis`` holds the diagnosis.

    Every ``trainer.log_every_n_steps`` steps ``gnnstab/…`` goes to all loggers of the Trainer, from rank 0.
    """

    def __init__(
        self, *, on_finding: str = "warn", trace: str | os.PathLike[str] | None = None, **options: Any
    ) -> None:
        if on_finding not in ACTIONS:
            raise UsageError(f"on_finding={on_finding!r}; choose from {', '.join(ACTIONS)}")
        self._on_finding = on_finding
        self._trace = trace
        self._sinks = tuple(options.pop("sinks", ()))
        self._options = options
        self._monitor: Monitor | None = None
        self._told = 0
        self.findings: list[Finding] = []
        """Findings raised while the run went on."""
        self.diagnosis: Diagnosis | None = None
        """The diagnosis of the whole run on this rank, after ``trainer.fit``."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the monitor: from here on the optimizers exist and the module sits on its device."""
        self.findings, self.diagnosis, self._told = [], None, 0
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        sinks = [*self._sinks, _TrainerLoggers(trainer)]
        options = {"optimizer": trainer.optimizers, "scaler": scaler, "sinks": sinks, **self._options}
        self._monitor = Monitor(pl_module, trace=self._path(trainer), on_finding=self.findings.append, **options)
        self._monitor.__enter__()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Hand the loss over, log, and act on what was found."""
        if self._monitor is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:
            self._monitor.loss(loss)
        self._act(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach and diagnose."""
        self._finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detach and diagnose what led to the exception."""
        self._finish()

    def _path(self, trainer: Trainer) -> Path | None:
        if self._trace is None:
            return None
        # Under torchrun, and of a process group, the monitor finds the rank itself; Lightning's own launcher sets other variables.
        known = os.environ.get("RANK", "").isdigit()
        known |= torch.distributed.is_available() and torch.distributed.is_initialized()
        return Path(self._trace) if trainer.world_size == 1 or known else rank_path(self._trace, trainer.global_rank)

    def _act(self, trainer: Trainer) -> None:
        fresh, self._told = self.findings[self._told :], len(self.findings)
        if self._on_finding == "warn":
            for finding in filter(is_warning, fresh):
                warn(f"{finding.code} {finding.name}: {finding.message}")
        if self._on_finding == "stop":
            # All ranks must agree, or those that go on wait for ever for the gradients of the one that stopped.
            wanted = trainer.strategy.reduce_boolean_decision(any(map(is_warning, self.findings)), all=False)
            trainer.should_stop = trainer.should_stop or wanted

    def _finish(self) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.__exit__(None, None, None)
            self.diagnosis = monitor.diagnose()


class _TrainerLoggers:
    """Hands the numbers of a step to the loggers of a Trainer, as often as the Trainer itself logs."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        if step % max(self._trainer.log_every_n_steps, 1) == 0:
            self._send(values, step)

    def on_finding(self, finding: Finding) -> None:
        self._send({f"finding/{finding.code}": finding.value}, self._trainer.global_step)

    def on_end(self, diagnosis: Diagnosis) -> None:
        """The loggers belong to the Trainer, which closes them."""

    def _send(self, values: Mapping[str, float], step: int) -> None:
        # Loggers of ranks other than 0 drop what they are given.
        for logger in self._trainer.loggers:
            logger.log_metrics({f"{PREFIX}/{name}": value for name, value in values.items()}, step=step)
