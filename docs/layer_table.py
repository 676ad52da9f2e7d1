"""The table of docs/layers.md, made from the adapters themselves."""

from __future__ import annotations

from gnnstab.layers import LAYERS, Layer

EDITS = {"scale_scores": "qk-clip", "reinitialise": "reinit-qk", "add_gate": "beta", "switch_skip_on": "root-weight"}
"""Edit of a layer → the fix that needs it."""


def rows() -> str:
    """The table, one row per kind."""
    lines = [
        "| kind | where softmax is called | in a bare file | under `torch.compile` | static spread or bound of the scores | fixes of the attention |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *map(_row, LAYERS)])


def _row(kind: Layer) -> str:
    compiled = "scores" if type(kind).traced_scores is not Layer.traced_scores else "input and output"
    fixes = [fix for edit, fix in EDITS.items() if kind.applies(edit)]
    fixes += ["qk-norm", "score-cap", "fp32-attention"] if kind.stable else []
    cells = (
        f"`{kind.kind}`",
        ", ".join(f"`{place}`" for place in kind.softmax_in) or "fused; computed once more from the inputs",
        "yes" if kind.essential else "counted" if kind.hint else "no",
        compiled,
        kind.static.replace("|", "\\|"),
        ", ".join(fixes) or "none",
    )
    return f"| {' | '.join(cells)} |"
