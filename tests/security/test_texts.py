"""Baselines and configurations come from strangers' repositories: each is read within bounds, or refused in one line."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gnnstab.cli.group import run as command

from effort import at_most, within
from gnnstab import baseline, config
from gnnstab.config.validating import validate
from gnnstab.errors import ConfigurationError

LONGEST_LINE = 900
"""Characters of a message; a stranger's text within it is cut."""


def read_config(path: Path) -> Any:
    return validate(config.load(path.parent, file=path))


def refused(read: Callable[[Path], Any], path: Path) -> str:
    with at_most(calls=100_000), pytest.raises(ConfigurationError) as caught:
        read(path)
    message = str(caught.value)
    assert message.isprintable() and len(message) < LONGEST_LINE, message[:2000]
    return message


DEEP = 200_000

BASELINES: dict[str, bytes] = {
    "empty": b"",
    "not UTF-8": b'{"schema_version": "1", "findings": [\xff\xfe]}',
    "UTF-16": '{"schema_version": "1", "findings": []}'.encode("utf-16"),
    "NUL": b"\0" * 1000,
    "deep list": b"[" * DEEP,
    "deep findings": b'{"schema_version": "1", "findings": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep object": b'{"a":' * DEEP,
    "number without end": b'{"schema_version": ' + b"9" * 10_000 + b', "findings": []}',
    "huge version": json.dumps({"schema_version": "9" * 10**6, "findings": []}).encode(),
    "version with an escape": json.dumps({"schema_version": "\x1b[31m", "findings": []}).encode(),
    "unhashable severity": b'{"schema_version": "1", "findings": [{"fingerprint": "a", "severity": {}}]}',
    "wrong entry": b'{"schema_version": "1", "findings": [[]]}',
    "wrong root": b'"findings"',
    "NaN": b"NaN",
}


@pytest.mark.parametrize("name", BASELINES)
def test_baselines(name: str, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_bytes(BASELINES[name])
    assert "baseline" in refused(baseline.read, path)


def test_a_baseline_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    with path.open("wb") as stream:
        stream.truncate(10**12)
    assert "larger than" in refused(baseline.read, path)


def test_a_repeated_key_cannot_blow_up(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    entry = {"fingerprint": "a", "severity": "error"}
    path.write_text(json.dumps({"schema_version": "1", "findings": [entry] * 50_000}))
    assert len(baseline.read(path).severities) == 1


CONFIGS: dict[str, tuple[str, bytes]] = {
    "no section": ("pyproject.toml", b"[tool.other]\nx = 1\n"),
    "empty": ("setup.cfg", b""),
    "not UTF-8": ("pyproject.toml", b"[tool.gnnstab]\nselect = ['\xff']\n"),
    "NUL": ("setup.cfg", b"[gnnstab]\nselect = \0\n"),
    "deep array": ("pyproject.toml", b"[tool.gnnstab]\nselect = " + b"[" * 100_000),
    "deep table": ("pyproject.toml", b"[tool.gnnstab]\n" + b"a." * 100_000 + b"b = 1\n"),
    "deep inline": ("pyproject.toml", b"[tool.gnnstab]\nthresholds = " + b"{a=" * 50_000),
    "escape in a key": ("pyproject.toml", b'[tool.gnnstab]\n"a\\u001b[31m\\nb" = 1\n'),
    "huge key": ("pyproject.toml", b"[tool.gnnstab]\n" + b"k" * 500_000 + b" = 1\n"),
    "huge value": ("pyproject.toml", b'[tool.gnnstab]\nfail-on = "' + b"v" * 500_000 + b'"\n'),
    "huge threshold": ("pyproject.toml", b"[tool.gnnstab.thresholds.GS301]\nwarn_entropy = " + b"9" * 100_000 + b"\n"),
    "threshold nan": ("pyproject.toml", b"[tool.gnnstab.thresholds.GS301]\nwarn_entropy = nan\n"),
    "gnnstab is a list": ("pyproject.toml", b"[[tool.gnnstab]]\nx = 1\n"),
    "tool is a number": ("pyproject.toml", b"tool = 1 # gnnstab\n"),
    "select is a table": ("pyproject.toml", b"[tool.gnnstab.select]\na = 1\n"),
    "select is a number": ("pyproject.toml", b"[tool.gnnstab]\nselect = 7\n"),
    "expires in no year": (
        "pyproject.toml",
        b"[[tool.gnnstab.suppressions]]\ncode='GS1'\nreason='r'\nexpires='99999-99-99'\n",
    ),
    "code of code points": (
        "pyproject.toml",
        "[[tool.gnnstab.suppressions]]\ncode='\u202egs\u2066'\nreason='r'\n".encode(),
    ),
    "no header": ("setup.cfg", b"[gnnstab\nselect = 1\n"),
    "repeated section": ("setup.cfg", b"[gnnstab]\n[gnnstab]\n"),
    "repeated key": ("setup.cfg", b"[gnnstab]\nselect=GS1\nselect=GS2\n"),
    "unknown section": ("setup.cfg", b"[gnnstab:\x1b[31m]\nx = 1\n"),
    "section of many parts": ("setup.cfg", b"[gnnstab" + b":a" * 100_000 + b"]\nx = 1\n"),
    "interpolation": ("setup.cfg", b"[gnnstab]\nfail-on = %(fail-on)s\n"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(name: str, tmp_path: Path) -> None:
    file, content = CONFIGS[name]
    (tmp_path / file).write_bytes(content)
    refused(read_config, tmp_path / file)


@pytest.mark.parametrize("name", [n for n, (file, _) in CONFIGS.items() if n not in ("no section", "empty")])
def test_the_command_line_refuses_configurations_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, content = CONFIGS[name]
    (tmp_path / file).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    assert command(["config"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.strip().splitlines()) == 1
    assert "unexpected" not in captured.err and captured.err.strip().isprintable()


SLOW = {
    "blanks": b"a" + b" " * 800_000 + b"b",
    "blanks and a value": b"a" + b" " * 800_000 + b"= 1",
    "runs of blanks": (b"a" + b" " * 49) * 16_000 + b"b",
    "other blanks": b"a" + b"\x0b\x0c\x1c\x85"[:3] * 250_000 + b"b",
    "tabs": b"a" + b"\t" * 800_000 + b"b",
    "signs": b"=" * 800_000,
    "brackets": b"[" * 400_000 + b"]" * 400_000,
    "lines": b"a\n" * 400_000,
    "continued lines": b"a = 1\n" + b" b\n" * 250_000,
    "carriage returns": b"a" + b" \r" * 400_000 + b"b",
}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("file", ["setup.cfg", "pyproject.toml"])
def test_no_configuration_takes_long(name: str, file: str, tmp_path: Path) -> None:
    """The ini parser's time grew with the square of the blanks in a row: half a minute for 800 KB of them."""
    head = b"[gnnstab]\n" if file == "setup.cfg" else b"[tool.gnnstab]\n"
    (tmp_path / file).write_bytes(head + SLOW[name] + b"\n")
    with within(5), contextlib.suppress(ConfigurationError):
        # A section of another tool is none of ours, whatever its name is.
        read_config(tmp_path / file)


def test_blanks_within_a_value_stay(tmp_path: Path) -> None:
    (tmp_path / "setup.cfg").write_text("[gnnstab:suppression:a]\ncode = GS301\nreason = two  blanks\n")
    assert read_config(tmp_path / "setup.cfg").suppressions[0].reason == "two  blanks"


@pytest.mark.parametrize("read", [baseline.read, read_config])
@pytest.mark.parametrize("name", ["pipe", "folder", "nothing", "loop", "/dev/zero", "x\0y"])
def test_what_is_no_regular_file(read: Callable[[Path], Any], name: str, tmp_path: Path) -> None:
    """A pipe would block for ever, a device never end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(read, tmp_path / name)


def test_globs_of_layers_take_linear_time(tmp_path: Path) -> None:
    """A glob that a careless matcher tries in exponentially many ways."""
    path = tmp_path / "pyproject.toml"
    glob = "*a" * 40 + "b"
    path.write_text(f"[[tool.gnnstab.suppressions]]\ncode='GS301'\nreason='r'\nlayer='{glob}'\n")
    (suppression,) = read_config(path).suppressions

    class Finding:
        code, layer = "GS301", "a" * 2000

    # Tried in every way, this would not end within a lifetime.
    assert not suppression.covers(Finding())  # type: ignore[arg-type]


def test_a_configuration_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither file can name a module to import: there is no setting for a model, a batch or a plugin."""
    for key in ("model", "batch", "loss", "plugins", "unsafe-load", "unsafe_load", "verify"):
        path = tmp_path / "pyproject.toml"
        path.write_text(f"[tool.gnnstab]\n{key} = 'os:system'\n")
        assert "unknown key" in refused(read_config, path)
