"""What is common to the layers of all layers: counting calls, finding slots, hooking gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.probe.attaching.activation_gradients import GradientHook
from gnnstab.probe.attaching.hooks import Hook, Placed, ignore
from gnnstab.probe.attaching.identity_path import Mark, node_of
from gnnstab.probe.attaching.stand_in import StandIn
from gnnstab.probe.buffering.series_ids import CALLS, MODES
from gnnstab.probe.layers._dense_softmax import Attending
from gnnstab.probe.replaying.replica import tensors_in
from gnnstab.probe.state import State
from gnnstab.probe.statistics.dense import Rows
from gnnstab.records import Blind, LayerFacts
from gnnstab.torch_private import graph_task, transforms, without_torch_function

IN_GRAPH = "not seen inside a compiled graph; run the layer without torch.compile to see it"

_CAPTURED = (
    "called while a CUDA graph was captured, whose replays run no hooks; record a run without the graph to see it"
)


class Plan:
    """The slots of one call of one layer in one mode, found once and used at every step."""

    __slots__ = (
        "_known",
        "_state",
        "call",
        "dtype",
        "edges",
        "full_step",
        "grad_input",
        "grad_output",
        "layer",
        "mode",
    )

    def __init__(self, state: State, layer: str, mode: str, call: int) -> None:
        self._state = state
        self._known: dict[tuple[str, ...], tuple[int, ...]] = {}
        self.layer = layer
        self.mode = mode
        self.call = call
        self.dtype: torch.dtype | None = None
        """Number format of the scores, as softmax received them."""

        self.edges = True
        """False where a call had no edge, and so no score."""

        self.full_step = -1
        """The step in which this call was last measured in full: once per step is enough."""

        self.grad_output = GradientHook(state, self._slot("grad_output"), f"the output gradient of {layer}")
        self.grad_input = GradientHook(state, self._slot("grad_input"), f"the input gradient of {layer}")

    def slots(self, sites: tuple[str, ...]) -> tuple[int, ...]:
        """Slots of these sites; the same tuple object whenever the same sites are asked for."""
        known = self._known.get(sites)
        if known is None:
            known = self._known[sites] = tuple(self._slot(site) for site in sites)
        return known

    @property
    def seen_sites(self) -> set[str]:
        """Sites that have arrived at least once."""
        return {site for sites in self._known for site in sites}

    def _slot(self, site: str) -> int:
        return self._state.keys.slot(self.layer, self.mode, self.call, site)


class LayerRecorder(ABC):
    """Records one layer. Subclasses say in `record` what a call of their layer consists of."""

    attention = False
    counts = True
    """False as long as it is not known that the module is a layer of interest at all."""

    sites: tuple[str, ...] = ("input", "output")
    """Sites that must have been seen after a call, or be named as blind."""

    full_sites: tuple[str, ...] = ()
    """Further sites, which not every call shows."""

    compiled_sites: tuple[str, ...] = ("output", "input")
    """Sites that are seen inside a compiled graph."""

    given: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    """Arguments of the call that is being recorded, where `record` is told less."""

    def __init__(self, state: State, name: str, module: nn.Module) -> None:
        self.state = state
        self.name = name
        self.module = module
        self._cells = state.compiled.reserve(name, self.compiled_sites)
        self._plans: dict[tuple[str, int], Plan] = {}
        self._epoch = -1
        self._counts: dict[str, int] = {}
        self._placed: list[Placed | StandIn] = []
        self._hooks: list[Hook] = []

    def attach(self) -> None:
        """Begin to record."""
        hook = self.hook("the forward hook", self._after, self._compiled_after)
        self._placed.append(Placed(self.module, hook, with_kwargs=True))

    def pause(self) -> None:
        """Take the hooks off until `resume`, so that the layer runs as if nobody looked."""
        for placed in self._placed:
            placed.pause()

    def resume(self) -> None:
        """Put back what `pause` took off."""
        self._placed = [placed.resume() for placed in self._placed]

    def detach(self) -> None:
        """Leave the layer as it was found."""
        for placed in self._placed:
            placed.remove()
        for hook in self._hooks:
            hook.close()
        for plan in self._plans.values():
            plan.grad_output.close()
            plan.grad_input.close()
        self._placed.clear()
        self._hooks.clear()
        self.forget()

    @abstractmethod
    def facts(self, position: int) -> LayerFacts:
        """What is known of the layer's configuration."""

    @abstractmethod
    def record(self, grad: bool, plan: Plan, inputs: Sequence[Any], args: Any, kwargs: Any, output: Tensor) -> None:
        """Put the call's tensors into the buffer."""

    def shown(self, inputs: Sequence[Any], args: Any, kwargs: Any, output: Tensor) -> Iterator[Rows]:
        """Scores and attention of the call that has just returned, all of them."""
        return iter(())

    def note_unseen(self) -> None:
        """Name the sites that a called layer should have shown and did not."""
        for plan in self._plans.values():
            for site in self.sites:
                if site not in plan.seen_sites:
                    note = Blind(self.name, site, f"nothing arrived in mode {plan.mode}")
                    note = note if plan.edges else Blind.without_edge(self.name, site)
                    self.state.unseen(self.name, site, note.reason)
        if not self._plans:
            for site in ("grad_output", "grad_input", *self.sites, *self.full_sites):
                if (self.name, site) not in self.state.compiled.seen:
                    self.state.unseen(self.name, site, IN_GRAPH)

    def note_unrecognised(self) -> None:  # noqa: B027  # most layers are known for what they are
        """Say why it is not known whether the module is a layer of interest, where that is so."""

    def forget(self) -> None:  # noqa: B027  # most watches keep nothing between calls
        """Drop what an interrupted or unrecorded call left behind."""

    def score_dtypes(self) -> set[torch.dtype]:
        """Number formats that the scores of this layer were seen in."""
        return {plan.dtype for plan in self._plans.values() if plan.dtype is not None}

    def hook(self, what: str, body: Any, compiled: Any = ignore) -> Hook:
        """A guarded hook of this layer that ends with `detach`."""
        hook = Hook(
            f"{what} of {self.name}", body, self.state.error_guard, compiled, self.state.clock, self.state.foreign
        )
        self._hooks.append(hook)
        return hook

    def _after(self, grad: bool, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        state = self.state
        if transforms():
            self.forget()
            state.unseen(self.name, "output", "called inside a torch.func transform, whose tensors have no values yet")
            return
        if not state.light:
            self.forget()
            state.recorded = True
            return
        mode = MODES[module.training][grad]
        if graph_task() != -1 and (mode != "train" or self.repeats()):
            self.forget()
            return
        plan = self._plan(mode)
        x = args[0] if args else kwargs.get("x", next(iter(kwargs.values()), None))
        inputs = parts(x)
        out = output[0] if type(output) is tuple else output
        outs = [one for one in out.values() if isinstance(one, Tensor)] if isinstance(out, dict) else [out]
        if not outs or not isinstance(outs[0], Tensor):
            state.unseen(self.name, "output", f"returned a {type(out).__name__}, not a tensor")
            self.forget()
            return
        out = outs[0]
        if out.is_cuda and torch.cuda.is_current_stream_capturing():
            state.unseen(self.name, "output", _CAPTURED)
            self.forget()
            return
        out_of_all = out if len(outs) == 1 else joined(outs)
        if Attending.current:  # The module around this one is looked at, and is not to be taken for what happens here.
            with without_torch_function():
                self.record(grad, plan, inputs, args, kwargs, out_of_all)
        else:
            self.record(grad, plan, inputs, args, kwargs, out_of_all)
        if state.layer_trace is not None and inputs:
            self._tell(inputs, out, self.given or (args, kwargs))
        reached = [one for one in outs if one.requires_grad] if grad else []
        for one in reached:
            plan.grad_output.watch(one)
        for one in inputs if reached else ():
            if isinstance(one, Tensor) and one.requires_grad:
                plan.grad_input.watch(one)

    def _tell(self, inputs: Sequence[Any], output: Tensor, given: Sequence[Any]) -> None:
        """Leave a mark for those who want to know what stands around the layer."""
        state = self.state
        if state.layer_trace is not None and isinstance(inputs[-1], Tensor):
            more = tuple(tensor for _, tensor in tensors_in(given) if tensor.requires_grad)
            state.layer_trace.append(Mark(self.name, inputs[-1], node_of(output), more))
        if state.norms is not None and self.attention:
            state.norms.layer_called(self.name, inputs[0], output)

    def _compiled_after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.note("output", output[0] if isinstance(output, tuple) else output)
        for one in parts(args[0] if len(args) > 0 else kwargs.get("x")):
            self.note("input", one)

    def note(self, site: str, tensor: Any) -> None:
        """Record a tensor inside a compiled graph, under one of `compiled_sites`."""
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            self.state.compiled.add(self._cells[site], tensor, self.module.training)

    def _plan(self, mode: str) -> Plan:
        state = self.state
        if not state.inside:
            state.epoch += 1
        if self._epoch != state.epoch:
            self._epoch = state.epoch
            self._counts = {}
        calls = self._counts.get(mode, 0)
        self._counts[mode] = calls + 1
        call = min(calls, CALLS - 1)
        plan = self._plans.get((mode, call))
        if plan is None:
            plan = self._plans[mode, call] = Plan(state, self.name, mode, call)
            state.fired.setdefault(self.name, len(state.fired))
        state.recorded = True
        return plan

    def repeats(self) -> bool:
        """True while a checkpointed segment that was recorded runs again, for the gradients of a backward.

        Its first run was not recorded where that was without gradients (the reentrant form): then this is the run that the
        gradients belong to.
        """
        return graph_task() != -1 and bool(self._counts.get("train"))


def parts(x: Any) -> Sequence[Any]:
    """The tensors of a first argument: one, the two sides of a bipartite graph, or one per node type."""
    if isinstance(x, dict):
        return [one for one in x.values() if isinstance(one, Tensor)]
    return x if type(x) is tuple or type(x) is list else (x,)


def joined(outs: Sequence[Tensor]) -> Tensor:
    """The outputs of all node types, one after the other; the first where they have no common width."""
    same = len({(one.shape[1:], one.dtype, one.device) for one in outs}) == 1
    return torch.cat([one.detach() for one in outs]) if same and outs[0].dim() else outs[0]
