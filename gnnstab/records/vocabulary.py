"""The one table of signals: what each is called, what it means, which side is worse, its limits, and how it is shown.

The probe and the checkpoint reader measure them, the rules judge them, everything else asks this table: by a name in
capitals (`ATTENTION_ENTROPY`) or by a query (`in_group`, `OF_SITE`). ρ, Ĥ, M_h and λ are defined in docs/signals.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RuleLimit:
    """The threshold of a rule that a signal is held against."""

    rule: str
    """Code of the rule."""

    field: str
    """Name of its threshold."""

    severity: str = ""
    """Severity of a number beyond it; ``""`` where the rule asks for more than this number before it says anything."""


@dataclass(frozen=True, slots=True)
class SignalKind:
    """What one signal name stands for."""

    unit: str
    """Unit in words of the field; ``""`` for a plain number."""

    meaning: str
    """One line for reports."""

    title: str = ""
    """Name above a chart; the meaning stands in where it is empty."""

    heading: str = ""
    """Name above a column of a table."""

    words: str = ""
    """What people call it in a table or a sentence; every signal that is compared has such a name."""

    spoken: tuple[str, ...] = ()
    """What people call it in a budget."""

    worse: str = "above"
    """The side on which it is worse: ``above`` or ``below``."""

    floor: float | None = None
    """Growth between two states counts beyond this alone; None for a signal that is not compared.

    The floors were set by hand: before them no rule has anything to say.
    """

    limits: tuple[RuleLimit, ...] = ()
    """Thresholds in the worse direction, the mildest first."""

    healthy: tuple[float, float] | None = None
    """A healthy range that is narrower than the limits: by measurement, networks inside it train."""

    axis: str = "log"
    """Scale that it is drawn on, where it is no share: ``log``, ``linear`` or ``symlog``."""

    site: str = ""
    """Site of the light tier that it is read from at every step: the largest |entry| of a score, the RMS of any other."""

    groups: tuple[str, ...] = ()
    """``trend``: followed over checkpoints. ``series``: drawn over the steps of a run from the full tier. ``ratio``:
    distances are taken between logarithms. ``setting``: of the optimizer's settings, which fixes of the training move.
    ``typical``: judged by the median over all weight matrices, whichever layer that stands in."""

    @property
    def is_share(self) -> bool:
        """True for a number between 0 and 1."""
        return self.unit.startswith(("share of", "fraction of"))

    @property
    def rises(self) -> bool:
        """True when larger is worse."""
        return self.worse == "above"

    def growth(self, before: float, after: float) -> float:
        """Factor by which the value moved towards danger: 2 is twice as bad, 1 unchanged, 0.5 half as bad."""
        worse, better = (after, before) if self.rises else (before, after)
        if worse == better:
            return 1.0
        return abs(worse) / abs(better) if better else float("inf")

    def counts(self, value: float) -> bool:
        """True when the value is large enough, or low enough, for its growth to matter."""
        return self.floor is not None and (abs(value) >= self.floor if self.rises else value <= self.floor)


# fmt: off
SIGNALS: dict[str, SignalKind] = {
    # Attention, measured on a graph (per head; head=None is the layer's aggregate over heads).
    (SCORE_MAX_ABS := "score.max_abs"): SignalKind("logit", "largest |pre-softmax attention score|", words="largest |score|",
        title="Largest |score|", heading="max |s|", spoken=("score", "logit"), floor=5.0, site="score",
        groups=("trend", "ratio")),
    (SCORE_MIN := "score.min"): SignalKind("logit", "smallest pre-softmax attention score", axis="symlog"),
    (SCORE_MAX := "score.max"): SignalKind("logit", "largest pre-softmax attention score", axis="symlog"),
    (SCORE_STD := "score.std"): SignalKind("logit", "standard deviation of the scores over all edges and heads", words="spread of all scores"),
    (SCORE_WITHIN_STD := "score.within_std"): SignalKind("logit",
        "RMS over targets (in-degree ≥ 3) of the score std within one target, σ_w", words="spread of the scores", spoken=("score spread",), floor=0.5,
        groups=("trend",)),
    (SCORE_PRODUCT_SCALE := "score.product_scale"): SignalKind("× q·k/√d",
        "what multiplies the products of queries and keys over √d on their way to the softmax"),
    (SCORE_COSINE_SCALE := "score.cosine_scale"): SignalKind("× cosine",
        "what multiplies the cosines of queries and keys on their way to the softmax: one over a temperature"),
    (SCORE_RHO := "score.rho"): SignalKind("", "σ_w² / (2 ln d): random-energy freezing parameter, 1 = frozen",
        spoken=("rho",)),
    (SCORE_GROWTH := "score.growth"): SignalKind("per step",
        "relative growth of max |score| per step, fitted over the recorded steps"),
    (ATTENTION_ENTROPY := "attention.entropy"): SignalKind("fraction of ln(in-degree)",
        "mean attention entropy over targets with in-degree ≥ 2", words="attention entropy", title="Attention entropy", heading="entropy",
        spoken=("entropy", "attention entropy"), worse="below", floor=0.8,
        limits=(RuleLimit("GS301", "warn_entropy", "warning"), RuleLimit("GS301", "error_entropy", "error")),
        groups=("trend", "series")),
    (ATTENTION_ONE_HOT_SHARE := "attention.one_hot_share"): SignalKind("share of node-heads",
        "share of node-heads with Ĥ < 0.1", words="one-hot attention", heading="one-hot", spoken=("one-hot share",), floor=0.05,
        limits=(RuleLimit("GS301", "one_hot_share", "warning"),), groups=("trend", "series")),
    (ATTENTION_VANISHED_SHARE := "attention.vanished_share"): SignalKind("share of targets", "targets at which every exponential of the attention is 0"),
    (ATTENTION_ENTROPY_UNIT_INPUT := "attention.entropy_unit_input"): SignalKind("fraction of ln(in-degree)",
        "Ĥ when the layer's input is scaled to RMS 1"),
    (ATTENTION_ONE_HOT_SHARE_UNIT_INPUT := "attention.one_hot_share_unit_input"): SignalKind("share of node-heads",
        "one-hot share at an input of RMS 1"),
    (GATE_MEAN := "gate.mean"): SignalKind("", "mean of the beta gate"),
    (GATE_SATURATED_SHARE := "gate.saturated_share"): SignalKind("share of nodes",
        "share of beta gates below 0.05 or above 0.95", words="saturated gates", title="Saturated gate", spoken=("gate saturation",), floor=0.05,
        limits=(RuleLimit("GS104", "share"),)),
    # Activations.
    (INPUT_RMS := "input.rms"): SignalKind("", "RMS of the layer's input node features", words="size of the input",
        title="Layer input RMS", spoken=("input rms",), floor=2.0, site="input", groups=("trend",)),
    (INPUT_MAX_ABS := "input.max_abs"): SignalKind("", "largest |entry| of the layer's input"),
    (OUTPUT_RMS := "output.rms"): SignalKind("", "RMS of the layer's output", words="size of the output",
        title="Activation RMS, forward", heading="out RMS", spoken=("output rms",), floor=2.0, site="output",
        groups=("trend",)),
    (OUTPUT_GROWTH := "output.growth"): SignalKind("per step",
        "growth of a layer's output RMS per step that does not slow down"),
    (OUTPUT_MAX_ABS := "output.max_abs"): SignalKind("", "largest |entry| of the layer's output"),
    (MESSAGE_RMS := "message.rms"): SignalKind("", "RMS of the aggregated message α·v before the skip",
        title="Message RMS before the skip"),
    (SKIP_RMS := "skip.rms"): SignalKind("", "RMS of the layer's own linear skip"),
    (HUB_MESSAGE_SHARE := "hub.message_share"): SignalKind("",
        "RMS of the messages of the top-1 % in-degree targets over the skip's RMS"),
    (CHANNELS_DEAD_SHARE := "channels.dead_share"): SignalKind("share of channels",
        "channels of the layer's output that are 0 on all nodes after its ReLU", words="dead channels", spoken=("dead channels",), floor=0.1,
        limits=(RuleLimit("GS701", "share"),), groups=("series",)),
    (CHANNELS_CONSTANT_SHARE := "channels.constant_share"): SignalKind("share of channels",
        "channels of the layer's input without variance over nodes"),
    (TANH_SATURATED_SHARE := "tanh.saturated_share"): SignalKind("share of entries",
        "entries of a tanh output beyond ±0.97", words="saturated tanh", floor=0.05, limits=(RuleLimit("GS702", "share"),)),
    (CLIP_SHARE := "clip.share"): SignalKind("share of entries", "entries that sit exactly on a clamp's limit", words="clamped entries",
        floor=0.005, limits=(RuleLimit("GS703", "active"),)),
    (SMOOTHNESS_RELATIVE := "smoothness.relative"): SignalKind("", "‖X − mean‖/‖X‖ of the layer's output, per graph", words="difference of nodes",
        worse="below", floor=0.3, limits=(RuleLimit("GS704", "relative"),), groups=("series",)),
    (SMOOTHNESS_RELATIVE_INPUT := "smoothness.relative_input"): SignalKind("",
        "‖X − mean‖/‖X‖ of the layer's input, per graph", worse="below"),
    # Gradients and updates.
    (GRADIENT_INPUT_RMS := "gradient.input_rms"): SignalKind("", "RMS of ∂L/∂(layer input)",
        title="Gradient RMS, backward", heading="grad RMS", site="grad_input"),
    (GRADIENT_OUTPUT_RMS := "gradient.output_rms"): SignalKind("", "RMS of ∂L/∂(layer output)",
        title="Gradient RMS at the layer output", site="grad_output"),
    (GRADIENT_RATIO := "gradient.ratio"): SignalKind("", "RMS of ∂L/∂(node states) at the first over the last layer", words="gradient, first/last",
        spoken=("gradient ratio",), floor=2.0, limits=(RuleLimit("GS204", "warn_ratio"),), healthy=(1e-2, 1e2),
        groups=("trend", "ratio")),
    (GRADIENT_SLOPE := "gradient.slope"): SignalKind("ln per layer",
        "slope of ln RMS(∂L/∂x) against depth, backwards (+ grows)", axis="linear"),
    (GRADIENT_NORM := "gradient.norm"): SignalKind("", "L2 norm over all parameter gradients", words="gradient norm",
        heading="grad norm", spoken=("gradient norm",), floor=1.0),
    (GRADIENT_SPIKE := "gradient.spike"): SignalKind("× running median",
        "largest gradient norm over its running median"),
    (WEIGHT_RMS := "weight.rms"): SignalKind("", "RMS of a parameter", words="size of the weights", floor=0.1),
    (WEIGHT_GAIN_RMS := "weight.gain_rms"): SignalKind("", "RMS of a vector called weight outside of attention, as the gain of a norm is", words="size of the gains",
        floor=0.1),
    (WEIGHT_GRAD_RMS := "weight.grad_rms"): SignalKind("", "RMS of a parameter's gradient"),
    (UPDATE_RATIO := "update.ratio"): SignalKind("", "RMS(ΔW)/RMS(W) of one optimizer step", words="size of an update",
        spoken=("update ratio",), floor=0.01, limits=(RuleLimit("GS601", "warn_ratio"),)),
    (OPTIMIZER_LR_TO_RMS := "optimizer.lr_to_rms"): SignalKind("",
        "learning rate over RMS(W): the relative size of Adam's first updates",
        limits=(RuleLimit("GS601", "warn_ratio", "warning"),), groups=("ratio", "setting", "typical")),
    (OPTIMIZER_BELOW_EPS_SHARE := "optimizer.below_eps_share"): SignalKind("share of entries",
        "entries with √v̂ below Adam's eps", groups=("setting",)),
    (OPTIMIZER_GRADIENT_RMS := "optimizer.gradient_rms"): SignalKind("",
        "RMS gradient recovered from Adam's second moment", groups=("trend",)),
    (OPTIMIZER_LOSS_RISE := "optimizer.loss_rise"): SignalKind("× first loss",
        "largest loss within 6 real optimizer steps on a copy over the loss before them",
        limits=(RuleLimit("GS601", "warn_rise", "warning"), RuleLimit("GS601", "error_rise", "error")),
        groups=("ratio", "setting")),
    (OPTIMIZER_OUTPUT_MOVE := "optimizer.output_move"): SignalKind("× its spread",
        "change of the output in one real optimizer step on a copy over the output's spread"),
    (OPTIMIZER_EPS_DAMPING := "optimizer.eps_damping"): SignalKind("share of the step",
        "change of the output in one step with the eps in use over that with an eps of 1e-20", worse="below",
        limits=(RuleLimit("GS602", "least_kept", "warning"),), groups=("setting",)),
    (OPTIMIZER_LOST_SHARE := "optimizer.lost_share"): SignalKind("share of entries",
        "entries of 16-bit weights with a gradient that one update leaves as they are: it is rounded away"),
    (OPTIMIZER_FEW_BITS := "optimizer.few_bits"): SignalKind("share of entries",
        "non-zero entries of the gradients that are at most four times the smallest number of fp16: of what lies below it nothing is left"),
    (OPTIMIZER_SLOW := "optimizer.slow"): SignalKind("× the rate",
        "smallest factor on the rate with which a few steps on a copy are calm and lower the loss by a tenth", groups=("ratio",)),
    (OPTIMIZER_EPS_LOST := "optimizer.eps_lost"): SignalKind("parameters", "parameters held in a format in which the optimizer's eps is 0, or, of an eps of exactly 0, entries with a gradient of 0"),
    (OPTIMIZER_UNDONE := "optimizer.undone"): SignalKind("share of the progress",
        "progress of a few steps on a copy, in ln(loss), that one thing takes away: a deep stack, weights, closed units, sums, wide scores or the rate"),
    (OPTIMIZER_MADE := "optimizer.made"): SignalKind("share of the way back",
        "how far steps at a lower rate, from the weights that a run began with, stay from a state that steps at the run's own rate bring them into"),
    (OPTIMIZER_UNSEEN := "optimizer.unseen"): SignalKind("share of the progress",
        "fall of ln(loss) of all rows by steps for half of them on a copy that one thing about data or graph takes away: a missing term of the node itself, a mask, a norm"),
    (OPTIMIZER_BY_HEART := "optimizer.by_heart"): SignalKind("share of the progress",
        "fall of ln(loss) by steps on a copy that steps for half of the rows do not bring about, where all nodes of a kind come with one vector"),
    (OPTIMIZER_FILLED := "optimizer.filled"): SignalKind("ln(loss)", "how much further trial steps come, at most, without the rows that fill graphs up"),
    (OPTIMIZER_INPUT_SHARE := "optimizer.input_share"): SignalKind("share of the progress",
        "progress of a few steps on a copy, in ln(loss), that the scale of an input takes away"),
    (OPTIMIZER_SOFTER := "optimizer.softer"): SignalKind("× best loss",
        "best loss of a few steps on a copy over that of the same steps with sharp attention softened", groups=("ratio",)),
    (OPTIMIZER_REVIVED := "optimizer.revived"): SignalKind("× best loss",
        "best loss of some steps on a copy over that of the same steps with the closed units opened", groups=("ratio",)),
    (OPTIMIZER_GROUP_RATE := "optimizer.group_rate"): SignalKind("× best loss",
        "best loss of a few steps on a copy over that of the same steps with one parameter group at the lowest rate of all groups", groups=("ratio",)),
    (OPTIMIZER_OVERSHOOT := "optimizer.overshoot"): SignalKind("",
        "1 − (slope after)/(slope before) along an update: the rate times the curvature, 2 where it ends as high on the other side"),
    (OPTIMIZER_MOMENTUM := "optimizer.momentum"): SignalKind("", "momentum of the optimizer, where it is 1 or more"),
    (OPTIMIZER_NEGATIVE_RATE := "optimizer.negative_rate"): SignalKind("", "learning rate of the optimizer, where it is below 0 or not finite"),
    (OPTIMIZER_DECAY := "optimizer.decay"): SignalKind("share per step",
        "learning rate times weight decay: what a step takes off every weight, where it is 0.02 or more"),
    (OPTIMIZER_CLIPPED_SCALED := "optimizer.clipped_scaled"): SignalKind("",
        "norm that is left of gradients which a run clips while they are still scaled: the limit over the scale"),
    (OPTIMIZER_LR_JUMP := "optimizer.lr_jump"): SignalKind("× the step before",
        "largest factor of the learning rate between two recorded steps that leads beyond every rate before"),
    (OPTIMIZER_STANDING := "optimizer.standing"): SignalKind("updates",
        "updates in a row, up to the end of a run, that have left every weight as it was"),
    (OPTIMIZER_NEVER_UPDATED := "optimizer.never_updated"): SignalKind("parameters",
        "trainable parameters that never received a gradient"),
    (LOSS := "loss"): SignalKind("", "training loss", heading="loss"),
    (LOSS_GROWTH := "loss.growth"): SignalKind("per step",
        "growth of |loss| per step that the gradient norm shares and that does not slow down; 0 for none"),
    (LOSS_FIRST_RISE := "loss.first_rise"): SignalKind("× first loss",
        "largest loss of steps 1 to 10 of the run over the loss of step 0"),
    (LOSS_OVER_ZERO := "loss.over_zero"): SignalKind("× the loss of an output of zeros",
        "loss of the model's output over that of an output of zeros", groups=("ratio",)),
    (LOSS_MARKED_TARGETS := "loss.marked_targets"): SignalKind("× the spread of the others",
        "distance from the other targets of a number that several of them hold"),
    (LOSS_TARGET_RMS := "loss.target_rms"): SignalKind("", "RMS of the targets of a squared error"),
    (LOSS_VALIDATION := "loss.validation"): SignalKind("", "validation loss"),
    (LOSS_GENERALISATION_GAP := "loss.generalisation_gap"): SignalKind("",
        "validation loss minus training loss, relative to the training loss"),
    (OUTPUT_TRAIN_EVAL_DIFFERENCE := "output.train_eval_difference"): SignalKind("",
        "relative RMS difference between train-mode and eval-mode outputs"),
    # Graph and data.
    (DEGREE_MEDIAN := "degree.median"): SignalKind("edges", "median in-degree of the targets with at least one edge"),
    (DEGREE_MEAN := "degree.mean"): SignalKind("edges", "mean in-degree over all nodes"),
    (DEGREE_MAX := "degree.max"): SignalKind("edges", "largest in-degree"),
    (DEGREE_ISOLATED_SHARE := "degree.isolated_share"): SignalKind("share of nodes", "nodes without incoming edges",
        spoken=("isolated nodes",)),
    (SUM_BY_HAND_SIZE := "sum.by_hand_size"): SignalKind("rows",
        "most rows that a sum of features into groups, in the model's own code, adds up"),
    (POOL_SUM_SIZE := "pool.sum_size"): SignalKind("nodes", "most nodes of a graph that a pooling adds up"),
    (DEGREE_ISOLATED_READ_SHARE := "degree.isolated_read_share"): SignalKind("share of nodes",
        "nodes without incoming edges whose output of a layer without root weight or self-loops the loss depends on"),
    (DEGREE_AT_MOST_ONE_SHARE := "degree.at_most_one_share"): SignalKind("share of nodes",
        "nodes with in-degree 0 or 1"),
    (GRAPH_SMALLEST := "graph.smallest"): SignalKind("nodes", "size of the smallest graph in the batch"),
    (AGGREGATION_EXPONENT := "aggregation.exponent"): SignalKind("", "p in RMS(sum aggregation) ∝ in-degree^p"),
    (AGGREGATION_RMS := "aggregation.rms"): SignalKind("", "RMS of a sum aggregator's output", words="size of the sums",
        floor=1.0, limits=(RuleLimit("GS401", "rms"),)),
    (FEATURE_RMS := "feature.rms"): SignalKind("", "RMS of the model's input node features"),
    (FEATURE_COLUMN_RATIO := "feature.column_ratio"): SignalKind("",
        "largest over median column RMS of the input features", groups=("ratio",)),
    (FEATURE_CONSTANT_SHARE := "feature.constant_share"): SignalKind("share of columns",
        "input columns without variance"),
    (FEATURE_NON_FINITE := "feature.non_finite"): SignalKind("entries", "NaN or Inf entries in the input"),
    # Every place on the way of the data, see `gnnstab.probe.places`; the layer is the name of the tensor or module.
    (PLACE_RMS := "place.rms"): SignalKind("", "RMS of the measured values of a tensor of the batch"),
    (PLACE_COLUMN_RATIO := "place.column_ratio"): SignalKind("", "largest over median column RMS of the measured values of a tensor"),
    (PLACE_OUTPUT := "place.output"): SignalKind("", "RMS of the model's output"),
    (PLACE_NON_FINITE := "place.non_finite"): SignalKind("entries", "NaN or Inf entries of a tensor of the batch"),
    (PLACE_DEAD_SHARE := "place.dead_share"): SignalKind("share of channels", "channels that a ReLU closes on at least 98 % of the rows"),
    (PLACE_CLAMPED_SHARE := "place.clamped_share"): SignalKind("share of entries", "entries that a clamp cuts, where its gradient is 0"),
    (PLACE_MASKED_WEIGHT := "place.masked_weight"): SignalKind("share of the weight", "softmax weight of entries that a factor of 0 was to mask"),
    (PLACE_LOST_DIGITS := "place.lost_digits"): SignalKind("share of the spread", "what a cast takes away of a tensor of the batch: RMS of the rounding over the standard deviation of its column; of what is looked up, distinct values"),
    (PLACE_FILLED_OUTPUT := "place.filled_output"): SignalKind("", "how far a mask's constant lies above every other entry of the output"),
    (PLACE_PADDING_WEIGHT := "place.padding_weight"): SignalKind("share of the weight", "softmax weight of real queries on keys that are padding"),
    (PLACE_WEIGHT_SUM := "place.weight_sum"): SignalKind("", "sum, farthest from 1, of the weights of a target whose softmax runs over something else than its sum"),
    (PLACE_ATTENTION_SUM := "place.attention_sum"): SignalKind("", "RMS of what an attention layer adds up, where that grows with the in-degree as no mean does"),
    (PLACE_RETAKEN_SOFTMAX := "place.retaken_softmax"): SignalKind("largest over smallest", "weights of a row, of a softmax that is given the weights of another one"),
    (PLACE_NORM_OVER_NODES := "place.norm_over_nodes"): SignalKind("nodes", "nodes of a set that a LayerNorm is taken over"),
    (PLACE_TORN_ROWS := "place.torn_rows"): SignalKind("nodes", "nodes of a set whose numbers a view hands to other rows"),
    (PLACE_LOST_WEIGHT := "place.lost_weight"): SignalKind("share of the weight", "softmax weight that a mask takes away behind the softmax, and nothing divides by the rest"),
    (PLACE_CLOSED_CONTENT := "place.closed_content"): SignalKind("share of sets", "sets whose mask closes the keys that differ and leaves open those that are all the same"),
    (PLACE_ALONE_DIFFERENCE := "place.alone_difference"): SignalKind("", "RMS change of a graph's output when it runs alone in place of in its batch, over its RMS"),
    (PLACE_ORDER_DIFFERENCE := "place.order_difference"): SignalKind("", "RMS change of the output when the graphs of the batch stand in the reverse order, over its RMS"),
    (PLACE_FILLED_DIFFERENCE := "place.filled_difference"): SignalKind("", "RMS change of the output when rows that fill graphs up are taken out of the batch, over its RMS"),
    (PLACE_CONSTANT_ROWS := "place.constant_rows"): SignalKind("share of nodes", "nodes without incoming edges that get one and the same output whatever the batch holds"),
    (PLACE_OVERFLOW := "place.overflow"): SignalKind("entries", "entries that an operation gives as Inf in fp16 although its operands are finite"),
    (PLACE_PLAIN_SCORES := "place.plain_scores"): SignalKind("entries", "entries of a plain tensor of a module that a softmax or a gate is taken of"),
    (PLACE_UNREACHED_TARGETS := "place.unreached_targets"): SignalKind("share of the variance", "variance of the targets beyond what the last operation of the output, a ReLU, sigmoid or tanh, can give"),
    (PLACE_TARGETS_LEFT := "place.targets_left"): SignalKind("share of the variance", "variance of the targets that the output leaves, of an error that compares them as they are"),
    (PLACE_BROADCAST_TARGETS := "place.broadcast_targets"): SignalKind("rows", "rows of the output that a loss compares with every target, in place of its own"),
    (PLACE_PASS_DIFFERENCE := "place.pass_difference"): SignalKind("", "RMS change of the output between two passes in evaluation mode, over its RMS"),
    (PLACE_SHARED_ANSWERS := "place.shared_answers"): SignalKind("share of the spread", "spread of the targets among nodes that get the same output"),
    (PLACE_PADDED_SPREAD := "place.padded_spread"): SignalKind("share of the spread", "spread of the real rows that a BatchNorm is given, over that of padded ones and real ones"),
    (PLACE_NORMALISED_AWAY := "place.normalised_away"): SignalKind("entries", "entries that are divided by their own size, which leaves the sign"),
    (PLACE_SIGNED_DIVISOR := "place.signed_divisor"): SignalKind("median over smallest", "size of the divisors of rows that are sums of what the rows hold and take both signs"),
    (PLACE_SATURATED_SHARE := "place.saturated_share"): SignalKind("share of entries", "entries of a tanh beyond ±0.97"),
    (PLACE_NODE_DIFFERENCE := "place.node_difference"): SignalKind("", "‖X − mean‖/‖X‖ over the nodes of a graph behind a module"),
    (PLACE_GRAPH_DIFFERENCE := "place.graph_difference"): SignalKind("× chance", "variance of the pooled states over graphs, relative to that of nodes drawn at random"),
    (PLACE_SIZE_RESPONSE := "place.size_response"): SignalKind("", "RMS change of the output when the numbers of every second graph are doubled, over its RMS"),
    (PLACE_POST_NORMS := "place.post_norms"): SignalKind("normalisations", "normalisations directly behind a residual sum"),
    (PLACE_WITHOUT_GRADIENT := "place.without_gradient"): SignalKind("parameters", "trainable parameters whose gradient is None after a backward"),
    (PLACE_GRADIENT_STOPS := "place.gradient_stops"): SignalKind("parameters", "trainable parameters behind an operation that hands no gradient on"),
    (PLACE_GAIN := "place.gain"): SignalKind("RMS·√fan_in", "gain of a weight that no normalisation follows; the RMS of a table of embeddings"),
    (PLACE_COPIED_UNITS := "place.copied_units"): SignalKind("units", "units of a weight that are alike, and whose gradients are"),
    (PLACE_ZERO_WEIGHTS := "place.zero_weights"): SignalKind("parameters", "weights that are all 0 and keep their gradients, or that of every matrix, at 0"),
    (PLACE_IDLE := "place.idle"): SignalKind("parameters", "parameters of a part that its layer was asked to leave out, or that no output depends on"),
    (PLACE_NOT_OWNED := "place.not_owned"): SignalKind("parameters", "weights that the loss depends on and model.parameters() does not hold"),
    (PLACE_UNREAD_RESULT := "place.unread_result"): SignalKind("entries", "entries of what a line of the model's own code computes and nothing reads"),
    (PLACE_UNIFORM_WEIGHTS := "place.uniform_weights"): SignalKind("targets", "targets whose attention weights are equal whatever the parameters are that their scores are made of"),
    (PLACE_NOT_HELD := "place.not_held"): SignalKind("parameters", "trainable parameters of the model that no optimizer holds"),
    # Weights alone.
    (LOGIT_SPECTRAL_QK := "logit.spectral_qk"): SignalKind("logit per unit²",
        "‖W_qᵀW_k‖₂/√C of a head, biases left out", words="largest gain of q·k", title="Spectral norm of W_qᵀW_k/√C", heading="‖QᵀK‖",
        spoken=("spectral norm",), floor=0.3, groups=("trend",)),
    (LOGIT_SPECTRAL := "logit.spectral"): SignalKind("logit per unit²",
        "‖M_h‖₂: M_h = Q̃ᵀK̃/√C of a head with its biases"),
    (LOGIT_FROBENIUS := "logit.frobenius"): SignalKind("logit",
        "‖M_h‖_F without the key-bias column: typical σ_w at an input of RMS 1", words="typical spread of q·k", floor=0.5,
        limits=(RuleLimit("GS301", "free_frobenius"),), groups=("trend",)),
    (LOGIT_ALIGNMENT := "logit.alignment"): SignalKind("",
        "√C·‖W_qᵀW_k‖_F / (‖W_q‖_F ‖W_k‖_F): 1 for independent weights, √C when one direction rules",
        groups=("trend",)),
    (LOGIT_EDGE_SPECTRAL := "logit.edge_spectral"): SignalKind("logit per unit²", "‖Q̃ᵀW_e/√C‖₂ of a head"),
    (GAIN_VALUE := "gain.value"): SignalKind("", "√(‖W_v‖_F²/D_in): RMS gain of the values", words="gain of the values",
        floor=0.5, groups=("trend",)),
    (GAIN_SKIP := "gain.skip"): SignalKind("", "√(‖W_s‖_F²/D_in): RMS gain of the linear skip", words="gain of the skip",
        floor=0.5, groups=("trend",)),
    (GAIN_LAMBDA_LOW := "gain.lambda_low"): SignalKind("ln per layer",
        "lower end of the static log gain per layer (independent nodes)", axis="linear"),
    (GAIN_LAMBDA_HIGH := "gain.lambda_high"): SignalKind("ln per layer",
        "upper end of the static log gain per layer (aligned nodes)", title="Log gain of the weights per layer", axis="linear"),
    (WEIGHT_NON_FINITE := "weight.non_finite"): SignalKind("entries", "NaN or Inf entries in a parameter", words="NaN or Inf entries",
        floor=1.0),
    (WEIGHT_NON_FINITE_BESIDE := "weight.non_finite_beside"): SignalKind("entries", "NaN or Inf entries in a parameter, in another file of a folder than the newest"),
    # Precision.
    (PRECISION_ROUNDING := "precision.rounding"): SignalKind("",
        "u·max|s|: relative rounding of the logits in the dtype of the run", words="rounding of scores", spoken=("rounding",), floor=0.01,
        limits=(RuleLimit("GS501", "warn_rounding", "warning"), RuleLimit("GS501", "error_rounding", "error"))),
    (PRECISION_FP16_HEADROOM := "precision.fp16_headroom"): SignalKind("×",
        "65504 over the largest |q·k| before the division by √C", words="headroom to fp16",
        title="Headroom to fp16: 65504 over the largest |q·k|", heading="fp16 room", spoken=("fp16 headroom",),
        worse="below", floor=100.0, limits=(RuleLimit("GS501", "overflow", "error"),), groups=("ratio",)),
    (PRECISION_STEPS_LEFT := "precision.steps_left"): SignalKind("steps",
        "steps until the result of an operation reaches an end of its number format at its present pace"),
    (PRECISION_UNDERFLOW_SHARE := "precision.underflow_share"): SignalKind("share of entries",
        "non-zero entries that fall below the dtype's smallest normal"),
}
# fmt: on

UNGIVEN = "without_gradient_at_end"
"""Entry of a trace's metadata: the parameters that showed no gradient at the run's end, neither in their own nor in what an optimizer keeps."""

NOT_SEEN = "not_seen"
"""Entry of a trace's metadata (a list), and of the context of its signals: what the look at a model and a batch did not see, in words."""

TRIALS_ENDED = "trials.ended"
"""Key of the metadata: seconds after which steps on copies were given up when the run ended."""

INVESTIGATION = "investigation"
"""Entry of a trace's metadata, and of the context of its signals: what undoing the suspects showed at the run's end."""

SINGULAR_OPERATION = re.compile(r"div|log|sqrt|pow|exp(?!and)|reciprocal|norm|std|var|acos|asin|tan|cosh|sinh")
"""Operations that can make a NaN or Inf of finite numbers, or a derivative that is none."""

OF_SITE: Mapping[str, str] = {kind.site: name for name, kind in SIGNALS.items() if kind.site}
"""Site of the light tier → the signal that is recorded there at every step."""


def in_group(group: str) -> tuple[str, ...]:
    """The signals of a group, in the order of the table."""
    return tuple(name for name, kind in SIGNALS.items() if group in kind.groups)


def compared() -> Mapping[str, SignalKind]:
    """The signals that are compared between two states of a network."""
    return {name: kind for name, kind in SIGNALS.items() if kind.floor is not None}
