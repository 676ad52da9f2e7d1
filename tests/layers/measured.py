"""What gnnstab does with each kind of attention, measured; ``python tests/layers/measured.py`` writes docs/layers.json."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch_geometric.utils import softmax

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gnnstab
from gnnstab import fixes
from gnnstab.checkpoint._layers import find_layers
from gnnstab.errors import FixError
from gnnstab.layers import LAYERS, Layer, layer_named
from gnnstab.probe.recorder import Recorder
from gnnstab.records.vocabulary import LOGIT_FROBENIUS
from gnnstab.trace import TraceWriter
from layers.cases import CASES, Case, called, made

FILE = Path(__file__).resolve().parents[2] / "docs" / "layers.json"
FIXES = ("dropout", "qk-clip", "reinit-qk", "beta", "root-weight", "qk-norm", "score-cap", "fp32-attention")
"""The fixes that change an attention layer itself."""

SEEDS = 8
Row = dict[str, str]


class Net(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv = layer

    def forward(self, *args: Any) -> Any:
        out = self.conv(*args)
        return out[0] if isinstance(out, tuple) else out


def case_of(kind: Layer) -> Case:
    """The plain variant."""
    return next(case for case in CASES if case.kind == kind.kind)


def seen_live(kind: Layer) -> str:
    """What a diagnosis with a batch holds of the layer's scores and attention."""
    layer, arguments = made(case_of(kind))
    diagnosis = gnnstab.diagnose(Net(layer), batch=arguments, loss=lambda out, _: _joined(out).square().mean())
    names = {signal.name for signal in diagnosis.signals if signal.layer == "conv"}
    seen = {"scores": "score.max_abs", "attention": "attention.entropy"}
    return " and ".join(word for word, name in seen.items() if name in names) or "no"


def under_compile(kind: Layer) -> str:
    """What is seen inside a graph of torch.compile."""
    layer, arguments = made(case_of(kind))
    net = Net(layer.eval())
    torch.compiler.reset()
    with TraceWriter(None) as writer, Recorder(net, writer) as recorder:
        called(torch.compile(net, backend="aot_eager"), arguments)
        recorder.end_step()
        blind = {note.site for note in recorder.coverage.blind}
    torch.compiler.reset()
    return "input and output" if "score" in blind else "scores"


def in_a_file(kind: Layer) -> str:
    """What the names and shapes of its tensors tell."""
    layer, _ = made(case_of(kind))
    layers, blind, _ = find_layers({f"conv.{name}": tensor for name, tensor in layer.state_dict().items()})
    if layers:
        return "yes" if [stored.kind.kind for stored in layers] == [kind.kind] else "as another kind"
    return "counted" if any(kind.kind in note.site for note in blind) else "no"


def scores(kind: Layer) -> str:
    """`gnnstab.attention` beside what the layer itself hands to its softmax, or returns as its weights."""
    layer, arguments = made(case_of(kind))
    layer.eval()
    shown = gnnstab.attention(Net(layer), arguments)
    if kind.fused:
        own = layer(*arguments, need_weights=True, average_attn_weights=False)[1]
        told = shown[0].attention.T.reshape(own.shape)
        return "to 1e-6" if torch.allclose(told, own, rtol=0, atol=1e-6) else "differ"
    received: list[Tensor] = []

    def spy(src: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        received.append(src.detach().clone())
        return softmax(src, *args, **kwargs)

    with patch.dict(vars(sys.modules[type(layer).__module__]), softmax=spy), torch.no_grad():
        called(layer, arguments)
    told, own = (torch.cat([one.flatten() for one in each]) for each in ([one.score for one in shown], received))
    # HANConv calls its softmax once for each meta-path, which the calls here join by kinds of nodes.
    same = torch.equal(told, own) or (len(shown) != len(received) and torch.equal(told.sort()[0], own.sort()[0]))
    return "bit by bit" if same else "differ"


def identical(kind: Layer) -> str:
    """Output and gradients with a recorder and without."""
    results = []
    for watched in (False, True):
        layer, arguments = made(case_of(kind))
        net = Net(layer)
        with TraceWriter(None) as writer:
            recorder = Recorder(net, writer).__enter__() if watched else None
            out = called(net, arguments)
            if out.requires_grad:
                out.square().mean().backward()
            if recorder is not None:
                recorder.__exit__(None, None, None)
        results.append([out.detach(), *(p.grad for p in layer.parameters() if p.grad is not None)])
    plain, seen = results
    same = len(plain) == len(seen) and all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))
    return "identical" if same else "differ"


def spread(kind: Layer, width: int = 32, heads: int = 4, channels: int = 16) -> str:
    """The spread of the scores within a target that the weights tell over the measured one, fresh weights, RMS 1."""
    if not kind.essential:
        return "–"
    ratios = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        layer, arguments = _fresh(kind, width, heads, channels)
        ((stored,), _, _) = find_layers({f"conv.{name}": tensor for name, tensor in layer.state_dict().items()})
        found = gnnstab.attention(Net(layer), arguments)[0]
        within = found.score.view(40, -1, heads).var(1, correction=0).mean(0).sqrt()
        ratios.append((torch.tensor(stored.kind.logits(stored, heads)[LOGIT_FROBENIUS]) / within).mean())
    return f"{float(torch.stack(ratios).mean()):.2f}"


def _fresh(kind: Layer, width: int, heads: int, channels: int) -> tuple[Any, tuple[Any, ...]]:
    """A layer as its class draws it, and 40 targets with 50 sources each; of one relation where a kind has several."""
    if kind.fused:
        return nn.MultiheadAttention(width, heads), (torch.randn(40, width), *[torch.randn(50, width)] * 2)
    one = ("n", "to", "n")
    loops = {"add_self_loops": False} if "add_self_loops" in kind.defaults else {}
    edges = torch.stack([torch.randint(0, 400, (2000,)), torch.arange(40).repeat_interleave(50)])
    if kind.rowwise:
        layer = type(made(case_of(kind))[0])(width, channels, heads=heads, **loops)
        return layer, (torch.randn(400, width), edges)
    layer = type(made(case_of(kind))[0])(width, heads * channels, (["n"], [one]), heads)
    return layer, ({"n": torch.randn(400, width)}, {one: edges})


def fixes_that_apply(kind: Layer) -> str:
    """The fixes of the attention that find their place, and leave a model that runs."""
    cases = [case for case in CASES if case.kind == kind.kind]
    return ", ".join(name for name in FIXES if any(_applies(name, case) for case in cases)) or "none"


def _applies(name: str, case: Case) -> bool:
    layer, arguments = made(case)
    heads = gnnstab.attention(Net(layer), arguments)[0].score.shape[1]
    options = {"scores": {"conv": [99.0] * heads}, "degree": 4} if name == "qk-clip" else {}
    before = copy.deepcopy(layer)
    try:
        changed = fixes.apply(Net(layer), name, **options)
    except FixError:
        return False
    same = all(torch.equal(a, b) for a, b in zip(before.parameters(), changed.parameters(), strict=False))
    assert torch.isfinite(called(changed, arguments)).all(), name
    return not same or name not in ("qk-clip", "reinit-qk")


def _joined(out: Any) -> Tensor:
    return torch.cat([part.flatten() for part in (out.values() if isinstance(out, dict) else [out])])


COLUMNS: dict[str, Callable[[Layer], str]] = {
    "seen live": seen_live,
    "under `torch.compile`": under_compile,
    "in a bare file": in_a_file,
    "scores equal the layer's own": scores,
    "output and gradients": identical,
    "static over measured spread": spread,
    "fixes of the attention": fixes_that_apply,
}


def measured(kind: Layer, columns: Sequence[str] = tuple(COLUMNS)) -> Row:
    """One row of the table of docs/layers.md."""
    return {name: COLUMNS[name](kind) for name in columns}


if __name__ == "__main__":
    asked = sys.argv[1:] or [kind.kind for kind in LAYERS]
    known = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    rows = known | {name: measured(layer_named(name)) for name in asked}
    text = json.dumps({kind.kind: rows[kind.kind] for kind in LAYERS}, indent=1, ensure_ascii=False)
    FILE.write_text(text + "\n", encoding="utf-8")
