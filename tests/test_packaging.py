"""What setup.cfg says about the package is what lies on disk, and no text names a file that does not exist."""

from __future__ import annotations

import ast
import configparser
import functools
import importlib
import io
import re
import shutil
import subprocess
import sysconfig
import tokenize
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "gnnstab"

PATH = re.compile(r"(?<![\w/.:~<-])((?:[\w.*-]+/)+[\w.*-]+\.(?:py|md|cfg|toml|txt|ya?ml|ipynb|svg|png|tpl))\b")
"""A relative path to a file of a kind that this repository holds; not a part of an address."""

PLACEHOLDER = re.compile(r"\dxx|(?<![a-z])name(?![a-z])")
"""In docs/adding.md: a file that the reader is about to write."""

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_packages_listed_are_the_folders_on_disk() -> None:
    listed = config()["options"]["packages"].split()
    on_disk = {".".join(p.parent.relative_to(ROOT).parts) for p in SOURCE.rglob("__init__.py")} | {"gnnstab.cli"}
    assert listed == sorted(listed), "the list is kept in order, so that a missing line is seen"
    assert set(listed) == on_disk
    assert config()["options"]["package_dir"].split() == ["gnnstab.cli", "=", "cli"]
    assert not (ROOT / "tests" / "gnnstab").exists(), "it would hide the package from the tests"
    folders = {p.parent for folder in (SOURCE, ROOT / "cli") for p in folder.rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_package_data_exists() -> None:
    for package, patterns in config()["options.package_data"].items():
        folder = ROOT.joinpath(*package.split("."))
        for pattern in patterns.split():
            assert list(folder.glob(pattern)), f"{package}: no file matches {pattern}"


def test_everything_that_is_no_python_is_package_data() -> None:
    data = config()["options.package_data"]
    listed = {
        p for package in data for name in data[package].split() for p in ROOT.joinpath(*package.split(".")).glob(name)
    }
    others = {p for p in tracked() if p.is_relative_to(SOURCE) and p.suffix != ".py"}
    assert others <= listed, "these files would be missing from a wheel"


def test_entry_points_lead_to_what_exists() -> None:
    for lines in config()["options.entry_points"].values():
        for line in lines.strip().splitlines():
            module, _, attribute = line.split("=")[1].strip().partition(":")
            found = importlib.import_module(module)
            assert not attribute or callable(getattr(found, attribute))


def test_a_clone_does_not_hide_the_package_from_the_folder_that_holds_it(tmp_path: Path) -> None:
    """An editable install alone is hidden by a folder of the package's name; what the Makefile adds to it is not."""
    installed = Path(sysconfig.get_path("purelib"))
    if not (editable := list(installed.glob("__editable__*gnnstab*"))):
        pytest.skip("gnnstab is not installed as the Makefile does it")
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    for file in editable:
        shutil.copy(file, packages)
    (packages / "libraries.pth").write_text(f"{installed}\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "gnnstab").symlink_to(ROOT)

    def imports(what: str) -> bool:
        command = [str(python), "-c", f"from gnnstab import {what}"]
        return subprocess.run(command, cwd=tmp_path / "mine", capture_output=True, check=False).returncode == 0

    assert not imports("__version__")
    subprocess.run(["make", f"VENV={tmp_path}/venv", f"{tmp_path}/venv/checkout"], cwd=ROOT, check=True)
    assert imports("Monitor")
    assert imports("cli")


def tracked() -> list[Path]:
    """Every file of the repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode or not listed.stdout:
        pytest.skip("the file list comes from git")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def prose(path: Path) -> str:
    """What a reader reads: the whole of a text, the docstrings and comments of a program."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n".join([*texts, *(token.string for token in tokens if token.type == tokenize.COMMENT)])


@functools.cache
def folders() -> frozenset[str]:
    """The names of all folders of the repository."""
    return frozenset(part for file in tracked() for part in file.relative_to(ROOT).parts[:-1])


def missing(path: Path, text: str) -> Iterator[str]:
    """The paths in a text that lead to no file, seen from the repository, the package, the tests, docs or the file itself.

    A path counts when its first folder is one of this repository; others are a user's or another project's.
    """
    for name in PATH.findall(text):
        if name.split("/")[0] not in folders() | {".", ".."} or PLACEHOLDER.search(name):
            continue
        starts = (ROOT, SOURCE, ROOT / "tests", ROOT / "docs", path.parent)
        if not any(next(start.glob(name.removeprefix("./")), None) or (start / name).exists() for start in starts):
            yield name
    if path.suffix == ".md":
        for name in LINK.findall(text):
            if "://" not in name and not name.startswith("mailto:") and not (path.parent / name).exists():
                yield name


def texts() -> list[Path]:
    suffixes = {".py", ".md", ".cfg", ".toml", ".yml", ".yaml"}
    # Golden files and test data hold what a stranger wrote.
    left_out = (ROOT / "tests" / "report" / "golden", ROOT / "tests" / "data")
    own = [p for p in tracked() if p.suffix in suffixes and not any(p.is_relative_to(folder) for folder in left_out)]
    return [*own, ROOT / "Makefile"]


def test_no_text_names_a_file_that_does_not_exist() -> None:
    found = [f"{p.relative_to(ROOT)}: {name}" for p in texts() for name in missing(p, prose(p))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("see rules/nonsense.py and rules/engine.py", ["rules/nonsense.py"]),
        ("`tests/test_nonsense.py` holds it", ["tests/test_nonsense.py"]),
        ("[a](nonsense.md), [b](json.md#x), [c](https://example.org/docs/x.md)", ["nonsense.md"]),
        ("every rules/gs1*.py, no rules/xs*.py", ["rules/xs*.py"]),
        ("runs/today/metrics.md of a user", []),
    ],
)
def test_the_search_can_fail(text: str, names: list[str]) -> None:
    assert list(missing(ROOT / "docs" / "index.md", text)) == names
