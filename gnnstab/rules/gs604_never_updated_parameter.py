"""GS604 never-updated-parameter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from gnnstab.characters import counted
from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.vocabulary import OPTIMIZER_UNDONE, PLACE_PLAIN_SCORES
from gnnstab.rules._silent_by_design import NO_WAY, cancelled, given_zeros, idle, unread_relation, without_part
from gnnstab.rules._standing import ended_flat, gradient_since, never_stepped, standing_still, strange_tensors
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import fresh, largest, left_out, names, never_finite, stops


@rule("GS604", "never-updated-parameter", cause="never-updated-parameter", severity="error", confidence="high")
class NeverUpdatedParameter(Rule):
    """A trainable parameter never received a gradient.

    ## Why it matters
    It keeps its initial value while everything around it moves. That is a wiring mistake far more often than an
    intention: a module that the forward skips, a `detach()`, a parameter created after the optimizer.

    ## What to do
    Wire it into the forward pass, pass it to the optimizer, or freeze it on purpose with `requires_grad_(False)` and
    leave it out of the optimizer.

    ## How it is measured
    - Checkpoint with optimizer state: parameters without state, or whose second moment is exactly 0.
    - Run: trainable parameters whose gradient was None or exactly 0 in every step that was measured parameter by
      parameter, and at the run's end (their own, or what the optimizer keeps of it).
      Or no weight has moved from some step to the end, and none has a gradient when the optimizer steps; or no optimizer
      has ever stepped, and all weights are as they were. Or gradients came, and all are exactly 0 from some step to the
      end, while the loss has been lower than it is there.
    - Model and batch: a loss that depends on no parameter; parameters without a gradient after a backward, and why (the
      module was not called, no path leads to it, or it stands in a reentrant checkpoint none of whose inputs has a
      gradient); weights that the loss depends on and `model.parameters()` does not hold, as of layers in a plain list;
      a softmax or sigmoid of a plain tensor of a module.
    - The optimizer: parameters that it does not hold, as those that the forward makes when it first runs.
    - Gradients that are 0 for every parameter (`round`, `argmax`), or for those in front of an operation that hands
      none on: a clamp that cuts every entry, a step function, a draw (`torch.normal`), a softmax over one entry.

    An error needs an output that depends on the parameters. What no loss can reach (a head that this forward does not
    call, an update of edges behind the last layer) is information, unless no attention layer at all is called; a part
    of every layer, or a layer in front of one like it, is called and its result thrown away; every layer holds a map
    for features of the edges that the batch holds and no output depends on; or layers stand under a key that names no
    relation of the batch, beside one that no key names and nothing reads.

    ## When it is silent
    For biases that drop out of a difference of outputs, weights of a layer whose bias trains while what they multiply
    is 0 in every row that the loss reads (masked nodes), the skip of a layer with `root_weight=False`, queries and keys
    where no target has two neighbours (GS405), a body that was trained before and that the optimizer does not hold, and
    operations of the evaluation mode alone.

    Information: a relation or kind of nodes that nothing reads, beside others that train; an optimizer that has not
    moved anything yet; everything that a bare file shows (of ten broken programs whose files held such parameters one
    had lost them in its wiring). Embeddings of rare ids, and heads of a later phase, look the same.

    ## Sources
    Kingma and Ba 2015, *Adam*, arXiv 1412.6980, for the second moment; PyTorch documentation of `torch.optim.Adam`.
    """

    parameters: float = threshold(0, unit="parameters", source="any is one too many")

    updates: float = threshold(8, unit="updates", source="heuristic: a warm-up may begin with a few at a rate of 0")

    minority: float = threshold(
        0.5,
        unit="share of trainable entries",
        source="heuristic: who trains a head alone leaves most of the model out on purpose",
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for each way in which a parameter can be left behind."""
        found = [*self._not_owned(signals), *self._not_held(signals), *self._plain(signals)]
        found += self._without_gradient(signals)
        found += self._all_zero(signals)
        found += self._stopped(signals)
        yield from found
        if said := never_stepped(signals, self.updates):
            told = signals.context["untold"]
            severity = "error" if told.get("optimizer") else "warning"
            value = float(told["passes"])
            yield self.finding(said, severity=severity, limit=self.updates, name="", value=value, unit="passes")
            return
        if standing := [s for s in standing_still(signals, self.updates) if s.detail.get("given") is None]:
            yield from map(partial(self._standing, signals), standing)
            return
        if flat := ended_flat(signals, self.updates):
            yield self.finding(flat.words, limit=self.updates, signal=flat.signal, severity="warning", cause="")
        if not signals.find("optimizer.never_updated") and (found or signals.find("place.rms", source="batch")):
            return
        yield from self._over_a_run(signals)

    def _plain(self, signals: Signals) -> Iterator[Finding]:
        """Scores that nothing can train, since they are a tensor and no parameter."""
        for signal in signals.find(PLACE_PLAIN_SCORES):
            key = signal.detail.get("attribute")
            yield self.finding(
                f"{signal.layer}: its weights are a softmax or sigmoid of self.{key}, a plain tensor of {signal.value:.0f} entries that differ: it is no "
                f"parameter, so that no optimizer moves it. Write self.{key} = nn.Parameter({key}); register_buffer where it is meant to stay.",
                severity="warning",
                limit=self.parameters,
                signal=signal,
            )

    def _over_a_run(self, signals: Signals) -> Iterator[Finding]:
        worst = largest(signals.need("optimizer.never_updated"))
        silent = {str(name) for name in worst.detail.get("parameters", ())}
        idle = (silent - _with_part(signals, silent)) | cancelled(signals, worst) | given_zeros(signals, worst)
        told = {str(name) for s in _stops(signals) for name in s.detail.get("parameters", ())}
        if told.issuperset(silent - idle):
            return
        unread = {name for name in silent - idle if unread_relation(signals, name, silent)}
        count = worst.value - len(idle)
        if not count > self.parameters:
            return
        listed = sorted(silent - idle)
        if never_finite(signals):
            said = f"{counted(count, 'parameter')} had no gradient, as no loss of the run was finite: {names(listed, 6)}. Mend that first."
            yield self.finding(said, severity="info", limit=self.parameters, signal=worst)
            return
        if signals.kind != "checkpoint" and worst.value == worst.detail.get("of") and worst.detail.get("zero"):
            yield self._nothing_arrives(worst, count, listed, "error")
            return
        if len(unread) == count or worst.value == worst.detail.get("of"):
            yield self._not_yet(worst, count, listed, bool(unread))
            return
        listed, count = sorted(silent - idle - unread), count - len(unread)
        which = f": {names(listed, 6)}" if listed else ""
        known = signals.kind != "checkpoint"
        # A file says neither what was frozen or left out on purpose, nor why nothing has arrived: few nodes, closed units, edges that are missing.
        unsaid = (
            "" if known else "; a file does not say what the output depends on: pass the model with batch= and loss="
        )
        yield self.finding(
            f"{count:.0f} {'trainable ' if known else ''}parameters never received a gradient{which}{unsaid}. Wire them in, or freeze "
            "them on purpose.",
            severity="error" if known else "info",
            limit=self.parameters,
            signal=worst,
            confidence="high" if known else "medium",
        )

    def _standing(self, signals: Signals, standing: Signal) -> Finding:
        """Updates that find no gradient, whether a layer was seen to get one since or not."""
        since = standing.detail.get("since", 0)
        why = (
            "gradients arrive in the backward and are gone when the optimizer steps. Call zero_grad() before the backward, not between it and step()"
            if gradient_since(signals, since)
            else "no parameter has a gradient when the optimizer steps, and no layer was seen to get one. Look for a loss made anew "
            "(torch.tensor(loss.item()), loss.detach()), a forward under no_grad, a missing loss.backward(), or zero_grad() behind it"
        )
        return self.finding(
            f"from step {since} on {standing.value:.0f} updates have moved no weight: {why}.",
            limit=self.updates,
            signal=standing,
        )

    def _stopped(self, signals: Signals) -> Iterator[Finding]:
        """Parameters in front of an operation that hands no gradient on, by the name of the operation."""
        for signal in _stops(signals):
            kind, place = signal.detail["operation"], signal.layer
            what, advice = _STOPS.get(
                kind, (f"{kind} has no derivative", "Use a straight-through gradient, x + (q - x).detach()")
            )
            named = f"torch.{kind}" if kind in _DRAWS else f"a {kind}"
            yield self.finding(
                f"{counted(signal.value, 'trainable parameter', *_STILL)}, since {named} behind {place} hands "
                f"none on: {_listed(signal)}. {what[0].upper()}{what[1:]}. {advice}.",
                severity="error" if signals.find("optimizer.never_updated") else "warning",
                limit=self.parameters,
                signal=signal,
                cause=_CAUSED.get(kind),
            )

    def _all_zero(self, signals: Signals) -> Iterator[Finding]:
        """One batch whose backward gives every parameter a gradient of exactly 0 although the loss is not 0."""
        gradients = signals.find("weight.grad_rms", source="batch")
        if not gradients or any(s.value != 0 for s in gradients) or 0.0 in signals.context.get("losses", ()):
            return
        if any(event.kind == "non-finite" for event in signals.events):
            return  # What is not finite has no size: those left are a few of all.
        stopped = [
            bool(s.detail.get("evaluation")) for s in signals.find("place.gradient_stops") if s.detail.get("all")
        ]
        if stopped and all(stopped):
            return  # The look was in evaluation mode, and training passes that by.
        listed = [str(s.detail.get("parameter", s.layer)) for s in gradients]
        yield self._nothing_arrives(gradients[0], len(listed), listed, "warning")

    def _nothing_arrives(self, signal: Signal, count: float, listed: Sequence[str], severity: str) -> Finding:
        return self.finding(
            f"every gradient is exactly 0 ({counted(count, 'parameter')}: {names(listed, 6)}), so that no update moves anything: no operation with a "
            "derivative leads from them to the loss. Look for round, sign, argmax, a comparison, or a ReLU or clamp that is closed everywhere.",
            severity=severity,
            limit=self.parameters,
            signal=signal,
        )

    def _not_yet(self, worst: Signal, count: float, listed: list[str], unread: bool) -> Finding:
        why = (
            "nothing reads the results of their relations, while others of the same layer train"
            if unread
            else "their optimizer has moved nothing yet"
        )
        return self.finding(
            f"{counted(count, 'parameter')} had no gradient ({names(listed, 6)}): {why}. Freeze them where that is meant.",
            severity="info",
            limit=self.parameters,
            signal=worst,
            confidence="medium",
        )

    def _without_gradient(self, signals: Signals) -> Iterator[Finding]:
        """After a backward of the diagnosis itself; of a run only what no loss can reach, the rest is seen step by step."""
        layers = {layer.name for layer in signals.attention_layers}
        seen = signals.find("optimizer.never_updated")
        never = {str(name) for s in seen for name in s.detail.get("parameters", ())}
        for signal in signals.find("place.without_gradient"):
            silent = [str(name) for name in signal.detail.get("parameters", ())]
            why = str(signal.detail.get("why"))
            if silent and all(idle(signals, name) for name in silent):
                continue
            if why == "never called" and layers and layers <= left_out(signals):
                yield self.finding(
                    f"the forward calls none of the {len(layers)} attention layers that the model holds, so that "
                    f"{counted(signal.value, 'trainable parameter', 'has', 'have')} no gradient: {_listed(signal)}. Look at the loop over the layers: a zip "
                    "with a shorter list ends before it, and a condition may leave it out.",
                    severity="warning",
                    limit=self.parameters,
                    signal=replace(signal, layer=None),
                )
            elif why == "unmatched":
                yield self.finding(
                    f"the forward never calls the layers under the key ({signal.detail.get('key')}), which names no relation of the batch, and nothing "
                    f"reads the edges of the batch's relation ({signal.detail.get('relation')}), which no key names: {signal.value:.0f} trainable "
                    f"parameters have no gradient: {_listed(signal)}. Give the layers the relation's own name.",
                    severity="warning",
                    limit=self.parameters,
                    signal=replace(signal, layer=None),
                )
            elif why == "checkpoint":
                if not (
                    lost := [name for name in silent if name in never] if seen or signal.source != "batch" else silent
                ):
                    continue
                yield self.finding(
                    f"{counted(len(lost), 'trainable parameter', 'has', 'have')} no gradient, being inside torch.utils.checkpoint with use_reentrant=True "
                    f"and nothing that it is given has a gradient: its backward never runs ({names(lost, 6)}). With inputs that have one all of them get "
                    "theirs. Call it with use_reentrant=False.",
                    severity="error",
                    limit=self.parameters,
                    signal=replace(signal, layer=None),
                )
            elif why == "no history":
                if signal.source == "batch" and signals.context.get("loss_given"):
                    yield self.finding(
                        f"the loss depends on none of the model's trainable parameters ({signal.value:.0f}), and its backward() raises: "
                        f"{_listed(signal)}. Look for detach(), .item(), .data, no_grad() or a loss that reads no output.",
                        severity="error",
                        limit=self.parameters,
                        signal=replace(signal, layer=None),
                    )
            elif why in NO_WAY:
                yield self.finding(
                    f"{counted(signal.value, 'trainable parameter', 'has', 'have')} no gradient, {NO_WAY[why]}: {_listed(signal)}. Freeze them, or wire them "
                    "in if this loss should train them.",
                    severity="info",
                    limit=self.parameters,
                    signal=replace(signal, layer=None),
                    confidence="medium",
                )
            elif signal.source == "batch":
                given = bool(signals.context.get("loss_given"))
                cause, look = {"thrown away": _LOST, "unfed": _UNFED}.get(why, _CUT)
                yield self.finding(
                    f"{counted(signal.value, 'trainable parameter', 'has', 'have')} no gradient after a backward{cause}: {_listed(signal)}. {look}; wire them in, or "
                    "freeze them on purpose.",
                    severity="error" if given else "warning",
                    limit=self.parameters,
                    signal=replace(signal, layer=None),
                    confidence="high" if given else "medium",
                )

    def _not_owned(self, signals: Signals) -> Iterator[Finding]:
        for signal in signals.find("place.not_owned"):
            yield self.finding(
                f"the loss depends on {counted(signal.value, 'weight')} that model.parameters() does not hold and no optimizer moves: "
                f"{_listed(signal)}. Keep modules in nn.ModuleList or nn.ModuleDict, not in a plain list or dict.",
                limit=self.parameters,
                signal=replace(signal, layer=None),
            )

    def _not_held(self, signals: Signals) -> Iterator[Finding]:
        for signal in signals.find("place.not_held"):
            replaced = int(signal.detail.get("strangers", 0)) > 0
            few = float(signal.detail.get("share", 1.0)) < self.minority
            # Who trains a head alone has a body that was trained before.
            drawn = bool(signal.detail.get("fresh")) or (signals.kind == "model" and fresh(signals))
            late = int(signal.detail.get("late", 0)) > 0
            if late and signals.kind == "model" and not signals.find(OPTIMIZER_UNDONE):
                continue  # Without its optimizer nobody knows when that was built.
            why = (
                strange_tensors(signal)
                if replaced
                else "the forward made them after the optimizer was built: run it once before, or make them in __init__"
                if late
                else "pass them to the optimizer, or freeze them on purpose"
            )
            yield self.finding(
                f"no optimizer holds {counted(signal.value, 'trainable parameter')} of the model: {_listed(signal)}; {why}.",
                severity="error" if replaced else "warning" if few or drawn or late else "info",
                limit=self.parameters,
                signal=signal,
            )


_CUT = (
    " although the output depends on them, no path leads from the loss back to them",
    "Look for a detach(), a .data, torch.no_grad, a rounding, an argmax, or a conversion to numbers or lists",
)
_LOST = (
    " although their modules are called in front of others of their kind or in every layer: what these return reaches no entry of the output",
    "Look for a result that is never read, or a name that is assigned twice",
)
_UNFED = (
    ": every layer of their kind holds them for features of the edges, the batch holds such features (as many columns), and no output depends on these",
    "Hand the features of the edges on to the layers and their propagate()",
)
"""Why parameters that are needed have no gradient, and what to look for."""

_DRAWS = ("normal", "bernoulli", "poisson")
_STOPS = {
    "clamp": (
        "it cuts every entry",
        "Widen its limits, or look whether lower and upper limit stand in the right place",
    ),
    "softmax": (
        "it runs over a single entry, so that its result is 1",
        "Look at its dim, and at the shape of the scores",
    ),
    "normal": (
        "no derivative leads from a draw back to its mean and deviation",
        "Write mean + std * torch.randn_like(mean), or rsample of torch.distributions.Normal",
    ),
    "bernoulli": (
        "no derivative leads from a draw back to its probability",
        "Use a relaxation (RelaxedBernoulli, gumbel_softmax) or log_prob times the reward",
    ),
    "poisson": ("no derivative leads from a draw back to its rate", "Use log_prob times the reward"),
}
"""Operation → why it hands no gradient on, and what to do; the others that this rule tells of are steps."""

_CAUSED = {"clamp": "active-clamp", "softmax": "normalization-misuse"}
"""Operation → what is to be changed where it stops a gradient; of the others the parameters in front of them."""


def _stops(signals: Signals) -> list[Signal]:
    """Places where a gradient stops, each of which is a finding of this rule; in a run, of parameters that never had one."""
    seen = signals.find("optimizer.never_updated")
    never = {str(name) for s in seen for name in s.detail.get("parameters", ())}
    found = stops(signals, "round", "floor", "ceil", "trunc", "sign", "heaviside", *_STOPS)
    return [
        s for s in found
        if not s.detail.get("all") and (not seen or never.issuperset(map(str, s.detail.get("parameters", ()))))
    ]  # fmt: skip


def _with_part(signals: Signals, silent: set[str]) -> set[str]:
    """The silent parameters that have a part to play in this forward."""
    left_out = {str(name) for s in signals.find("place.idle") for name in s.detail.get("parameters", ())}
    beyond = {str(n) for s in _unreachable(signals) for n in s.detail.get("parameters", ())}
    return {name for name in silent - left_out - beyond if not without_part(signals, name)}


def silent_parameters(signals: Signals) -> tuple[set[str], set[str]]:
    """Parameters that never got a gradient though they have a part to play and their relation is read, and those of them whose gradients were 0."""
    seen = [s.detail for s in signals.find("optimizer.never_updated") if s.value > 0]
    silent = {str(name) for detail in seen for name in detail.get("parameters", ())}
    zero = {str(name) for detail in seen for name in detail.get("zero", ())}
    blamed = {name for name in _with_part(signals, silent) if not unread_relation(signals, name, silent)}
    return blamed, blamed & zero


def _unreachable(signals: Signals) -> tuple[Signal, ...]:
    """Parameters that no loss on this output can reach by the way the model is built, and that are told as such."""
    told = (*NO_WAY, "unmatched", "checkpoint")
    return tuple(s for s in signals.find("place.without_gradient") if s.detail.get("why") in told)


def _listed(signal: Signal) -> str:
    return names([str(name) for name in signal.detail.get("parameters", ())], 6)


_STILL = ("gets a gradient of 0 and keeps its initial values", "get a gradient of 0 and keep their initial values")
