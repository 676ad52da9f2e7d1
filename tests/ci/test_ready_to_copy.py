"""The files under docs/ci: well-formed, and every gnnstab command in them is one that the program takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from gnnstab.cli import COMMANDS, main

from gnnstab.config import load
from gnnstab.config.validating import validate

DOCS = Path(__file__).parents[2] / "docs"
FILES = sorted((DOCS / "ci").iterdir())


def read(name: str) -> dict[str, Any]:
    # "on" is a boolean in YAML 1.1, which the loader speaks; CI systems read it as a word.
    text = re.sub(r"^on:", '"on":', (DOCS / "ci" / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return yaml.safe_load(text)


def commands(value: Any) -> Iterator[list[str]]:
    """Arguments of every call of gnnstab in the strings of a document."""
    if isinstance(value, dict):
        for item in value.values():
            yield from commands(item)
    elif isinstance(value, list):
        for item in value:
            yield from commands(item)
    elif isinstance(value, str):
        for line in value.replace("\\\n", " ").splitlines():
            if line.strip().startswith("gnnstab "):
                yield shlex.split(line.strip())[1:]


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.name)
def test_every_file_calls_gnnstab_with_options_that_exist(file: Path) -> None:
    found = list(commands(read(file.name)))
    assert found
    for name, *arguments in found:
        assert name in COMMANDS
        command = main.get_command(None, name)
        command.make_context(name, list(arguments))  # raises on an option that does not exist


def test_the_workflow_uploads_what_the_check_writes() -> None:
    steps = read("github-workflow.yml")["jobs"]["stability"]["steps"]
    upload = next(step for step in steps if "upload-sarif" in step.get("uses", ""))
    assert any(f"sarif={upload['with']['sarif_file']}" in step.get("run", "") for step in steps)
    assert "always()" in upload["if"]


def test_the_action_never_pastes_an_input_into_a_script() -> None:
    action = read("action.yml")
    assert action["runs"]["using"] == "composite"
    for step in action["runs"]["steps"]:
        assert "${{" not in step["run"]
        assert step["shell"] == "bash"


def test_the_gitlab_job_reports_what_the_check_writes() -> None:
    job = read("gitlab-ci.yml")["gnnstab"]
    assert any(f"junit={job['artifacts']['reports']['junit']}" in line for line in job["script"])
    assert job["artifacts"]["when"] == "always"


def test_the_hook_runs_on_the_files_that_hold_settings() -> None:
    hook = read("pre-commit-config.yaml")["repos"][0]["hooks"][0]
    assert re.search(hook["files"], "pyproject.toml")
    assert re.search(hook["files"], "setup.cfg")
    assert not re.search(hook["files"], "docs/setup.cfg")


@pytest.mark.parametrize(("language", "name"), [("toml", "pyproject.toml"), ("ini", "setup.cfg")])
def test_the_settings_of_the_page_are_valid(language: str, name: str, tmp_path: Path) -> None:
    page = (DOCS / "ci.md").read_text(encoding="utf-8")
    example = re.search(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert example
    (tmp_path / name).write_text(example[1], encoding="utf-8")
    settings = validate(load(tmp_path))
    assert settings.fail_on == "error"
    assert settings.suppressions[0].layer == "decoder.copy_head"


@pytest.mark.parametrize("name", [n for n in COMMANDS if n not in ("explain",)])
def test_every_command_has_a_page(name: str) -> None:
    pages = {p.stem for p in (DOCS / "commands").glob("*.md")}
    assert name in pages


PAGES = sorted(p for p in (DOCS / "commands").glob("*.md") if p.stem in COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_line_of_a_page_is_one_that_the_program_takes(page: Path) -> None:
    lines = re.findall(r"^(?:\$ )?gnnstab (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert lines
    for line in lines:
        name, *arguments = shlex.split(line.partition("  # ")[0])
        command = main.get_command(None, name)
        assert command is not None, line
        command.make_context(name, arguments)
