"""Well-known advice that would not help, or would harm, on this target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from gnnstab.records import Advice, Finding, Signals
from gnnstab.rules.explanation import is_warning
from gnnstab.rules.queries import degree_of, largest, measured, smallest


def advice(findings: Sequence[Finding], signals: Signals) -> tuple[Advice, ...]:
    """Each of W1 to W12 where it matters on this target, with the measured or derived number."""
    codes = {f.code for f in findings if is_warning(f)}
    return tuple(Advice(code, *told) for code, check in _CHECKS.items() for told in check(codes, signals))


Told = tuple[str, str]
"""The advice in a few words, and why not here."""

Check = Callable[[set[str], Signals], Iterator[Told]]


def _dropout(codes: set[str], signals: Signals) -> Iterator[Told]:
    off = signals.attention_layers and all(layer.dropout == 0 for layer in signals.attention_layers)
    if "GS204" in codes:
        yield (
            "add dropout",
            f"gradients explode{_ratio(signals)}; dropout 0.1 raises the message RMS ×1.05, 0.5 ×1.42: it explodes more",
        )
    elif off and codes & {"GS301", "GS302", "GS401"}:
        yield (
            "add dropout",
            f"dropout=0.1 leaves the scores as they are{_scores(signals)} and raises the message RMS in training ×1.05",
        )


def _beta(codes: set[str], signals: Signals) -> Iterator[Told]:
    if codes & {"GS203", "GS103"}:
        yield (
            "set beta=True",
            f"gradients vanish{_ratio(signals)}; the gate halves skip and message: at 16 layers it made the ratio 1e5 times smaller",
        )


def _small_residual(codes: set[str], signals: Signals) -> Iterator[Told]:
    if codes & {"GS203", "GS103"}:
        yield (
            "add 0.1·x as a residual",
            f"gradients vanish{_ratio(signals)}; at 16 layers a weight of 0.1 moved the ratio from 1.4e-5 to 2.1e-5, a weight of 1.0 trains",
        )
    if "GS204" in codes:
        yield (
            "add a residual",
            f"gradients explode{_ratio(signals)}; an identity on large gains adds .13 to .15 to the log gradient per layer: set the gain first",
        )


def _depth_scaled(codes: set[str], signals: Signals) -> Iterator[Told]:
    layers = signals.attention_layers
    if codes & {"GS203", "GS103", "GS204", "GS201"}:
        depth = signals.depth
        yield (
            "depth-scaled Xavier initialisation",
            f"a gain of 1/√(1+L) is {(1 + depth) ** -0.5:.2f} at {depth} layers and without an identity path makes gradients vanish (ratio 1.4e-11 at 16 layers); use it with an identity of weight 1.0 only",
        )
    if layers and (codes & {"GS203", "GS103", "GS204", "GS201"} or _init_missed(signals)):
        linears = sum(4 + (layer.edge_dim not in (None, 0)) for layer in layers)
        yield (
            "initialise with isinstance(m, nn.Linear)",
            f"it reaches none of the {linears} linear maps inside the {len(layers)} attention layers: PyG's Linear is not a subclass of torch.nn.Linear",
        )


def _graph_norm(codes: set[str], signals: Signals) -> Iterator[Told]:
    sizes = measured(signals.find("graph.smallest"))
    if sizes and smallest(sizes).value <= 2:
        size = smallest(sizes).value
        effect = "its output is exactly the bias" if size <= 1 else "its output keeps the sign of the features alone"
        yield (
            "add GraphNorm",
            f"the smallest graph of the batch has {size:.0f} node{'s' if size > 1 else ''}: {effect}",
        )
    elif signals.depth >= 8 and codes & {"GS203", "GS204", "GS103", "GS704"}:
        yield (
            "add GraphNorm after each layer",
            f"without an identity path gradients then grow ×1.25 to ×1.6 per layer, over {signals.depth} layers ×{1.25**signals.depth:.0f} to ×{1.6**signals.depth:.0f}",
        )


def _score_cap(codes: set[str], signals: Signals) -> Iterator[Told]:
    if not codes & {"GS301", "GS302"}:
        return
    degree = degree_of(signals, None)
    if degree is not None and 1 < degree <= 200:
        tau = 3 * math.sqrt(2 * math.log(max(degree, 2.0)))
        yield (
            "clip or soft-cap the scores at 50 or 100",
            f"at median in-degree {degree:g} attention is saturated long before{_scores(signals)}; a cap that does something is 3√(2 ln d) = {tau:.1f}, after subtracting the mean of each target",
        )


def _orthogonal(codes: set[str], signals: Signals) -> Iterator[Told]:
    labels = [str(layer.initialisation) for layer in signals.attention_layers if layer.initialisation]
    label = signals.context.get("linear_initialisation")
    seen = [text for text in [*labels, str(label or "")] if text.startswith("orthogonal")]
    if seen and 0 < signals.depth <= 4:
        yield (
            "replace the orthogonal initialisation",
            f"{seen[0]} at {signals.depth} attention layers: at 4 layers or fewer no initialisation made a measurable difference",
        )
    elif seen and "GS204" not in codes and _small_gain(signals):
        yield (
            "replace the orthogonal initialisation",
            "orthogonal and Xavier of the same gain behaved alike in every measurement, and the gain here is at most 1",
        )


def _phases(codes: set[str], signals: Signals) -> Iterator[Told]:
    if "GS401" not in codes:
        return
    rms = measured(signals.find("aggregation.rms"))
    size = f" (its output has RMS {largest(rms).value:.2g})" if rms else ""
    yield (
        "dropout, beta, residual, GraphNorm or clipping first",
        f"a sum aggregation drives the scores{size}: on the benchmark of gnnstab dropout 0.1 with beta took max|s| from 77 to 102; treat the aggregation first",
    )


def _mean(codes: set[str], signals: Signals) -> Iterator[Told]:
    if "GS401" in codes:
        yield (
            "replace the sum by a mean",
            "without a term of the node itself its identity drops to 1/n: on the benchmark of gnnstab R² −.04 at 50 nodes against .92 with h + lin_root(x)",
        )


def _learning_rate(codes: set[str], signals: Signals) -> Iterator[Told]:
    if codes & {"GS301", "GS302", "GS401", "GS601"}:
        yield (
            "multiply the learning rate by 0.7",
            f"that changes little{_scores(signals)}: on the benchmark of gnnstab it brought max|s| from 10.3 to 9.5; if the step is too large, divide by 3",
        )


def _agents(codes: set[str], signals: Signals) -> Iterator[Told]:
    if not codes & {"GS401", "GS302"}:
        return
    degree, most = degree_of(signals, None), measured(signals.find("degree.max"))
    if degree is not None:
        top = f", at most {largest(most).value:.0f}" if most else ""
        yield (
            "blame the number of agents",
            f"what matters is the in-degree, here {degree:g} in the median{top}, not the number of nodes",
        )


def _skipped_residual(codes: set[str], signals: Signals) -> Iterator[Told]:
    changing = [layer for layer in signals.attention_layers if _changes_width(layer)]
    if changing and codes & {"GS203", "GS204", "GS103"}:
        yield (
            "add the residual where shapes agree",
            f"{changing[0].name} changes the width: a residual guarded by `if x.shape == out.shape` is skipped there without a word; project x first",
        )


_CHECKS: Mapping[str, Check] = {
    "W1": _dropout,
    "W2": _beta,
    "W3": _small_residual,
    "W4": _depth_scaled,
    "W5": _graph_norm,
    "W6": _score_cap,
    "W7": _orthogonal,
    "W8": _phases,
    "W9": _learning_rate,
    "W10": _mean,
    "W11": _agents,
    "W12": _skipped_residual,
}


def _ratio(signals: Signals) -> str:
    found = signals.find("gradient.ratio")
    return f" (ratio {found[0].value:.2g} over {signals.depth} layers)" if found else ""


def _scores(signals: Signals) -> str:
    found = measured(signals.find("score.max_abs"))
    if not found:
        return ""
    size, layer = max((max(s.value, float(s.detail.get("worst", 0.0))), str(s.layer)) for s in found)
    return f" (here max|s| = {size:.3g} at {layer})"


def _init_missed(signals: Signals) -> bool:
    label = str(signals.context.get("linear_initialisation") or "")
    missed = all(str(layer.initialisation).startswith("pyg") for layer in signals.attention_layers)
    return missed and bool(label) and not label.startswith(("pyg", "torch", "unknown"))


def _small_gain(signals: Signals) -> bool:
    gains = [s.value for name in ("gain.value", "gain.skip") for s in signals.find(name)]
    return bool(gains) and max(gains) <= 1.05


def _changes_width(layer: object) -> bool:
    width = getattr(layer, "in_channels", None)
    out, heads, concat = (getattr(layer, name, None) for name in ("out_channels", "heads", "concat"))
    if width is None or out is None or heads is None or concat is None:
        return False
    return bool(width[1] != (out * heads if concat else out))
