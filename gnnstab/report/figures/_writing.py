"""All figures of a diagnosis as files."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.figure import Figure

from gnnstab.errors import NothingEvaluable, UsageError
from gnnstab.records import Diagnosis
from gnnstab.records.vocabulary import ATTENTION_ENTROPY, GRADIENT_INPUT_RMS, SCORE_MAX_ABS
from gnnstab.report.evidence import Evidence
from gnnstab.report.figures._change import before_after
from gnnstab.report.figures._heat import heat_map
from gnnstab.report.figures._profile import depth_profile
from gnnstab.report.figures._scores import score_distribution, score_ranges, spectral_norms
from gnnstab.report.saving import write

HEAT_MAPS = (("scores", SCORE_MAX_ABS), ("entropy", ATTENTION_ENTROPY), ("gradients", GRADIENT_INPUT_RMS))
DISTRIBUTIONS = 6
"""Score distributions are drawn for so many layers, those with findings first."""

DPI = 160

_STILL: dict[str, dict[str, str | None]] = {"png": {"Software": None}, "svg": {"Date": None}}
"""Metadata without time and version of writing: the same diagnosis gives the same file."""


def write_all(diagnosis: Diagnosis, folder: str | os.PathLike[str]) -> list[Path]:
    """Write every figure that the diagnosis has the numbers for, as PNG and SVG; returns the paths in order.

    The folder is made when it is missing. Raises `UsageError` when it cannot be written to.
    """
    return write_figures(figures(diagnosis), folder)


def write_figures(named: Iterable[tuple[str, Figure]], folder: str | os.PathLike[str]) -> list[Path]:
    """Write (file name without ending, figure) pairs as PNG and SVG under matplotlib's own defaults; an iterator draws them so as well.

    Raises `UsageError` when the folder cannot be written to.
    """
    target = Path(folder)
    paths: list[Path] = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        with rc_context():
            # Matplotlib reads a file of settings in the working folder, whoever put it there: it may ask for LaTeX.
            rcdefaults()
            rcParams["svg.hashsalt"] = "gnnstab"  # In the place of random ids; no argument of savefig reaches it.
            for name, figure in named:
                paths += _save(figure, target, name)
    except OSError as error:
        raise UsageError(
            f"cannot write figures to {target}: {error.strerror or error}; choose another folder"
        ) from error
    return paths


def _save(figure: Figure, folder: Path, name: str) -> Iterator[Path]:
    for suffix, metadata in _STILL.items():
        path, drawn = folder / f"{name}.{suffix}", io.BytesIO()
        figure.savefig(drawn, format=suffix, dpi=DPI, metadata=metadata)
        write(path, drawn.getvalue())
        figure.set_layout_engine("none")  # solved once, the places of all things stay as they are
        yield path


def figures(diagnosis: Diagnosis) -> Iterator[tuple[str, Figure]]:
    """(file name without ending, figure) of every figure that the diagnosis has the numbers for."""
    makers: list[tuple[str, Callable[[], Figure]]] = [
        *((f"heat-{name}", partial(heat_map, diagnosis, signal)) for name, signal in HEAT_MAPS),
        ("depth-profile", partial(depth_profile, diagnosis)),
        ("score-ranges", partial(score_ranges, diagnosis)),
        ("spectral-norms", partial(spectral_norms, diagnosis)),
        ("before-after", partial(before_after, diagnosis)),
        # Layers are numbered, not named, in file names: a name can hold anything, a path separator too.
        *((f"scores-layer-{i}", partial(score_distribution, diagnosis, layer)) for i, layer in _chosen(diagnosis)),
    ]
    for name, make in makers:
        try:
            yield name, make()
        except NothingEvaluable:
            continue


def _chosen(diagnosis: Diagnosis) -> list[tuple[int, str]]:
    evidence = Evidence(diagnosis)
    found = [(i, layer) for i, layer in enumerate(evidence.layers) if evidence.distributions(layer)]
    found.sort(key=lambda item: (item[1] not in evidence.findings_by_layer, item[0]))
    return sorted(found[:DISTRIBUTIONS])
