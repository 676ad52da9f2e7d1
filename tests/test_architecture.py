"""The house rules: import order, what stays free of torch, the public names."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "gnnstab"

ORDER = [
    {"characters", "rich_loaded"},
    {"errors"},
    {"guest", "left_out", "sharding", "stored", "unheard"},
    {"archive", "finalisers", "hook_code", "numpy_state", "other_threads", "plugins", "torch_private"},
    {"own_draws", "surroundings"},
    {"trials", "undisturbed"},
    {"randomness"},
    {"unpickling"},
    {"records"},
    {"layers"},
    {"trace"},
    {"probe", "checkpoint"},
    {"signals"},
    {"rules"},
    {"nn"},
    {"fixes"},
    {"observation"},
    {"verification"},
    {"report"},
    {"evaluation"},
    {"feed"},
    {"diagnosis", "monitor"},
    {"sinks"},
    {"baseline", "budgets", "compare", "config", "watch"},
    {"testing", "demo"},
    {"demo_files"},
    {"pytest_plugin", "cli", "__main__"},
]
"""A room may import what stands in an earlier row, and itself, inside functions too. `cli/` on disk is `gnnstab.cli`."""

FACE = {"__version__", "presented"}
"""What any room may ask the package itself for: its version, and to present a diagnosis (records know no report)."""

MAY_IMPORT_TORCH = {
    "probe",
    "checkpoint",
    "verification",
    "monitor",
    "sinks",
    "nn",
    "demo",
    "demo_files",
    "torch_private",
    "own_draws",
    "stored",
    "undisturbed",
}


def room(path: Path) -> str:
    if path.is_relative_to(ROOT / "cli"):
        return "cli"
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def files() -> list[Path]:
    return [p for folder in (SOURCE, ROOT / "cli") for p in sorted(folder.rglob("*.py")) if p != SOURCE / "__init__.py"]


@cache
def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names of the modules that a file imports (`from a import b` counts as a.b), TYPE_CHECKING blocks left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if top_level_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def rank(name: str) -> int:
    return next((i for i, row in enumerate(ORDER) if name in row), -1)


def test_imports_run_one_way() -> None:
    for path in files():
        own = room(path)
        assert rank(own) >= 0, f"{own} has no place in ORDER"
        for name in imported(path):
            parts = name.split(".")
            if parts[0] != "gnnstab" or len(parts) < 2 or parts[1] in FACE:
                continue
            assert parts[1] == own or rank(parts[1]) < rank(own), f"{path} imports {parts[1]}, which stands below it"


def test_no_file_asks_its_own_package_for_a_table() -> None:
    """A table in an `__init__` that imports its rows can be read by them only in secret, inside a function."""
    for path in files():
        own = ".".join(path.parent.relative_to(ROOT).parts)
        if path.name != "__init__.py" and own.count(".") >= 1:
            names = {n for n in imported(path) if n.rpartition(".")[0] == own}
            modules = {f"{own}.{p.stem}" for p in path.parent.iterdir()}
            assert names <= modules, f"{path.relative_to(ROOT)} imports {sorted(names - modules)} from its own package"


def test_torch_only_where_it_is_allowed() -> None:
    for path in files():
        heavy = {n.split(".")[0] for n in imported(path, top_level_only=True)} & {"torch", "torch_geometric"}
        assert not heavy or room(path) in MAY_IMPORT_TORCH, path


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout


HEAVY = "{'torch', 'torch_geometric', 'matplotlib'}"


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from gnnstab.cli.group import run
assert run(["--help"]) == 0
print(sorted({HEAVY} & set(sys.modules)))
"""
    assert run_python(code).splitlines()[-1] == "[]"


def test_this_guard_can_fail() -> None:
    assert run_python(f"import sys, torch; print(sorted({HEAVY} & set(sys.modules)))").strip() == "['torch']"


def test_a_trace_is_read_diagnosed_and_rendered_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "run.gnnstab"
    code = f"""
import sys
from gnnstab.records import LayerFacts, SeriesKey, StepRow
from gnnstab.trace import TraceWriter
import gnnstab
with TraceWriter({str(path)!r}) as writer:
    writer.layer(LayerFacts(name="conv", kind="TransformerConv", position=0, attention=True, heads=1, out_channels=4))
    series = writer.series(SeriesKey("conv", "train", 0, "score"))
    for step in range(3):
        writer.sites(step, [series], [(-1.0, 1.0, 0.5, 10, 0)])
        writer.step(StepRow(step, 0.0, 1.0, None, None, None))
diagnosis = gnnstab.diagnose({str(path)!r})
from gnnstab.report import FORMATS, render
for name in FORMATS:
    assert render(diagnosis, name)
print(sorted({{'torch', 'torch_geometric'}} & set(sys.modules)))
"""
    assert run_python(code).strip() == "[]"


def test_nothing_imports_the_folder_cli_by_its_bare_name() -> None:
    for path in files():
        assert not any(name.split(".")[0] == "cli" for name in imported(path)), path


def test_public_names() -> None:
    import gnnstab

    for name in gnnstab.__all__:
        assert getattr(gnnstab, name) is not None
    assert callable(gnnstab.diagnose)
    assert callable(gnnstab.verify)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        gnnstab.nonsense  # noqa: B018
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["version"] == gnnstab.__version__


def test_private_modules_stay_in_their_package() -> None:
    """A module whose name begins with `_` is imported by the files of its own folder alone, so that it can change freely."""
    for path in files():
        own = ".".join(path.parent.relative_to(ROOT).parts)
        for name in imported(path):
            parts = name.split(".")
            hidden = [i for i, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")]
            if parts[0] == "gnnstab" and hidden:
                package = ".".join(parts[: hidden[0]])
                is_module = (ROOT / Path(*parts[: hidden[0] + 1])).with_suffix(".py").exists()
                assert not is_module or package == own, f"{path.relative_to(ROOT)} imports {name}"
