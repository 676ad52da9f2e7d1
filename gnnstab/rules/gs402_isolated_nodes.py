"""GS402 isolated-nodes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.vocabulary import DEGREE_ISOLATED_READ_SHARE, LOSS, OPTIMIZER_UNDONE, PLACE_CONSTANT_ROWS
from gnnstab.rules._silent_by_design import trains
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import largest, measured, names, need_measured, percent


@rule("GS402", "isolated-nodes", cause="isolated-nodes", severity="error", confidence="high")
class IsolatedNodes(Rule):
    """Nodes without incoming edges get no message.

    ## Why it matters
    Such a node's output is the linear skip alone (with the beta gate ×.51 of it). With `root_weight=False` the output
    is exactly 0 and carries no gradient, so everything behind it sees a constant, and a normalisation divides by almost
    nothing.

    ## What to do
    `root_weight=True` (the default), or self-loops: `torch_geometric.utils.add_self_loops`.

    ## How it is measured
    Errors: any node of in-degree 0 in a layer with `root_weight=False` around which no identity path leads, where a
    backward shows that the loss reads it; nodes that the loss reads and that get one and the same output whatever the
    batch holds, which a copy with other numbers shows; nodes of in-degree 0 in layers without self-loops or another
    term of the node itself, where all rows of the output are alike.

    Warnings: no attention layer is given an edge in any call; of the nodes that the loss reads none hears of another
    (their answers stay when all other numbers change), or three of four have no neighbour and the others one; all edges
    of a batch of several graphs lie within the rows of one, and repeat one another; no edge brings anything to 95 % of
    the nodes that the loss reads (75 % where a relation has an edge for less than one node in ten), and the loss falls
    by less than a factor e, in a run or in steps on a copy; no edge brings anything to more
    than half of the nodes that the loss reads, and late in a run its gradient is four times as large there as at the others.

    ## When it is silent
    Otherwise it is information: with a linear skip such nodes keep a path that trains (in the fault benchmark as well
    with 5 to 20 % of them as without), half of the nodes of a directed tree always are alone, and healthy real actors
    have 0.5 % and 0.7 %.

    ## Sources
    PyTorch Geometric, documentation of `TransformerConv`. Measured: empty edge lists and isolated nodes, beta on and
    off.
    """

    share: float = threshold(0.05, unit="share of nodes", source="heuristic: ten times the share in healthy real data")

    constant: float = threshold(
        0.15,
        unit="share of nodes",
        source="heuristic: a random graph of mean in-degree 2 leaves 14 % of its nodes alone",
    )

    alike: float = threshold(1e-3, unit="‖X − mean‖/‖X‖", source="as GS704")

    most: float = threshold(
        0.75,
        unit="share of the nodes that the loss reads",
        source="heuristic: half of the nodes of a directed tree are leaves, three of four where each node has four children",
    )

    nearly: float = threshold(
        0.95,
        unit="share of the nodes that the loss reads",
        source="measured: .98 where a join kept one edge; .93 in a healthy program whose edges lead one way, and whose loss falls",
    )

    half: float = threshold(
        0.5, unit="share of the nodes that the loss reads", source="derived: they are what the loss is about"
    )

    steeper: float = threshold(
        4.0,
        unit="× gradient",
        source="derived: a squared error 16 times as large; measured: 12 where a filter had taken the edges of 84 %",
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """Error where such nodes have nothing to answer with, information above ``share``."""
        worst = largest(need_measured(signals, "degree.isolated_share"))
        bare = [layer.name for layer in signals.attention_layers if layer.get("root_weight") is False]
        silent = [name for name in bare if self._silent(signals, name)]
        constant = measured(signals.find(PLACE_CONSTANT_ROWS))
        kinds = [str(kind) for signal in constant[:1] for kind in signal.detail.get("kinds", ())]
        whole = f" (every {names(kinds)})" if kinds else ""
        alone = f"{percent(worst.value)} of the nodes{whole} have no incoming edge"
        joined = constant[0].detail.get("unshifted") if constant else None
        if isinstance(joined, dict):
            yield self.finding(
                f"every edge lies within the first {joined.get('within')} rows, while the batch holds {joined.get('graphs')} graphs: {joined.get('bare')} of them have no edge, and "
                f"{percent(float(joined.get('repeated', 0.0)))} of the edges repeat another. The numbers of nodes were not shifted when the graphs were joined: add to each "
                "edge_index how many nodes stand before its graph, as Batch.from_data_list does.",
                severity="warning",
                limit=self.share,
                signal=constant[0],
            )
        elif worst.value > 0 and silent:
            yield self.finding(
                f"{alone} and {names(silent)} has root_weight=False: its output there is exactly 0 and carries no gradient. Set "
                "root_weight=True or add self-loops.",
                limit=0.0,
                signal=worst,
            )
        elif constant and self.constant < constant[0].value < 1 and self._read(signals, constant[0]):
            whose = f"{percent(constant[0].value)} of the nodes have no incoming edge and"
            if constant[0].detail.get("loops"):
                share = percent(constant[0].value)
                whose = f"{alone}: {share} of the rows of the output are about such nodes (a loop at each lets them move) and"
            yield self.finding(
                f"{whose} get one and the same output whatever the batch holds, "
                f"since {_no_term(self._without_self_term(signals))}. {_ADVICE}",
                limit=self.constant,
                signal=constant[0],
            )
        elif worst.value > self.share and self._all_alike(signals) and (layers := self._without_self_term(signals)):
            yield self.finding(
                f"{alone}, and {_no_term(layers)}: their output is the bias alone, and all rows of the model's output are alike. "
                f"{_ADVICE}",
                limit=self.share,
                signal=worst,
            )
        elif worst.value == 1 and self._no_edge(signals):
            yield self.finding(
                "no attention layer was given a single edge in any call that was seen: nothing attends to anything, and every answer depends on "
                "its own node alone. Look whether a split, a filter or a join has taken all edges away.",
                severity="warning",
                limit=self.most,
                signal=worst,
            )
        elif worst.value > 0 and (unheard := self._unheard(signals, constant)) > self.most:
            yield self.finding(
                f"{alone}, among them {percent(unheard)} of those that the loss reads: no edge brings them anything, and their answer depends on "
                f"their own features alone. {_ADVICE}",
                severity="warning",
                limit=self.most,
                signal=worst,
            )
        elif (
            worst.value > 0
            and (unheard := self._heard_by_few(signals, constant)) > (self.most if _sparse(constant) else self.nearly)
            and (fell := _hardly_falls(signals))
        ):
            few = f": {names(empty)}" if (empty := _sparse(constant)) else ""
            yield self.finding(
                f"{alone}, and {percent(unheard)} of those that the loss reads hear of nobody{few}; the loss hardly falls (from {fell[0]:.3g} to {fell[1]:.3g}). "
                f"{_FILTER}",
                severity="warning",
                limit=self.most if empty else self.nearly,
                signal=worst,
            )
        elif worst.value > 0 and (steeper := self._what_is_left(signals, constant)) > self.steeper:
            unheard = self._heard_by_few(signals, constant)
            yield self.finding(
                f"{alone}, and {percent(unheard)} of those that the loss reads hear of nobody. Late in the run the gradient that the loss gives is {steeper:.2g} times "
                f"as large at these as at the others: what is left of the loss is theirs. {_FILTER}",
                severity="warning",
                limit=self.steeper,
                signal=worst,
            )
        elif worst.value > 0 and bare:
            yield self.finding(
                f"{alone} and {names(bare)} has root_weight=False: its output there is exactly 0, which an identity path makes up for, or "
                "which the loss does not depend on.",
                severity="info",
                limit=0.0,
                signal=worst,
            )
        elif worst.value > self.share:
            yield self.finding(
                f"{alone} (limit {percent(self.share)}): attention never reaches them, their output is the linear skip alone. Add "
                "self-loops if that is not intended.",
                severity="info",
                limit=self.share,
                signal=worst,
            )

    def _unheard(self, signals: Signals, constant: Sequence[Signal]) -> float:
        """Share of what the loss reads that hears of nobody: of all of it as a copy shows, or at a last layer where no node has two neighbours."""
        if constant:
            return float(self._heard_by_few(signals, constant) == 1)
        read = {s.layer: s.value for s in measured(signals.find(DEGREE_ISOLATED_READ_SHARE))}
        degrees = measured(signals.find("degree.max"))
        if not degrees or largest(degrees).value > 1:
            return 0.0
        return [0.0, *(read[layer.name] for layer in signals.attention_layers if layer.name in read)][-1]

    def _what_is_left(self, signals: Signals, constant: Sequence[Signal]) -> float:
        """RMS of the loss's gradient at nodes that hear of nobody over that at the others, late in a run that reads more of them than of others; else 0."""
        half = self._heard_by_few(signals, constant) > self.half
        return float(constant[0].detail.get("steeper", 0.0)) if half and signals.kind == "trace" else 0.0

    @staticmethod
    def _heard_by_few(signals: Signals, constant: Sequence[Signal]) -> float:
        """Share of what the loss reads that other numbers of everything else do not move, as a copy shows; 0 where that is not known."""
        told = constant[0].detail if constant else {}
        return float(told.get("deaf", 0.0)) if told.get("by_loss") or signals.context.get("loss_given") else 0.0

    @staticmethod
    def _no_edge(signals: Signals) -> bool:
        """True where no call of any attention layer had an edge: no degree, and no score either of the steps between two full measurements."""
        degrees = measured(signals.find("degree.max"))
        told = {s.layer for s in degrees}
        return (
            bool(degrees)
            and largest(degrees).value == 0
            and all(layer.name in told for layer in signals.attention_layers)
            and not any(math.isfinite(s.value) for s in measured(signals.find("score.max_abs")))
        )

    def _all_alike(self, signals: Signals) -> bool:
        ends = [s for s in signals.find("place.node_difference") if s.layer == "output"]
        # Where biases are still 0, so is all that such layers give, and differences have nothing to be compared with.
        given = [
            s.value for layer in signals.attention_layers[-1:] for s in signals.find("output.rms", layer=layer.name)
        ]
        zero = 0 in given and any(s.value == 0 for s in measured(signals.find("place.output")))
        return zero or (bool(ends) and largest(ends).value < self.alike)

    def _without_self_term(self, signals: Signals) -> list[str]:
        """Layers in which a node without neighbours gets nothing of itself."""
        return [
            layer.name for layer in signals.attention_layers
            if ((layer.get("add_self_loops") is False and not layer.get("residual")) or layer.get("root_weight") is False)
            and not layer.identity_path
        ]  # fmt: skip

    def _read(self, signals: Signals, constant: Signal) -> bool:
        """True where the loss asks for such nodes: at the output, or in a run at the last layer whose backward was seen."""
        if constant.source == "batch" or constant.detail.get("by_loss"):
            return float(constant.detail.get("read", 0.0)) > self.share
        read = {s.layer: s.value for s in measured(signals.find(DEGREE_ISOLATED_READ_SHARE))}
        last = [read[layer.name] for layer in signals.attention_layers if layer.name in read]
        return bool(last) and last[-1] > self.share

    def _silent(self, signals: Signals, layer: str) -> bool:
        """True where the zeros of a layer are all that isolated nodes get of it, and the loss depends on them."""
        facts, read = signals.layer(layer), measured(signals.find(DEGREE_ISOLATED_READ_SHARE, layer=layer))
        around = facts is not None and facts.identity_path is True
        # Without a gradient of its own, while there are others, nothing is read of the layer at all.
        asked = largest(read).value > 0 if read else trains(signals, layer) or not signals.find("weight.grad_rms")
        return asked and not around


def _sparse(constant: Sequence[Signal]) -> list[str]:
    """Relations with an edge for less than one node in ten, in words."""
    return [str(relation) for signal in constant[:1] for relation in signal.detail.get("sparse", ())]


def _hardly_falls(signals: Signals) -> tuple[float, float] | None:
    """First and best loss of a run, or of steps on a copy, that falls by less than a factor e."""
    for name in (LOSS, OPTIMIZER_UNDONE):
        for told in (s.detail for s in signals.find(name) if "best" in s.detail):
            first, best = float(told.get("first", 0.0)), float(told["best"])
            return (first, best) if best * math.e > first > 0 and not told.get("learns") else None
    return None


_FILTER = "Look whether a filter has taken edges away, and whether the numbers by which they were joined are those of the nodes."
_ADVICE = "Look whether the edges point the right way, add the reverse ones, or self-loops."


def _no_term(layers: list[str]) -> str:
    which = f"{names(layers)} {'have' if len(layers) > 1 else 'has'}" if layers else "the model has"
    return f"{which} no term of the node itself (neither self-loops nor a skip)"
