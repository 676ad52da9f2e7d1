"""A live model seen as a checkpoint: the same facts, without a file."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gnnstab.checkpoint.facts import CheckpointFacts
from gnnstab.checkpoint.loading import Checkpoint
from gnnstab.checkpoint.modules import known_facts
from gnnstab.checkpoint.optimizer import OptimizerState, read_optimizer
from gnnstab.checkpoint.recovery import recover


def recover_model(model: nn.Module, *, optimizer: Any = None, activation: str | None = None) -> CheckpointFacts:
    """Facts of a model in memory, with what its layers say about themselves, and of its optimizer."""
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    checkpoint = Checkpoint(
        path=type(model).__name__,
        format="model",
        size=0,
        tensors=tensors,
        networks={"": tuple(tensors)},
        optimizers=(_named_state(model, optimizer),) if optimizer is not None else (),
        known=known_facts(model),
    )
    return recover(checkpoint, activation=activation)


def _named_state(model: nn.Module, optimizer: Any) -> OptimizerState:
    """The optimizer's state with the model's own names: in memory nothing has to be guessed from order and shape."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = optimizer.state_dict()
    for stored, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        stored["param_names"] = [names.get(id(parameter)) for parameter in group["params"]]
    return read_optimizer("optimizer", state)
