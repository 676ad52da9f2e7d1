"""The names of torch and PyG that no release promises to keep: functions bound once, attributes listed with their owner.

A release that drops one fails here at import, or in the test of this module, and not in the middle of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import torch
from torch._library import custom_ops as _custom_ops
from torch.nn.modules import module as _modules
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # The base of all kinds; the public ones are one each.
from torch.optim import optimizer as _optimizers
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext as DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._python_dispatch import _pop_mode as _pop_dispatch_mode
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as tree_map

__all__ = ["BatchNorm", "DeviceContext", "tree_leaves", "tree_map"]

Function = TypeVar("Function", bound=Callable[..., Any])


def not_compiled(function: Function) -> Function:
    """Have `torch.compile` run a function, and all that it calls, as they are, without importing the compiler."""
    vars(function)["_torchdynamo_disable"] = True  # It is not traced as a part of who calls it,
    return not_compiled_alone(function)  # nor compiled by itself.


def not_compiled_alone(function: Function) -> Function:
    """Have `torch.compile` not compile a function by itself, since torch 2.7; as a part of who calls it, it is traced."""
    frames = torch._C._dynamo.eval_frame
    if hasattr(frames, "set_code_exec_strategy"):
        skip = frames._FrameAction.SKIP
        frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))
    return function


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode whose ``__torch_dispatch__`` is `not_compiled`, for which torch need not put two functions around it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def print_options() -> dict[str, Any]:
    """How tensors are printed, as `torch.set_printoptions` takes it."""
    return dict(vars(torch._tensor_str.PRINT_OPTS))


def functions_of_operator(operator: object) -> dict[str, Any]:
    """Name → functions of the user's that an operator made by `torch.library.custom_op` calls; empty for anything else."""
    if not isinstance(operator, _custom_ops.CustomOpDef):
        return {}
    named = {name: vars(operator).get(name) for name in ("_init_fn", "_setup_context_fn", "_backward_fn")}
    return {**named, "_backend_fns": vars(operator).get("_backend_fns")}


def operators_named(names: frozenset[str]) -> list[object]:
    """The operators made by `torch.library.custom_op` that ``torch.ops.library.name`` means, of which code mentions ``names``."""
    if "ops" not in names:
        return []
    return [operator for name, operator in _custom_ops.OPDEFS.items() if names.issuperset(name.split("::"))]


graph_task = torch._C._current_graph_task_id
"""Number of the backward that runs in this thread, -1 outside of one."""

queue_callback: Callable[[Callable[[], None]], None] = torch.autograd.Variable._execution_engine.queue_callback
"""Has something called at the end of the backward that runs in this thread."""

autograd_node = torch._C._current_autograd_node
"""The node whose backward runs in this thread; None outside of one."""


is_jit_tracing = torch._C._is_tracing
"""Whether `torch.jit.trace` writes down what is computed."""


def is_tracing() -> bool:
    """Whether `torch.jit.trace` or `make_fx` writes down what is computed, or nothing is computed, on fake tensors."""
    return is_jit_tracing() or (
        dispatch_modes() > 0 and any(getattr(mode, "_mode_key", None) is not None for mode in dispatch_stack())
    )


is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)
"""Whether `torch.export` writes down what is computed; before torch 2.7 nothing says it."""

next_sequence_number = torch._C._autograd._get_sequence_nr
"""The number that the next node of the autograd graph gets; a node keeps its own as ``_sequence_nr``."""

transforms = torch._C._are_functorch_transforms_active
"""Whether a function transform (``vmap``, ``grad``, …) runs.

To ask for the stack of transforms instead makes one in this thread, which every node of every backward then copies.
"""

preserved_version = torch.autograd.grad_mode._unsafe_preserve_version_counter
"""A context after which a tensor has the version that it had when the context was made, as if nobody had written into it."""

set_grad_enabled = torch._C._set_grad_enabled
"""What `torch.set_grad_enabled` calls, without the object around it."""

without_torch_function = torch._C.DisableTorchFunction
"""A context in which tensor subclasses and function modes are not asked."""

without_torch_dispatch = torch._C._DisableTorchDispatch
"""A context in which dispatch modes are not asked, which take a number for no tensor."""

dispatch_modes = torch._C._len_torch_dispatch_stack
"""How many dispatch modes are active."""

function_modes = torch._C._len_torch_function_stack
"""How many function modes are active."""

dispatch_stack = _get_current_dispatch_mode_stack
"""The active dispatch modes, the outermost first."""


@contextmanager
def without_saved_tensors_hooks() -> Iterator[None]:
    """Tensors that a backward needs are kept as they are, whatever `torch.autograd.graph.saved_tensors_hooks` is active."""
    hooks: Any = torch._C._autograd
    aside = []
    while pair := hooks._top_saved_tensors_default_hooks(True):
        aside.append(pair)
        hooks._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(aside):
            hooks._push_saved_tensors_default_hooks(pack, unpack)


class ModeStack(NamedTuple):
    """The active modes of one kind, the outermost first."""

    depth: Callable[[], int]
    stack: Callable[[], list[Any]]
    push: Callable[[Any], None]
    pop: Callable[[], Any]

    def replace(self, modes: list[Any]) -> None:
        """Have these modes active, and no others."""
        for _ in range(self.depth()):
            self.pop()
        for mode in modes:
            self.push(mode)


DISPATCH = ModeStack(dispatch_modes, dispatch_stack, torch._C._push_on_torch_dispatch_stack, _pop_dispatch_mode)
FUNCTION = ModeStack(
    function_modes,
    _get_current_function_mode_stack,
    torch._C._push_on_torch_function_stack,
    torch._C._pop_torch_function_stack,
)


def global_hooks() -> list[tuple[str, dict[Any, Any]]]:
    """(name, table) of the hooks of all modules and of all optimizers; the flags beside them know their keys."""
    spaces = (vars(_modules), vars(_optimizers))
    return [(n, t) for v in spaces for n, t in v.items() if n.startswith("_global_") and n.endswith("_hooks")]


generator_number: Callable[[torch.Generator], int] = attrgetter("_cdata")
"""Tells generators apart: for that of the process torch makes a new object each time."""

autocasts = torch._C._is_any_autocast_enabled
"""Whether autocast is on for any kind of device."""

flattened: Callable[[list[torch.Tensor]], torch.Tensor] = torch._utils._flatten_dense_tensors
"""The entries of all tensors, one after the other, by one call."""

foreach_copy = torch._foreach_copy_
foreach_norm = torch._foreach_norm
foreach_subtract = torch._foreach_sub
"""One kernel for many tensors."""

storage_address: Callable[[torch.Tensor], int] = getattr(
    torch._C, "_storage_address", lambda tensor: int(tensor.untyped_storage()._cdata)
)
"""Where the storage of a tensor is, without the Python object around it where torch can tell so."""

negative_view = torch._neg_view
"""A tensor with its negative bit set, as files hold it."""

rebuild_quantized: Callable[..., torch.Tensor] = torch._utils._rebuild_qtensor
"""What pickled quantized tensors name; torch has no public function that takes the storage."""

ATTRIBUTES: Mapping[str, str] = MappingProxyType(
    {
        "_compiled_call_impl": "torch.nn.Module",
        "_forward_hooks": "torch.nn.Module",
        "_forward_pre_hooks": "torch.nn.Module",
        "_load_from_state_dict": "torch.nn.Module",
        "_modules": "torch.nn.Module",
        "_parameters": "torch.nn.Module",
        "_buffers": "torch.nn.Module",
        "_non_persistent_buffers_set": "torch.nn.Module",
        "_version": "a torch.Tensor",
        "_indices": "a sparse torch.Tensor",
        "_values": "a sparse torch.Tensor",
        "_schema": "torch._ops.OpOverload",
        "_qualified_op_name": "torch._ops.OpOverloadPacket",
        "_sequence_nr": "a node of the autograd graph",
        "_input_metadata": "a node of the autograd graph",
        "_raw_saved_other": "a node of the autograd graph",
        "_saved_keepdim": "a node of the autograd graph",
        "_raw_saved_self": "a node of the autograd graph",
        "_saved_indices": "a node of the autograd graph",
        "_saved_max": "a node of the autograd graph",
        "_saved_max_val": "a node of the autograd graph",
        "_saved_mat2": "a node of the autograd graph",
        "_saved_correction": "a node of the autograd graph",
        "_saved_dim": "a node of the autograd graph",
        "_saved_normalized_shape": "a node of the autograd graph",
        "_saved_min": "a node of the autograd graph",
        "_saved_min_val": "a node of the autograd graph",
        "_saved_other": "a node of the autograd graph",
        "_saved_reduction": "a node of the autograd graph",
        "_saved_result": "a node of the autograd graph",
        "_saved_self": "a node of the autograd graph",
        "_saved_self_sym_sizes": "a node of the autograd graph",
        "_scale": "torch.amp.GradScaler",
        "_per_optimizer_states": "torch.amp.GradScaler",
        "_current_level": "torch.autograd.forward_ad",
        "_qkv_same_embed_dim": "an attention layer of torch.nn",
        "_reset_parameters": "an attention layer of torch.nn",
        "_alpha": "an attention layer of torch_geometric.nn",
        "_global_store": "torch_geometric.data.HeteroData",
        "_store": "torch_geometric.data.Data",
        "_slice_dict": "torch_geometric.data.Batch",
    }
)
"""Private attribute → whose it is. They are read in place: a function around each would cost a call per use."""


def keeps_saved_tensors() -> bool:
    """True where autograd keeps what a backward needs as it is: no hook packs it, as a checkpoint or an offload does."""
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return hooks is not None and hooks(False) is None
