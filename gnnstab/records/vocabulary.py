"""Every signal that gnnstab measures: its name, unit and meaning.

The probe and the checkpoint reader write these names, the rules ask for them, the reports print them.
ρ, Ĥ, M_h and λ are defined in the documentation of the signals (docs/signals.md).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SignalKind:
    """What one signal name stands for."""

    unit: str
    """Unit in words of the field; ``""`` for a plain number."""

    meaning: str
    """One line for reports."""


SIGNALS: dict[str, SignalKind] = {
    # Attention, measured on a graph (per head; head=None is the layer's aggregate over heads).
    "score.max_abs": SignalKind("logit", "largest |pre-softmax attention score|"),
    "score.min": SignalKind("logit", "smallest pre-softmax attention score"),
    "score.max": SignalKind("logit", "largest pre-softmax attention score"),
    "score.std": SignalKind("logit", "standard deviation of the scores over all edges and heads"),
    "score.within_std": SignalKind("logit", "RMS over targets (in-degree ≥ 3) of the score std within one target, σ_w"),
    "score.rho": SignalKind("", "σ_w² / (2 ln d): random-energy freezing parameter, 1 = frozen"),
    "score.growth": SignalKind("per step", "relative growth of max |score| per step, fitted over the recorded steps"),
    "attention.entropy": SignalKind(
        "fraction of ln(in-degree)", "mean attention entropy Ĥ over targets with in-degree ≥ 2"
    ),
    "attention.one_hot_share": SignalKind("share of node-heads", "share of node-heads with Ĥ < 0.1"),
    "attention.entropy_unit_input": SignalKind(
        "fraction of ln(in-degree)", "Ĥ when the layer's input is scaled to RMS 1"
    ),
    "attention.one_hot_share_unit_input": SignalKind("share of node-heads", "one-hot share at an input of RMS 1"),
    "gate.mean": SignalKind("", "mean of the beta gate"),
    "gate.saturated_share": SignalKind("share of nodes", "share of beta gates below 0.05 or above 0.95"),
    # Activations.
    "input.rms": SignalKind("", "RMS of the layer's input node features"),
    "input.max_abs": SignalKind("", "largest |entry| of the layer's input"),
    "output.rms": SignalKind("", "RMS of the layer's output"),
    "output.max_abs": SignalKind("", "largest |entry| of the layer's output"),
    "message.rms": SignalKind("", "RMS of the aggregated message α·v before the skip"),
    "skip.rms": SignalKind("", "RMS of the layer's own linear skip, lin_skip(x)"),
    "hub.message_share": SignalKind("", "RMS of the messages of the top-1 % in-degree targets over the skip's RMS"),
    "channels.dead_share": SignalKind(
        "share of channels", "channels of the layer's output that are 0 on all nodes after its ReLU"
    ),
    "channels.constant_share": SignalKind(
        "share of channels", "channels of the layer's input without variance over nodes"
    ),
    "tanh.saturated_share": SignalKind("share of entries", "entries of a tanh output beyond ±0.97"),
    "clip.share": SignalKind("share of entries", "entries that sit exactly on a clamp's limit"),
    "smoothness.relative": SignalKind("", "‖X − mean‖/‖X‖ of the layer's output, per graph"),
    "smoothness.relative_input": SignalKind("", "‖X − mean‖/‖X‖ of the layer's input, per graph"),
    # Gradients and updates.
    "gradient.input_rms": SignalKind("", "RMS of ∂L/∂(layer input)"),
    "gradient.output_rms": SignalKind("", "RMS of ∂L/∂(layer output)"),
    "gradient.ratio": SignalKind("", "RMS of ∂L/∂(node states) at the first over the last layer"),
    "gradient.slope": SignalKind("ln per layer", "slope of ln RMS(∂L/∂x) against depth, backwards (+ grows)"),
    "gradient.norm": SignalKind("", "L2 norm over all parameter gradients"),
    "gradient.spike": SignalKind("× running median", "largest gradient norm over its running median"),
    "weight.rms": SignalKind("", "RMS of a parameter"),
    "weight.grad_rms": SignalKind("", "RMS of a parameter's gradient"),
    "update.ratio": SignalKind("", "RMS(ΔW)/RMS(W) of one optimizer step"),
    "optimizer.lr_to_rms": SignalKind("", "learning rate over RMS(W): the relative size of Adam's first updates"),
    "optimizer.below_eps_share": SignalKind("share of entries", "entries with √v̂ below Adam's eps"),
    "optimizer.gradient_rms": SignalKind("", "RMS gradient recovered from Adam's second moment"),
    "optimizer.never_updated": SignalKind("parameters", "trainable parameters that never received a gradient"),
    "loss": SignalKind("", "training loss"),
    "loss.validation": SignalKind("", "validation loss"),
    "loss.generalisation_gap": SignalKind("", "validation loss minus training loss, relative to the training loss"),
    "output.train_eval_difference": SignalKind("", "relative RMS difference between train-mode and eval-mode outputs"),
    # Graph and data.
    "degree.median": SignalKind("edges", "median in-degree of the targets with at least one edge"),
    "degree.mean": SignalKind("edges", "mean in-degree over all nodes"),
    "degree.max": SignalKind("edges", "largest in-degree"),
    "degree.isolated_share": SignalKind("share of nodes", "nodes without incoming edges"),
    "degree.at_most_one_share": SignalKind("share of nodes", "nodes with in-degree 0 or 1"),
    "graph.smallest": SignalKind("nodes", "size of the smallest graph in the batch"),
    "aggregation.exponent": SignalKind("", "p in RMS(sum aggregation) ∝ in-degree^p"),
    "aggregation.rms": SignalKind("", "RMS of a sum aggregator's output"),
    "feature.rms": SignalKind("", "RMS of the model's input node features"),
    "feature.column_ratio": SignalKind("", "largest over median column RMS of the input features"),
    "feature.constant_share": SignalKind("share of columns", "input columns without variance"),
    "feature.non_finite": SignalKind("entries", "NaN or Inf entries in the input"),
    # Every place on the way of the data, see `gnnstab.probe.places`; the layer is the name of the tensor or module.
    "place.rms": SignalKind("", "RMS of the measured values of a tensor of the batch"),
    "place.column_ratio": SignalKind("", "largest over median column RMS of the measured values of a tensor"),
    "place.non_finite": SignalKind("entries", "NaN or Inf entries of a tensor of the batch"),
    "place.dead_share": SignalKind("share of channels", "channels that a ReLU closes on at least 98 % of the rows"),
    "place.clamped_share": SignalKind("share of entries", "entries that a clamp cuts, where its gradient is 0"),
    "place.saturated_share": SignalKind("share of entries", "entries of a tanh beyond ±0.97"),
    "place.node_difference": SignalKind("", "‖X − mean‖/‖X‖ over the nodes of a graph behind a module"),
    "place.graph_difference": SignalKind(
        "× chance", "variance of the pooled states over graphs, relative to that of nodes drawn at random"
    ),
    "place.post_norms": SignalKind("normalisations", "normalisations directly behind a residual sum"),
    "place.without_gradient": SignalKind("parameters", "trainable parameters whose gradient is None after a backward"),
    "place.idle": SignalKind("parameters", "parameters of a part that its layer was asked to leave out"),
    "place.not_owned": SignalKind(
        "parameters", "weights that the loss depends on and model.parameters() does not hold"
    ),
    "place.not_held": SignalKind("parameters", "trainable parameters of the model that no optimizer holds"),
    # Weights alone.
    "logit.spectral_qk": SignalKind("logit per unit²", "‖W_qᵀW_k‖₂/√C of a head, biases left out"),
    "logit.spectral": SignalKind("logit per unit²", "‖M_h‖₂: M_h = Q̃ᵀK̃/√C of a head with its biases"),
    "logit.frobenius": SignalKind("logit", "‖M_h‖_F without the key-bias column: typical σ_w at an input of RMS 1"),
    "logit.alignment": SignalKind(
        "", "√C·‖W_qᵀW_k‖_F / (‖W_q‖_F ‖W_k‖_F): 1 for independent weights, √C when one direction rules"
    ),
    "logit.edge_spectral": SignalKind("logit per unit²", "‖Q̃ᵀW_e/√C‖₂ of a head"),
    "gain.value": SignalKind("", "√(‖W_v‖_F²/D_in): RMS gain of the values"),
    "gain.skip": SignalKind("", "√(‖W_s‖_F²/D_in): RMS gain of the linear skip"),
    "gain.lambda_low": SignalKind("ln per layer", "lower end of the static log gain per layer (independent nodes)"),
    "gain.lambda_high": SignalKind("ln per layer", "upper end of the static log gain per layer (aligned nodes)"),
    "weight.non_finite": SignalKind("entries", "NaN or Inf entries in a parameter"),
    # Precision.
    "precision.rounding": SignalKind("", "u·max|s|: relative rounding of the logits in the dtype of the run"),
    "precision.fp16_headroom": SignalKind("×", "65504 over the largest |q·k| before the division by √C"),
    "precision.underflow_share": SignalKind(
        "share of entries", "non-zero entries that fall below the dtype's smallest normal"
    ),
}
