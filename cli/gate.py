"""The steps that `diagnose` and `check` share: settings → diagnoses → suppression and baseline → reports → exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gnnstab.characters import counted
from gnnstab.config import Settings, accept, load
from gnnstab.config.validating import validate
from gnnstab.errors import ConfigurationError, GnnstabError, NothingEvaluable, UsageError, let_through, printable

from . import interrupt, output
from .group import ERROR, FINDINGS, NOTHING_EVALUABLE

if TYPE_CHECKING:
    from gnnstab.records import Diagnosis

WORSE = (0, NOTHING_EVALUABLE, FINDINGS, ERROR)
"""Exit codes, the worst last: with several targets the worst one counts."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the options of `check` and `diagnose` say beyond how to observe the targets."""

    chosen: Settings
    outputs: Sequence[tuple[str, Path]]
    update_baseline: bool
    strict: bool
    quiet: bool
    verbose: bool
    plots: Path | None
    brief: bool
    """One line for a target in which nothing was found."""

    @classmethod
    def take(cls, given: dict[str, Any], *, brief: bool = False) -> Request:
        """Take the options of settings and reports out of ``given``; what stays are arguments of `diagnose`."""
        take = given.pop
        where = (take("config_file"), take("isolated"))
        chosen = settings(
            *where, **{key: take(key) for key in ("fail_on", "select", "ignore", "baseline", "format", "docs_url")}
        )
        outputs, plots = output.parse(take("outputs")), take("plots")
        flags = {key: take(key) for key in ("update_baseline", "strict", "quiet", "verbose")}
        return cls(chosen, outputs, plots=Path(plots) if plots else None, brief=brief, **flags)


class _Lost(NamedTuple):
    """A target that has no diagnosis."""

    code: int
    """Exit code."""

    stub: Diagnosis
    """What reports say of it."""

    error: Exception


def settings(config_file: str | None, isolated: bool, **given: Any) -> Settings:
    """The configuration file's settings, overridden by what the command line gives."""
    found = load(Path.cwd(), file=Path(config_file) if config_file else None, isolated=isolated)
    return validate(found.override("command line", **given))


def run(targets: Sequence[str], request: Request, **observe: Any) -> int:
    """Diagnose every target, report, and say how it went as an exit code."""
    from gnnstab import baseline
    from gnnstab.report.summary import state

    chosen = request.chosen
    written = [path for _, path in request.outputs] + ([_baseline_path(chosen)] if request.update_baseline else [])
    output.refuse_inputs(written, _inputs(targets, chosen, observe, request.update_baseline))
    known = None if request.update_baseline or chosen.baseline is None else baseline.read(Path(chosen.baseline))
    if request.update_baseline:
        _check_replaceable(_baseline_path(chosen))
    diagnoses, lost = _diagnose_all(targets, chosen, observe)
    failed, stubs = [one.code for one in lost], [one.stub for one in lost]
    if lost and not diagnoses:
        _write_failed(stubs, request)
        if len(targets) == 1:
            raise lost[0].error
    accepted = accept(diagnoses, chosen.suppressions, date.today())
    for complaint in accepted.complaints:
        output.complain(complaint)
    for note in (note for d in accepted.diagnoses for note in d.target.notes if " as one run, " in note):
        output.complain(note, "note")
    if output.complain_of_unread(accepted.diagnoses):
        failed.append(ERROR)
    judged = accepted.diagnoses if known is None else tuple(known.apply(d) for d in accepted.diagnoses)
    if judged:
        _report(judged, request, stubs)
    if request.update_baseline and not failed:
        output.write(_baseline_path(chosen), baseline.dump(judged))
        output.told(f"wrote {counted(sum(len(d.findings) for d in judged), 'finding')} to {chosen.baseline}")
        return 0
    if request.update_baseline:
        output.complain("the baseline was not written: it would lose what is known of the targets that failed")
    codes = [d.exit_code(chosen.fail_on) for d in judged]
    unjudged = codes.count(NOTHING_EVALUABLE) + failed.count(NOTHING_EVALUABLE)
    if request.strict:
        codes += [NOTHING_EVALUABLE for d in judged if state(d) == "nothing-found"]
    code = max([*failed, *codes], key=WORSE.index)
    # Of a target in which nothing was found, or that cannot be judged, its one line says so already.
    told = any(d.at_least("warning") for d in judged) or (code and (request.strict or len(targets) > 1))
    if request.brief and not request.quiet and told and judged and chosen.format == "text":
        output.show(f"{'failed' if code else 'passed'}: {_why(code, judged, chosen.fail_on, unjudged)}\n")
    return code


def _why(code: int, judged: Sequence[Diagnosis], fail_on: str, unjudged: int) -> str:
    """Why a check passed or failed, in words; ``unjudged``: targets of which nothing could be judged."""
    from gnnstab.report.summary import severities

    failing = [finding for d in judged for finding in d.at_least(fail_on)]
    below = [f for d in judged for f in d.findings if f not in failing]
    less = f", {severities(below)} below it" if below else ""
    return {
        0: f"nothing at or above --fail-on {fail_on}{less}",
        FINDINGS: f"{severities(failing)} at or above --fail-on {fail_on}",
        NOTHING_EVALUABLE: f"{counted(unjudged, 'target')} could not be judged"
        if unjudged
        else "--strict asks for every check, and some were not run",
    }.get(code, "a target, or a file of it, could not be read")


def _inputs(targets: Sequence[str], chosen: Settings, observe: dict[str, Any], replaced: bool) -> list[str]:
    """The files that are read, as far as their names are given; of ``pkg.mod:factory`` the module's."""
    modules = [str(observe[name]).partition(":")[0] for name in ("model", "loss") if observe.get(name)]
    inputs = [*targets, *modules, *(f"{name.replace('.', os.sep)}.py" for name in modules)]
    inputs += [str(observe["batch"])] if observe.get("batch") else []
    inputs += sorted(set(chosen.origins.values()))
    return inputs + ([str(chosen.baseline)] if chosen.baseline is not None and not replaced else [])


def _baseline_path(chosen: Settings) -> Path:
    if chosen.baseline is None:
        raise UsageError("--update-baseline needs to know where: pass --baseline FILE")
    return Path(chosen.baseline)


def _check_replaceable(path: Path) -> None:
    """Raise `UsageError` unless the file can be written and is a baseline, or not there."""
    from gnnstab import baseline

    output.check_writable(path)
    try:
        if path.exists():
            baseline.read(path)
    except ConfigurationError as error:
        raise UsageError(
            f"{error}; --update-baseline replaces baselines only: remove the file or name another"
        ) from error


def _diagnose_all(
    targets: Sequence[str], chosen: Settings, options: dict[str, Any]
) -> tuple[list[Diagnosis], list[_Lost]]:
    """The diagnoses, and the targets that have none; of several targets standard error names these."""
    from gnnstab.diagnosis import diagnose

    diagnoses: list[Diagnosis] = []
    failed: list[_Lost] = []
    with progress() as tell:
        for target in targets:
            try:
                diagnoses.append(
                    diagnose(
                        target,
                        select=chosen.select or None,
                        ignore=chosen.ignore or None,
                        thresholds=chosen.thresholds or None,
                        overrides=chosen.overrides(),
                        progress=tell,
                        **options,
                    )
                )
            except GnnstabError as error:
                why = " ".join(str(error).split())
                code = NOTHING_EVALUABLE if isinstance(error, NothingEvaluable) else ERROR
                failed.append(_Lost(code, _undiagnosed(target, why), error))
            except Exception as error:
                let_through(error)
                why = f"{type(error).__name__}: {printable(str(error), 200)}"
                why = f"{printable(target, 200)}: cannot be diagnosed ({why}, unexpected)"
                failed.append(_Lost(ERROR, _undiagnosed(target, why), error))
            else:
                continue
            if len(targets) > 1:
                output.complain(why, "error")
    return diagnoses, failed


def _undiagnosed(target: str, why: str) -> Diagnosis:
    """A target of which nothing is known but that it could not be diagnosed."""
    from gnnstab.records import Coverage, Diagnosis, Target

    note = f"left out {why}"
    return Diagnosis(Target("checkpoint", target, (note,)), Coverage(0, 0), (), (), (), context={"left_out": [note]})


def _write_failed(lost: Sequence[Diagnosis], request: Request) -> None:
    """Write the reports of a run that has judged nothing: the one that stands there would be taken for its result."""
    try:
        _write_all((), request, lost)
    except GnnstabError as error:  # Why the run failed is told as well.
        output.complain(str(error))


def _shown(diagnoses: Sequence[Diagnosis], lost: Sequence[Diagnosis], format: str) -> Diagnosis | Sequence[Diagnosis]:
    """All targets; ``lost`` ones as notes of the first in a format that holds one."""
    from gnnstab.report import holds_several

    first, *others = [*diagnoses, *lost]
    if others and len(diagnoses) < 2 and not holds_several(format):
        notes = [note for one in others for note in one.context["left_out"]]
        context = {**first.context, "left_out": [*first.context.get("left_out", ()), *notes]}
        return replace(first, target=replace(first.target, notes=(*first.target.notes, *notes)), context=context)
    return [first, *others] if others else first


def _options(request: Request) -> dict[str, Any]:
    chosen = request.chosen
    return {
        "root": str(Path.cwd()),
        "fail_on": chosen.fail_on,
        "verbose": request.verbose,
        "docs_url": chosen.docs_url,
    }


def _write_all(diagnoses: Sequence[Diagnosis], request: Request, lost: Sequence[Diagnosis]) -> None:
    from gnnstab.report import render, supported

    for format, path in request.outputs:
        shown, options = _shown(diagnoses, lost, format), supported(format, _options(request))
        output.write(path, render(shown, format, face="cli", **options))
        if not request.quiet:
            output.told(f"wrote {path}")


def _report(diagnoses: Sequence[Diagnosis], request: Request, lost: Sequence[Diagnosis]) -> None:
    """``lost`` stand in every report, which must not be calm where the command fails; who reads the screen is told on standard error."""
    from gnnstab.report import render, supported

    _write_all(diagnoses, request, lost)
    if request.plots is not None:
        from gnnstab.report.figures import write_all

        for position, diagnosis in enumerate(diagnoses):
            write_all(diagnosis, request.plots if len(diagnoses) == 1 else request.plots / str(position))
    format = request.chosen.format
    on_screen = {**_options(request), **output.terminal(), "quiet": request.quiet, "brief": request.brief}
    shown = _shown(diagnoses, () if format == "text" else lost, format)
    output.show(render(shown, format, face="cli", **supported(format, on_screen)), format)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A line on standard error that says what is being done, on a terminal only and not under NO_COLOR; gone when it ends."""
    # Such a line moves the cursor, which who wants no colour, as a screen reader, wants no more.
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        yield lambda _: interrupt.obey()
        return
    from rich.console import Console
    from rich.text import Text

    from gnnstab.report.escape import name

    def tell(doing: str) -> None:
        interrupt.obey()
        status.update(Text(name(doing, 70)))

    with Console(stderr=True).status("starting") as status:
        yield tell
