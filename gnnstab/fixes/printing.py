"""Code to print: constructor calls with the user's own arguments, and lines of a forward pass."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from keyword import iskeyword
from typing import Any

from gnnstab.layers import LAYERS, layer_named
from gnnstab.records import LayerFacts


def constructor_call(layer: LayerFacts, kind: str | None = None, **extra: Any) -> str:
    """The layer's constructor with what is known of its arguments, changed by ``extra``.

    ``...`` stands for widths that the source of the facts could not show.
    """
    adapter = layer_named(layer)
    known = adapter.arguments(layer).items()
    shown = {k: v for k, v in known if v is not None and v != adapter.defaults.get(k) and k not in extra}
    arguments = adapter.positional(layer)
    arguments += [f"{name}={value!r}" for name, value in {**shown, **extra}.items()]
    return f"{kind or layer.kind}({', '.join(arguments)})"


def constructor_calls(layers: Sequence[LayerFacts], kind: str | None = None, **extra: Any) -> str:
    """One call per distinct layer, under a comment with the names of the layers that it is for."""
    by_call: dict[str, list[str]] = {}
    for layer in layers:
        by_call.setdefault(constructor_call(layer, kind, **extra), []).append(layer.name)
    if not by_call:
        return f"{kind or LAYERS[0].kind}(..., {', '.join(f'{k}={v!r}' for k, v in extra.items())})"
    return "\n".join(f"{call}  # {', '.join(names)}" for call, names in by_call.items())


def attribute_names(layers: Sequence[LayerFacts]) -> dict[str, str]:
    """Layer path → how its owner's forward would write it: ``gnn.gnn2.0`` → ``self.gnn2[0]``."""
    paths = {layer.name: layer.name.split(".") for layer in layers}
    shared = 0
    if paths:
        columns = list(zip(*paths.values(), strict=False))
        shared = next((i for i, column in enumerate(columns) if len(set(column)) > 1), max(len(columns) - 1, 0))
    # A list has to keep its name: `self.convs[0]`.
    while shared and any(p[shared].isdigit() for p in paths.values()):
        shared -= 1
    return {name: written("self", parts[shared:]) for name, parts in paths.items()}


def written(owner: str, parts: Sequence[str]) -> str:
    """The way from an owner to a module as code: ``self.convs[0]``; whatever a file calls a module stays a name.

    A part that is no identifier stands in quotation marks, ``getattr(self, 'a;b')``: the change is there to be copied.
    """
    for part in filter(None, parts):
        if part.isascii() and part.isdigit():
            owner += f"[{part}]"
        else:
            owner = f"{owner}.{part}" if variable(part) == part else f"getattr({owner}, {part!r})"
    return owner


def variable(name: str) -> str:
    """A name as code; ``value`` for what is none."""
    return name if name.isidentifier() and not iskeyword(name) else "value"


def on_one_line(text: object) -> str:
    """A foreign text for a comment, which it cannot end."""
    return " ".join(str(text).splitlines())


WIDTH = 71
"""Columns of code to paste, as far as its comments decide: a report of 80 indents it by 9."""


def with_narrow_comments(code: str) -> str:
    """The code with every comment that makes its line too wide above that line, as many lines as it needs."""
    return "\n".join(line for wide in code.splitlines() for line in _narrowed(wide))


def _narrowed(line: str) -> Iterator[str]:
    code, found, said = line.partition("  # ")
    alone, quoted = line.startswith("# "), line.startswith("#  ")
    # A mark inside of quotation marks begins no comment; a line of the user's that is quoted stays one.
    if len(line) <= WIDTH or quoted or not (found or alone) or code.count("'") % 2 or code.count('"') % 2:
        yield line
        return
    code, said = ("", line[2:]) if alone else (code.rstrip(), said.lstrip())
    indent = code[: len(code) - len(code.lstrip())]
    mark = f"{indent}# "
    yield from textwrap.wrap(said, WIDTH, initial_indent=mark, subsequent_indent=mark, break_on_hyphens=False)
    if code:
        yield code


def looped(blocks: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """The lines of every layer, each under how its owner writes it; neighbours in one list with the same lines become a loop."""

    def alike(block: tuple[str, Sequence[str]]) -> tuple[str, ...]:
        written, lines = block
        return (_listed(written)[0], *(line.replace(written, "layer") for line in lines))

    shown: list[str] = []
    for (listed, *body), group in groupby(blocks, alike):
        own = list(group)
        places = [_listed(written)[1] for written, _ in own] if listed else []
        if len(places) > 1 and places == list(range(places[0], places[-1] + 1)):
            shown += [f"for layer in {listed}[{places[0]}:{places[-1] + 1}]:", *(f"    {line}" for line in body)]
        else:
            shown += [line for _, lines in own for line in lines]
    return shown


def _listed(written: str) -> tuple[str, int]:
    """``self.convs[2]`` → (``self.convs``, 2); no name for what stands in no list."""
    found = re.fullmatch(r"(.+)\[(\d+)\]", written)
    return (found[1], int(found[2])) if found else ("", -1)


def layer_call(layer: LayerFacts, written: str, x: str = "x") -> str:
    """``self.gnn1(x, edge_index, edge_attr)``."""
    return f"{written}({x}, edge_index, edge_attr)" if layer.edge_dim else f"{written}({x}, edge_index)"


def activated(layer: LayerFacts, call: str) -> str:
    """The call inside its activation; ``act`` where the activation is not known."""
    if layer.activation == "":
        return call
    return f"{f'torch.{layer.activation}' if layer.activation else 'act'}({call})"


ACT = "act = torch.relu  # or the activation that stands between your layers"
"""What a change begins with that calls ``act``."""
