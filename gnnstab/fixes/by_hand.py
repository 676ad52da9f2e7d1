"""Fixes outside of what can be changed on a copy: in the data, in the code of forward, in what the optimizer is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes.base import Fix
from gnnstab.fixes.printing import WIDTH, on_one_line, variable
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import (
    FEATURE_NON_FINITE,
    LOSS,
    LOSS_MARKED_TARGETS,
    OPTIMIZER_DECAY,
    OPTIMIZER_UNDONE,
    OPTIMIZER_UNSEEN,
    PLACE_ALONE_DIFFERENCE,
    PLACE_CLOSED_CONTENT,
    PLACE_FILLED_DIFFERENCE,
    PLACE_LOST_DIGITS,
    PLACE_LOST_WEIGHT,
    PLACE_MASKED_WEIGHT,
    PLACE_NORMALISED_AWAY,
    PLACE_OUTPUT,
    PLACE_PADDED_SPREAD,
    PLACE_PADDING_WEIGHT,
    PLACE_RETAKEN_SOFTMAX,
    PLACE_RMS,
    PLACE_SIGNED_DIVISOR,
    PLACE_SIZE_RESPONSE,
    PLACE_UNIFORM_WEIGHTS,
    PLACE_WEIGHT_SUM,
    POOL_SUM_SIZE,
    SUM_BY_HAND_SIZE,
)
from gnnstab.rules.gs108_graph_norm_hazard import GraphNormHazard
from gnnstab.rules.gs305_softmax_misused import SoftmaxMisused, taken_twice
from gnnstab.rules.gs406_feature_scale import FeatureScale
from gnnstab.rules.operation_advice import LEAVE_EMPTY, advice
from gnnstab.rules.queries import stops

if TYPE_CHECKING:
    from torch import nn


class ByHand(Fix):
    """A change that only its user can make; `change` prints it and `verify` says that it was not tested."""

    where: ClassVar[str]
    """What has to be changed, in a few words."""

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Raises `FixError`: a tool that sees the model alone cannot make the change."""
        raise FixError(f"{self.name} is a change of {self.where}: make it by hand and diagnose again")


def operation_behind(signals: Signals) -> Mapping[str, Any]:
    """What is known about the first operation that made a NaN or Inf; empty where none was found."""
    events = [e for e in signals.events if e.kind == "non-finite" and e.detail.get("operation")]
    first = min(events, key=lambda event: event.step, default=None)
    found = None if first is None else first.detail["operation"]
    return found if isinstance(found, Mapping) else {}


def _spot(operation: Mapping[str, Any]) -> str:
    """``# line 26 of loss.py, now: loss = …`` above a change; empty where the line is unknown."""
    if not operation.get("file"):
        return ""
    name = str(operation["file"]).replace("\\", "/").rpartition("/")[2]
    line = operation.get("line")
    place, code = on_one_line(f"line {line} of {name}"), on_one_line(operation.get("code") or "")
    if not code:
        return f"# {place}\n"
    whole = f"# {place}, now: {code}\n"
    return whole if len(whole) <= WIDTH else f"# {place}, now:\n#     {code}\n"


class CleanData(ByHand):
    """Find and mend the NaN and Inf in the features where they come into being, and refuse them from then on."""

    name = "clean-data"
    title = "no NaN or Inf in the data"
    causes = ("non-finite-data",)
    signal = FEATURE_NON_FINITE
    cost = "one pass over the data"
    where = "the data"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        tensor = operation_behind(signals).get("tensor")
        tensor = tensor if isinstance(tensor, dict) else {}
        first = min(signals.events, key=lambda event: event.step, default=None)
        stage = first.stage if first is not None else None
        if tensor.get("owner") == "parameter" or stage == "weight":
            return (
                "bad = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]\n"
                "if bad:  # after the weights are loaded\n"
                '    raise ValueError(f"NaN or Inf in {bad}")'
            )
        *stores, name = str(tensor.get("name") or ("y" if stage in ("loss", "gradient") else "x")).split(".")
        named = all(part.isidentifier() for part in (*stores, name))
        data = "".join(f'["{store}"]' for store in stores) + f".{name}" if named else ".x"
        return (
            f"bad = ~torch.isfinite(data{data})\n"
            "if bad.any():  # where the data is made: mend the source, do not hide it\n"
            '    raise ValueError(f"NaN or Inf in rows {bad.nonzero()[:5, 0].tolist()}")'
        )


class StandardiseTargets(ByHand):
    """Compare the output with (y − mean) / std, and turn what it says back into the unit of the targets."""

    name = "target-standardisation"
    title = "standardised targets"
    causes = ("feature-scale",)
    signal = PLACE_RMS
    cost = "none; mean and std have to be stored with the model"
    where = "the data"

    def helps(self, signals: Signals, **options: Any) -> bool:
        """True where the targets are of another scale than the output."""
        return bool(FeatureScale().targets_beyond(signals))

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        found = FeatureScale().targets_beyond(signals)
        name = variable((found[0] if found else "y").rpartition(".")[2])
        ends = [s.detail.get("operation") for s in FeatureScale().out_of_range(signals)]
        return (
            "".join(f"# forward: without the {on_one_line(end)} that the output ends in\n" for end in ends)
            + f"mean, std = train_{name}.mean(0), train_{name}.std(0)  # of the training set; store them with the model\n"
            f"loss = criterion(output, ({name} - mean) / std)\n"
            f"prediction = output * std + mean"
        )


class SafeOperation(ByHand):
    """Write what is meant by a function that is defined everywhere, or keep its operand where it is."""

    name = "safe-operation"
    title = "an operation that is defined for every operand"
    causes = ("undefined-operation",)
    signal = LOSS
    where = "the line that made the value"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        operation = operation_behind(signals)
        said = advice(operation, "undefined-operation")
        if said:
            return f"{_spot(operation)}# {on_one_line(said)}"
        if not operation and any(e.kind == "non-finite" and e.detail.get("of_too_few") for e in signals.events):
            return f"# {on_one_line(LEAVE_EMPTY)}\nif target.numel():\n    loss = criterion(output, target)"
        return (
            "x.clamp_min(1e-12).log()                   # in place of x.log(); logsigmoid and log_softmax where they fit\n"
            "a / b.clamp_min(1e-12)                     # in place of a / b\n"
            "(x.square().sum(-1) + 1e-12).sqrt()        # in place of x.norm(dim=-1): its derivative at zero\n"
            "(e - e_max[target]).exp()                  # in place of e.exp(): e_max is the maximum of each group"
        )


class ClearGradients(ByHand):
    """Clear the gradients of a step before the backward of the next."""

    name = "clear-gradients"
    title = "gradients are cleared after each step of the optimizer"
    causes = ("stale-gradients",)
    signal = LOSS
    where = "the training loop"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        return "optimizer.step()\noptimizer.zero_grad()  # nothing of this step is left for the next backward"


class LowerDecay(ByHand):
    """A weight decay that leaves the weights what they learn. Options: none."""

    name = "lower-decay"
    title = "lower weight decay"
    causes = ("learning-rate",)
    signal = OPTIMIZER_UNDONE
    where = "what the optimizer is given"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        decay = 1e-2 if signals.context.get("optimizer") == "AdamW" else 5e-4
        return f'for group in optimizer.param_groups:\n    group["weight_decay"] = {decay:g}'


def decays(signals: Signals) -> bool:
    """True where a weight decay was seen that takes away what weights learn."""
    undone = any(s.detail.get("setting") == "weight_decay" for s in signals.find(OPTIMIZER_UNDONE))
    return undone or bool(signals.find(OPTIMIZER_DECAY))


class SetMask(ByHand):
    """Set masked entries in place of multiplying them, leave one entry open in every row of a softmax, and marks of missing targets out."""

    name = "set-mask"
    title = "masked entries are set, not multiplied"
    causes = ("masking",)
    signal = LOSS
    where = "the line that masks"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        operation = operation_behind(signals)
        marked = signals.find(LOSS_MARKED_TARGETS)
        if marked and not operation:
            change = f"known = y != {marked[0].detail.get('mark')!r}  # the mark of missing values\nloss = criterion(output[known], y[known])"
        elif turned := [s for s in signals.find(OPTIMIZER_UNSEEN) if s.detail.get("cause") == "masking"]:
            name = str((turned[0].detail.get("names") or ["mask"])[0]).rsplit(".", 1)[-1]
            words = str(turned[0].detail.get("words", ""))
            change = f"{name} = ~{name}  # True where the layer expects it: masked_fill leaves out what is True"
            if words.startswith("taking"):
                change = "score = score.masked_fill(~adjacency, float('-inf'))  # without the triangle of torch.tril, or is_causal=True"
            elif words.startswith("leaving out"):
                closed = f"~{name}" if words.endswith("not set") else name
                change = f"score = score.masked_fill({closed}[:, None], float('-inf'))  # and its result is what the softmax is given"
        elif operation.get("kind") == "all-masked" and operation.get("name") != "softmax":
            change = (
                "keep = keep | (source == target)  # the self-loop of each target stays open\n"
                "score = score.masked_fill(~keep, float('-inf'))"
            )
        elif operation.get("kind") == "all-masked":
            change = (
                "empty = ~mask.any(-1, keepdim=True)  # rows in which nothing is left\n"
                "weights = scores.masked_fill(~mask & ~empty, float('-inf')).softmax(-1).masked_fill(empty, 0.0)"
            )
        elif not operation and _measured(signals, PLACE_CLOSED_CONTENT):
            change = (
                "attend(x, x, x, key_padding_mask=~real)                       # True where a key is to be ignored\n"
                "scaled_dot_product_attention(q, k, v, attn_mask=~blocked)     # True where a key is to be read"
            )
        elif not operation and _measured(signals, PLACE_FILLED_DIFFERENCE):
            told = next(str(s.detail.get("real") or "") for s in signals.find(PLACE_FILLED_DIFFERENCE))
            change = "real = " + (told or "(x != 0).any(dim=1)  # rows of zeros fill the graphs up")
            change += "\npooled = global_mean_pool(h[real], batch[real])  # and so before every norm over nodes"
        elif not operation and _measured(signals, PLACE_LOST_WEIGHT):
            change = "weights = scores.masked_fill(~mask, float('-inf')).softmax(-1)  # in place of scores.softmax(-1) * mask"
        elif not operation and (
            _measured(signals, PLACE_PADDING_WEIGHT)
            or (_measured(signals, PLACE_ALONE_DIFFERENCE) and not _measured(signals, PLACE_MASKED_WEIGHT))
        ):
            change = (
                "out = attend(x, x, x, key_padding_mask=~real)[0]  # real: True for rows that are no padding; means over those alone\n"
                "dense, real = to_dense_batch(x, batch)            # gives it for graphs; batch goes to every norm and pooling"
            )
        elif not operation:
            change = "scores = scores.masked_fill(~mask, float('-inf'))  # in place of scores * mask: exp(0) is 1"
        else:
            change = "values = values.masked_fill(~mask, 0.0)  # in place of values * mask: 0 · inf and 0 · NaN are NaN"
        return _spot(operation) + change


def _norm_of_something_else(signals: Signals) -> str:
    """The change where weights of a target do not sum up to 1, and where attention runs over the batch, and where a norm's statistics are of padding, of one number, or of the graph whose size is asked for; empty elsewhere."""
    if sums := [s for s in signals.find(PLACE_WEIGHT_SUM) if s.value > SoftmaxMisused.no_mean]:
        if sums[0].detail.get("messages"):
            return "weights = torch_geometric.utils.softmax(scores, index)  # index: that by which propagate sums the messages up"
        if sums[0].detail.get("over") == "edges":
            return (
                "weights = softmax(scores, edge_index[1])  # grouped by the target, by which the messages are summed up"
            )
        return "weights = scores.softmax(-1)  # over the keys, which the product with the values sums up"
    if turned := [s.detail for s in signals.find(OPTIMIZER_UNDONE) if s.detail.get("setting") == "batch_first"]:
        first = "batch_first=True" in str(turned[0].get("words"))
        given = "(rows, tokens, width)" if first else "(tokens, rows, width)"
        return f"batch_first={first}  # where the attention, or the encoder's layer, is made: it is given {given}"
    if retaken := signals.find(PLACE_RETAKEN_SOFTMAX):
        once = "softmax(scores, index)" if retaken[0].detail.get("messages") else "scores.softmax(-1)"
        return f"weights = {once}  # once, of the scores"
    if signals.find(PLACE_UNIFORM_WEIGHTS):
        return "weights = torch_geometric.utils.softmax(scores, index)  # or scores.softmax(-1): of the scores themselves, one for each neighbour"
    if any(s.value > SoftmaxMisused.near_zero for s in signals.find(PLACE_SIGNED_DIVISOR)):
        return "phi = F.elu(x) + 1  # above 0: weights, and the sum that divides by them, are then positive"
    if any(str(s.detail.get("words")).startswith("keeping the lengths") for s in signals.find(OPTIMIZER_UNSEEN)):
        return "x = x / train_x.std(0)  # a constant of the training set, in place of a division of each row by its own sum or length"
    if any(s.value < GraphNormHazard.spread for s in signals.find(PLACE_PADDED_SPREAD)):
        return "out = torch.zeros_like(h)\nout[mask] = norm(h[mask])  # mask: True for real rows, in place of norm over all of them"
    if stops(signals, "softmax"):
        return (
            "weights = scores.squeeze(-1).softmax(-1)  # over the candidates: the last axis of scores holds one entry"
        )
    if single := stops(signals, "layer_norm"):
        name = str(single[0].layer)
        return f"# {on_one_line(name)}: leave it out, or scale the column by constants of the training set\nx = (x - train_x.mean(0)) / train_x.std(0)  # in place of {variable(name)}(x)"
    if any(s.value < GraphNormHazard.blind for s in signals.find(PLACE_SIZE_RESPONSE)):
        return "x = (x - train_x.mean(0)) / train_x.std(0)  # constants of the training set, in place of norm(x, batch)"
    return ""


def normalised_too_much(signals: Signals) -> bool:
    """True where values were divided by their own size or that of padding, rows of the output brought to one norm, or scores squeezed
    twice in front of the loss, in place of node states."""
    logits = "nll_loss" in str(signals.context.get("loss_graph"))
    rows = logits and any("row_norm" in s.detail for s in signals.find(PLACE_OUTPUT))
    return bool(signals.find(PLACE_NORMALISED_AWAY) or rows or _norm_of_something_else(signals) or taken_twice(signals))


class UndoNormalisation(ByHand):
    """Leave values as they are, or divide them by a constant, where a division by their own size takes away what they say."""

    name = "undo-normalisation"
    title = "values keep their size"
    causes = ("normalization-misuse",)
    signal = LOSS
    where = "the line that normalises"

    def helps(self, signals: Signals, **options: Any) -> bool:
        """True where something was divided by its own size, or squeezed twice in front of the loss."""
        return normalised_too_much(signals)

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        found = signals.find(PLACE_NORMALISED_AWAY)
        if change := _norm_of_something_else(signals):
            return change
        if not found and (twice := taken_twice(signals)):
            loss = "F.cross_entropy" if "softmax" in twice[0] else "F.binary_cross_entropy_with_logits"
            return f"loss = {loss}(scores, y)  # scores: what the {twice[1]} is given; leave it out of forward"
        if not found:
            return "loss = F.cross_entropy(scale * logits, y)  # scale: nn.Parameter(torch.tensor(10.0)); or the logits before F.normalize"
        name = variable(str(found[0].layer).rpartition(".")[2])
        return f"{name} = {name} / train_{name}.std(0)  # a constant of the training set, in place of F.normalize({name}, dim=-1)"


class DivideSum(ByHand):
    """Divide a sum that the model's own code takes by the number of what it adds up: the in-degree, or the nodes of a graph."""

    name = "divide-sum"
    title = "a mean in place of a sum"
    causes = ("sum-aggregation", "attention-explosion")
    signal = SUM_BY_HAND_SIZE
    cost = "counts of neighbours are no longer seen"
    where = "the line that adds up"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        sums = signals.find(SUM_BY_HAND_SIZE)
        if not sums and signals.find(POOL_SUM_SIZE):
            return "x = global_mean_pool(x, batch)  # in place of global_add_pool(x, batch)"
        how = max(sums, key=lambda signal: signal.value).detail if sums else {}
        total, groups, matrix = (
            on_one_line(how.get(key, name)) for key, name in (("total", "out"), ("groups", "index"), ("matrix", ""))
        )
        by_matrix = matrix and "groups" not in how
        count = (
            f"({matrix} @ torch.ones({matrix}.size(-1)))"
            if by_matrix
            else f"torch.bincount({groups}, minlength={total}.size(0))"
        )
        said = "" if "total" in how else "  # out: what the line adds up"
        return (
            f"{_spot(how)}# below the line that adds up:\ncount = {count}.clamp(min=1)\n"
            f"{total} = {total} / count.unsqueeze(-1){said}"
        )


def _measured(signals: Signals, name: str) -> bool:
    """True where more than rounding was measured."""
    return any(s.value > 1e-4 for s in signals.find(name))


class Fp32Operation(ByHand):
    """Compute the loss, or the operation that left the range of half precision, in float32."""

    name = "fp32-operation"
    title = "the operation in float32"
    causes = ("precision",)
    signal = LOSS
    cost = "twice the memory of its operands"
    where = "the line that overflowed"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        operation = operation_behind(signals)
        lost = signals.find(PLACE_LOST_DIGITS)
        undone = [s.detail for s in signals.find(OPTIMIZER_UNDONE) if s.detail.get("cause") == "precision"]
        if not operation and undone:
            module = variable(str((undone[0].get("names") or ["module"])[0]).rpartition(".")[2])
            change = f"with torch.autocast(x.device.type, enabled=False):\n    y = self.{module}(x.float())"
        elif not operation and lost:
            name = variable(str(max(lost, key=lambda signal: signal.value).layer).rpartition(".")[2])
            change = (
                f"{name} = {name} - {name}.max()  # any reference, in the format that {name} is held in; then cast it"
            )
        elif operation.get("place") == "model":
            change = "with torch.autocast(x.device.type, enabled=False):\n    y = self.module(x.float())"
        else:
            change = "with torch.autocast(output.device.type, enabled=False):\n    loss = criterion(output.float(), target.float())"
        return _spot(operation) + change
