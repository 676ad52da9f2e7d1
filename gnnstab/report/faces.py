"""Texts in the words of the face that shows them: ``batch=`` in Python, ``--batch FILE`` at the command line.

Rules and errors are written once, in either form; what a report prints is translated when it is rendered, as are the terms that
only the manual explains. What the reader has passed already is not asked for again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

from gnnstab.errors import UsageError
from gnnstab.fixes.table import FIXES
from gnnstab.records import Diagnosis, Target

FACES = ("python", "cli")

_Replacement = str | Callable[[re.Match[str]], str]

_MODEL_AND_BATCH = r"--model(?: pkg\.mod:\w+)?,? (?:and )?--batch(?: FILE)?"


def _fix_in_python(match: re.Match[str]) -> str:
    options = ",".join(re.findall(r"--option (\S+=[^\s,]+)", match["options"]))
    return f'gnnstab.verify(model, ["{match["name"]}{f":{options}" if options else ""}"], batch=batch)'


_TO_PYTHON: tuple[tuple[str, _Replacement], ...] = (
    (r"gnnstab verify --fix (?P<name>[\w-]+)(?P<options>(?: --option \S+=[^\s,]+)*)", _fix_in_python),
    (r"diagnose --verify", "diagnose(…, verify=True)"),
    (_MODEL_AND_BATCH, "model=, batch="),
    (r"--model(?: pkg\.mod:\w+)?", "model="),
    (r"--batch(?: FILE)?", "batch="),
    (r"--loss(?: pkg\.mod:\w+)?", "loss="),
    (r"--verify", "verify=True"),
    (r"--(heads|activation) (?:N|NAME)\b", r"\1="),
    (r"--(heads|activation|precision) (\w+)", r"\1=\2"),
    (r"--(heads|activation|precision)", r"\1="),
)
_TO_CLI: tuple[tuple[str, _Replacement], ...] = (
    (
        r"pass the model with batch=, loss= and optimizer=",
        "gnnstab.diagnose(model, batch=…, loss=…, optimizer=…) takes them, in Python",
    ),
    (r"pass optimizer= to have its", "gnnstab.diagnose(…, optimizer=…) takes one, in Python, to have its"),
    (r"\bpass optimizer=", "gnnstab.diagnose(…, optimizer=…) takes it, in Python"),
    (r"\bmodel=, batch=(?![\w\"'…])", "--model pkg.mod:factory --batch FILE"),
    (r"\bmodel=(?![\w\"'…])", "--model pkg.mod:factory"),
    (r"\bbatch=(?![\w\"'…])", "--batch FILE"),
    (r"\bloss=(?![\w\"'…])", "--loss pkg.mod:function"),
    (r"\bverify=True", "--verify"),
    (r"\bpass lr=", "pass --lr"),
    (r"\bheads=(?![\w\"'…])", "--heads N"),
    (r"\bactivation=(?![\w\"'…])", "--activation NAME"),
    (r"\bheads=(\w+) (contradicts|does not divide)", r"--heads \1 \2"),
)
_PLAIN: tuple[tuple[str, _Replacement], ...] = (
    (r"(?:at|to) an input of RMS 1\b", "with the input scaled to size 1"),
    (r"\bat RMS 1\b(?!\.)", "with the input scaled to size 1"),
    (r"(?:of )?(?:the )?node-heads are one-hot", "of the attention rows look at one neighbour alone"),
    (r"\bnode-heads\b", "attention rows (one node, one head)"),
    (r"\bthe static gain\b", "the gain of the weights alone"),
    (r"\bstatic gain\b", "gain of the weights alone"),
    (r"Ĥ", "attention entropy"),
)
_RECORDED: tuple[tuple[str, _Replacement], ...] = (
    # A trace takes no model and no batch beside it: those make a diagnosis of their own.
    (rf"[Pp]ass the model to see it \({_MODEL_AND_BATCH}\)", "diagnose the model with a batch to see it"),
    (rf"[Pp]ass the model and a batch(?: \({_MODEL_AND_BATCH}\))?", "diagnose the model with a batch"),
    (r"[Pp]ass (?:--model(?: pkg\.mod:\w+)? )?--batch(?: FILE)?", "diagnose the model with a batch"),
    (r"[Pp]ass --model(?: pkg\.mod:\w+)?", "diagnose the model"),
    (r"[Pp]ass the model(?: \(--model(?: pkg\.mod:\w+)?\))?", "diagnose the model"),
    (r"[Pp]ass (?:a|the) checkpoint or (?:a|the) model", "diagnose the model"),
    (r"[Pp]ass a batch(?: \(--batch FILE\))?", "diagnose the model with a batch"),
)
_HAS_MODEL: tuple[tuple[str, _Replacement], ...] = (
    (r"([Pp]ass) the model to see it", r"\1 a batch to see it"),
    (r"([Pp]ass) the model and a batch", r"\1 a batch"),
    (_MODEL_AND_BATCH, "--batch FILE"),
)
_ASKS = r"(?:the model and a batch|the model|a batch|a loss|--model[^;.]*|--batch(?: FILE)?|--loss(?: pkg\.mod:\w+)?)"
_PASSED: tuple[tuple[str, _Replacement], ...] = ((rf"[;:,]? ?\b[Pp]ass {_ASKS}(?: to see it)?(?: \([^)]*\))?$", ""),)
"""A text that ends by asking for what was given ends earlier; one that goes on after it says something else with it."""


def speak(text: str, face: str) -> str:
    """``text`` with the options of the one face in the form of the other; ``face`` is one of `FACES`."""
    if face not in FACES:
        raise UsageError(f"unknown face {face!r}; choose from {', '.join(FACES)}")
    return _changed(text, _TO_PYTHON if face == "python" else _TO_CLI)


def plain(text: str) -> str:
    """``text`` with the terms that only the manual explains in everyday words."""
    return _changed(text, _PLAIN)


def spoken(diagnosis: Diagnosis, face: str = "python") -> Diagnosis:
    """The diagnosis with every sentence in the words of ``face``, in plain terms, and without a call for what was given."""
    target, given = diagnosis.target, _given(diagnosis)
    say = partial(_say, target=target, given=given, face=face)
    return replace(
        diagnosis,
        coverage=replace(
            diagnosis.coverage,
            blind=tuple(replace(b, reason=say(b.reason)) for b in diagnosis.coverage.blind),
            assumptions=tuple(map(say, diagnosis.coverage.assumptions)),
        ),
        causes=tuple(
            replace(c, reason=say(c.reason), fixes=tuple(replace(f, note=say(f.note)) for f in c.fixes))
            for c in diagnosis.causes
        ),
        findings=tuple(replace(f, message=say(f.message), unit=plain(f.unit)) for f in diagnosis.findings),
        rules=tuple(replace(r, reason=say(r.reason)) for r in diagnosis.rules),
        advice=tuple(replace(a, reason=say(a.reason)) for a in diagnosis.advice),
    )


def _say(text: str, target: Target, given: Collection[str], face: str) -> str:
    if not text:
        return text
    if target.kind == "trace":
        # A trace holds neither model nor batch; a monitor has kept both.
        verify = (
            "monitor.diagnose(verify=True)" if target.path == "memory" else "diagnose(…, model=…, batch=…, verify=True)"
        )
        text = _changed(text if face == "cli" else text.replace("diagnose --verify", verify), _RECORDED)
    elif "batch" in given:
        text = _changed(text, _PASSED)
    elif "model" in given:
        text = _changed(text, _HAS_MODEL)
    if face == "cli":
        verify = "diagnose --verify"
        text = re.sub(r"gnnstab verify --fix ([\w-]+)", partial(_fix_of, target), text)
        passed = "batch" in given and target.kind != "trace"
        text = text if passed else text.replace(verify, "diagnose --model … --batch … --verify")
    return plain(speak(text, face))


def _fix_of(target: Target, match: re.Match[str]) -> str:
    """The command that tests a fix, with the file that it needs: a trace holds no weights, and what makes the model draws them anew."""
    file = "FILE "
    if target.kind == "trace":
        kept = match[1] in FIXES and not FIXES[match[1]].on_fresh_weights
        file = "CHECKPOINT " if kept else ""
    return f"gnnstab verify {file}--model … --batch … --fix {match[1]}"


def _given(diagnosis: Diagnosis) -> frozenset[str]:
    """Which of ``model``, ``batch`` the reader passed, as the diagnosis itself shows it."""
    if any(signal.source == "batch" for signal in diagnosis.signals):
        return frozenset({"model", "batch"})
    # Or the tensors of a file were read into the model that was passed.
    passed = diagnosis.target.kind == "model" or any("of the model's" in note for note in diagnosis.target.notes)
    return frozenset({"model"} if passed else ())


def _changed(text: str, table: tuple[tuple[str, _Replacement], ...]) -> str:
    for pattern, replacement in table:
        text = re.sub(pattern, replacement, text)
    return text
