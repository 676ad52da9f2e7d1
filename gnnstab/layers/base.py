"""What gnnstab knows of one kind of attention: the questions that every other room asks of an adapter."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError, GnnstabError
from gnnstab.layers._call import Call as Call
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import Tensor, nn

ROLES = ("score", "value", "edge", "skip", "gate", "share")
"""What the parts of a layer are for: what decides the scores, what is passed on, edge features, a node's own features,
the gate between the last two, and numbers whose sigmoid weighs what the layer computes against its input."""

UNSCALABLE = "no weights that scale its scores alone"


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """The tensors of one layer in a file."""

    kind: Layer
    """Whose signature they have."""

    name: str
    """Key prefix, without the last dot."""

    tensors: Mapping[str, Tensor]
    """Name within the layer, e.g. ``lin_key.weight``, → tensor."""

    beside: tuple[str, ...] = ()
    """Names of further tensors directly in the layer, which its kind does not have."""

    def parameters(self) -> dict[str, Tensor]:
        """Full parameter name → tensor."""
        dot = f"{self.name}." if self.name else ""
        return {dot + name: tensor for name, tensor in self.tensors.items()}


@dataclass(frozen=True, slots=True)
class Gain:
    """How the branches of a layer scale node states of RMS 1 with independent entries, by the weights alone."""

    value: float
    """Message of uniform attention at in-degree 1: ‖W_v‖_F/√D."""

    skip: float
    """The node's own branch: ‖W_s‖_F/√D; 0 without one."""

    gated: bool
    """True where a gate halves both at first."""


class Layer(ABC):
    """One kind of attention layer. Adapters hold no state; torch is imported inside the methods that need it."""

    kind: ClassVar[str]
    """Name of PyG's class."""

    module: ClassVar[str] = "torch_geometric.nn"
    """Where the class is imported from."""

    attributes: ClassVar[tuple[str, ...]] = ("heads", "out_channels", "message")
    """What a class of that name must have to be this kind: somebody else's class may bear the same name."""

    score_maps: ClassVar[int] = 2
    """Maps whose product the scores are: drawn with one gain, they spread by that power of it where a value has the gain itself."""

    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Role of `ROLES` → children or parameters of the layer that play it."""

    edges_in_messages: ClassVar[bool] = True
    """False where edge features make scores and nothing else."""

    vectors: ClassVar[tuple[str, ...]] = ()
    """Parts that are parameters of the layer itself and no modules."""

    stages: ClassVar[Mapping[str, str]] = {}
    """Child of the layer → stage (`gnnstab.records.STAGES`) that its output is."""

    softmax_in: ClassVar[tuple[str, ...]] = ("message",)
    """Methods in which softmax may be called, the first that does so is watched: of the layer itself, or of a helper as in
    ``aggr_module.forward``."""

    signature: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")
    """Matches the names of the layer's tensors in a state dict, ``layer`` its prefix and ``own`` the rest."""

    essential: ClassVar[frozenset[str]] = frozenset()
    """Names within the layer without which nobody takes its tensors for this kind; empty for one that no file is recovered to."""

    telling: ClassVar[frozenset[str]] = frozenset()
    """Those of them that layers of other kinds do not have, where one alone tells nothing."""

    absent: ClassVar[str] = ""
    """``no a, b and c side by side``: what a file without such a layer lacks."""

    width_names: ClassVar[tuple[str, str]] = ("", "")
    """The parts whose shapes show H·C and the width of the output."""

    defaults: ClassVar[Mapping[str, Any]] = {}
    """Arguments of the constructor beyond the widths, in the order in which they are printed, with their defaults."""

    static: ClassVar[str] = ""
    """What the weights alone tell of the size or the spread of the scores, or ``none`` with the reason."""

    hint: ClassVar[str] = ""
    """End of a key that gives a kind away which no file is recovered to; ``""`` for none."""

    probed: ClassVar[bool] = True
    """False for a kind that a file alone gives no synthetic graph for: how many nodes of which type is not in the file."""

    prints: ClassVar[bool] = True
    """False where the constructor takes modules of the user's own, so that a call cannot be written down."""

    stable: ClassVar[str] = ""
    """Class of `gnnstab.nn` that takes this one's place with scores bounded, normalised or in float32; ``""`` for none."""

    fused: ClassVar[bool] = False
    """True for a layer that makes no call of softmax to watch: its scores are computed once more from what it was given."""

    rowwise: ClassVar[bool] = True
    """True where forward takes the nodes as one tensor and returns one with a row for each target; False for dictionaries
    over node types, queries beside keys, and a row for each graph."""

    multiplies: ClassVar[bool] = False
    """True where a score is the product of a query and a key, and so grows with the square of the input."""

    weighs_scores: ClassVar[str] = ""
    """A learned factor on the scores, 1 when fresh: how well queries and keys agree does not tell then what training sharpened."""

    edits: ClassVar[frozenset[str]] = frozenset()
    """Methods of this class that edit a layer and apply to this kind: see `applies`."""

    # Which modules are of this kind

    def matches(self, module: nn.Module) -> bool:
        """True for a module of PyG's class, of a subclass, and of a copy of the class in somebody's own code.

        A copy that leaves a method to `MessagePassing`, whose stub does nothing, makes its scores elsewhere.
        """
        if not any(kind.__name__ == self.kind for kind in type(module).__mro__):
            return False
        from torch_geometric.nn import MessagePassing

        return all(
            hasattr(module, name) and getattr(type(module), name, module) is not getattr(MessagePassing, name, None)
            for name in self.attributes
        )

    def own_forward(self, module: nn.Module) -> bool:
        """True when forward is PyG's own, so that the children's outputs are the stages that `stages` says."""
        return False

    def own_code(self, module: nn.Module) -> bool:
        """True when all that makes the scores is PyG's own, so that `scores` gives what the layer computes."""
        return False

    def repeats(self, function: Any) -> bool:
        """True when this function, found where softmax is called, is PyG's own, so that `traced_scores` repeats it."""
        return False

    # A layer in memory

    @abstractmethod
    def facts(self, name: str, module: nn.Module, position: int) -> LayerFacts:
        """The configuration as the module's attributes show it."""

    def gate(self, module: nn.Module) -> nn.Module | None:
        """The child whose output is the gate before its sigmoid; None without one."""
        return None

    @abstractmethod
    def edges(
        self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], target: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Source (E,), target (E,) and features (E, D_e) of every edge that a call attended over.

        ``args`` and ``kwargs`` are the call's own, ``target`` what softmax received as its index, where it is known.
        """

    def joined(self, module: nn.Module, messages: Tensor, target: Tensor, nodes: int) -> Tensor | None:
        """(N_t, H·C) or (N_t, C): the messages of every edge, summed over each target as the layer does; None where it does not."""
        return None

    def nodes(self, inputs: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Features of source and target nodes among the tensors that the layer received first; zero columns where they
        have no common width."""
        return inputs[0], inputs[-1]

    def scores(self, module: nn.Module, call: Call, x_source: Tensor, x_target: Tensor) -> Tensor | None:
        """(E, H) scores that the weights give for other node features on the edges of a call, without calling a module.

        None where the weights alone cannot tell them. Holds whenever `own_code` does.
        """
        return None

    def traced_scores(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Scores (E, H) and attention (E, H) from what the watched method received and left behind, for compiled graphs."""
        # Asked only where `repeats` says yes: a kind that never does needs none, and one that does must have its own.
        raise NotImplementedError(f"{self.kind} shows nothing inside a compiled graph")

    def operands(self, module: nn.Module, given: Mapping[str, Any], made: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """What the scores of a call were computed from, on the edges, out of what the watched method was ``given`` and the
        stages ``made`` before; a query comes first where there is one, then what it is multiplied with the sum of."""
        return ()

    def skip(self, module: nn.Module, x_target: Tensor) -> Tensor | None:
        """The node's own branch (N_t, H·C or C) without calling a module; None where there is none or it cannot be told."""
        return None

    def message(self, module: nn.Module, call: Call, skip: Tensor | None) -> Tensor | None:
        """The aggregated message where it was not observed but follows from output and skip; None where it does not."""
        return None

    def product(self, module: nn.Module) -> float | None:
        """Largest intermediate of a score over the score itself: what overflows first in fp16; None where that is unknown."""
        return None

    # A layer in a file

    def complete(self, names: frozenset[str]) -> bool:
        """Whether a layer with tensors of these names may be of this kind."""
        return bool(self.essential) and self.essential <= names

    def lacks(self, names: frozenset[str]) -> str:
        """The one name that is not there of a layer that is otherwise of this kind; ``""`` for any other."""
        lost = self.essential - names
        return min(lost) if len(lost) == 1 and self.essential & names and self.telling <= names else ""

    def lookalike(self, stored: StoredLayer) -> str:
        """Why layers of another kind have such names, by the names alone; ``""`` when nothing speaks against this kind."""
        return f"the tensors of a {self.kind} do not tell it from other layers"

    def wrong_shape(self, stored: StoredLayer) -> str:
        """The first tensor whose shape cannot belong to this kind, with its shape; ``""`` when all can."""
        return self.lookalike(stored)

    def widths(self, stored: StoredLayer) -> tuple[int, int]:
        """(H·C, width of the output), as the shapes show them; `width_names` says where they were read."""
        raise self._not_stored()

    def shown_heads(self, stored: StoredLayer) -> int | None:
        """The number of heads where a tensor keeps them apart; None where only the widths tell."""
        return None

    def stored_facts(self, stored: StoredLayer, known: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of `LayerFacts` that the tensors, or ``known`` values of the module they came from, show."""
        raise self._not_stored()

    def drawn(self, stored: StoredLayer) -> list[Tensor]:
        """The matrices whose distribution tells how the layer was initialised."""
        raise self._not_stored()

    def logits(self, stored: StoredLayer, heads: int) -> dict[str, list[float]]:
        """Signal name → one value per head: what the weights alone say about the size of the scores."""
        raise self._not_stored()

    def gain(self, stored: StoredLayer, facts: LayerFacts) -> Gain:
        """How strongly the branches scale their input."""
        raise self._not_stored()

    def build(self, stored: StoredLayer, facts: LayerFacts) -> nn.Module:
        """PyG's layer with the tensors of the file, widened to float32; the global random state is left alone."""
        import torch

        with torch.device("meta"):  # Where nothing is drawn at random.
            layer = self.empty(stored, facts)
        state = {name: tensor.detach().float() for name, tensor in stored.tensors.items()}
        layer.load_state_dict(state, strict=True, assign=True)
        return layer.requires_grad_(False)

    def empty(self, stored: StoredLayer, facts: LayerFacts) -> nn.Module:
        """A new layer of this configuration."""
        raise self._not_stored()

    def _not_stored(self) -> GnnstabError:
        return GnnstabError(f"a {self.kind} is not recovered from a file; pass the model")

    def idle(self, facts: LayerFacts) -> tuple[str, ...]:
        """Parts that a layer of this configuration holds and does not use."""
        return self.roles.get("skip", ()) if facts.get("root_weight") is False else ()

    # A layer in print

    def positional(self, facts: LayerFacts) -> list[str]:
        """The arguments of the constructor before those of `defaults`, ``...`` for what is not known."""
        widths = facts.in_channels
        shown = "..." if widths is None else str(widths[0] if widths[0] == widths[1] else widths)
        return [shown, "..." if facts.out_channels is None else str(facts.out_channels)]

    def arguments(self, facts: LayerFacts) -> Mapping[str, Any]:
        """The arguments of the constructor beyond the widths, as far as they are known."""
        return {name: facts.get(name) for name in self.defaults}

    # What can be changed about a layer, in place, on a copy that the caller made

    def present(self, parameter: str, facts: LayerFacts) -> bool:
        """Whether a layer of this configuration has this parameter."""
        return True

    def applies(self, edit: str) -> bool:
        """Whether layers of this kind can be edited so."""
        able = {"stable": bool(self.stable), "dropout": "dropout" in self.defaults, "rowwise": self.rowwise}
        return edit in self.edits or able.get(edit, False)

    def redraw(self, module: Any) -> None:
        """Initialise the whole layer anew as its class does it."""
        module.reset_parameters()

    def scale_scores(self, module: Any, factors: Sequence[float]) -> None:
        """Multiply the scores of every head by its factor, by an edit of the weights; no factors ask whether that can be done."""
        state = module.state_dict()
        changed = self.scaled(state, factors if len(factors) else [1.0])
        if not changed:
            raise self._inapplicable(UNSCALABLE)
        for name, tensor in changed.items():
            state[name].copy_(tensor)

    def scaled(self, tensors: Mapping[str, Tensor], factors: Sequence[float]) -> dict[str, Tensor]:
        """The changed tensors of a state dict (names within the layer) after the same edit."""
        raise self._inapplicable(UNSCALABLE)

    def scale_lines(self, owner: str, facts: LayerFacts | None, factors: Sequence[float] | None) -> list[str]:
        """The same edit as lines of code; ``factors`` None for a loop over heads with a list ``gamma``, empty where there is none."""
        raise self._inapplicable(UNSCALABLE)

    def add_gate(self, module: Any) -> nn.Module:
        """A new gate between skip and message, to be registered by the caller under the name that `roles` gives."""
        raise self._inapplicable("no gate")

    def has_skip(self, module: nn.Module) -> bool | None:
        """Whether the node's own branch is on; None for a kind that has none."""
        return None

    def switch_skip_on(self, module: Any) -> None:
        """Turn the node's own branch on."""
        raise self._inapplicable("no branch of the node's own features")

    def reinitialise(self, module: nn.Module, parts: Sequence[str]) -> int:
        """Initialise the parts of these names anew, vectors by glorot, modules as they do it themselves; how many there were."""
        from torch_geometric.nn.inits import glorot, ones, reset

        self._able("reinitialise", "no part that can be initialised anew alone")
        found = {name: part for name in parts if (part := getattr(module, name, None)) is not None}
        for name, part in found.items():
            draw = glorot if name in self.vectors else ones if name == self.weighs_scores else reset
            draw(part)
        return len(found)

    def reinit_line(self, owner: str, part: str) -> str:
        """The same for one part, to print."""
        if part in self.vectors or part == self.weighs_scores:
            return f"torch_geometric.nn.inits.{'glorot' if part in self.vectors else 'ones'}({owner}.{part})"
        # A network of the user's own may have no method of that name.
        return (
            f"{owner}.{part}.reset_parameters()" if self.prints else f"torch_geometric.nn.inits.reset({owner}.{part})"
        )

    def _able(self, edit: str, why: str) -> None:
        if not self.applies(edit):
            raise self._inapplicable(why)

    def _inapplicable(self, why: str) -> FixError:
        return FixError(f"{self.kind} has {why}")
