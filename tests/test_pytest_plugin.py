"""The pytest plugin, in pytest runs of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# Monitors that hand out examples: what is tested here is the plugin, and torch need not be imported for it.
FAKE = f"""
import sys
from types import SimpleNamespace
sys.path.insert(0, {str(TESTS)!r})
import examples

class Monitor:
    calls = []
    def __init__(self, model, **arguments):
        self.model, self.arguments = model, arguments
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass
    def diagnose(self, **options):
        Monitor.calls.append(options)
        return examples.ALL[self.model]()

sys.modules["gnnstab.monitor"] = SimpleNamespace(Monitor=Monitor)
"""


@pytest.fixture
def project(tmp_path: Path):
    """``project("def test…", *arguments)`` runs pytest on it in a folder of its own."""

    def run(source: str, *arguments: str, conftest: str = FAKE) -> subprocess.CompletedProcess:
        (tmp_path / "conftest.py").write_text(conftest)
        (tmp_path / "test_theirs.py").write_text(source)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--strict-markers", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return run


def test_stable_passes_unstable_fails_a_wrong_marker_is_told_and_the_summary_tells(project) -> None:
    ran = project("""
import pytest

def test_clean(gnnstab_monitor):
    with gnnstab_monitor("clean"):
        pass

def test_one(gnnstab_monitor):
    with gnnstab_monitor("one"):
        pass

@pytest.mark.gnnstab(fail_on="error")
def test_lenient(gnnstab_monitor):
    with gnnstab_monitor("one"):
        pass

@pytest.mark.gnnstab(fail_on="error", budgets=["min entropy 0.9"])
def test_budget(gnnstab_monitor):
    with gnnstab_monitor("clean"):
        pass

def test_by_itself(gnnstab_monitor):
    with gnnstab_monitor("one"):
        assert 1 == 2

@pytest.mark.gnnstab(severity="error")
def test_unknown(gnnstab_monitor):
    pass

@pytest.mark.gnnstab("error")
def test_nameless(gnnstab_monitor):
    pass

def test_without():
    pass
""")
    assert ran.returncode == 1
    assert "3 failed, 3 passed, 2 errors" in ran.stdout
    assert "assert 1 == 2" in ran.stdout
    assert "unknown option 'severity'; known are fail_on" in ran.stdout
    assert "options go by name" in ran.stdout
    assert "FAILED test_theirs.py::test_one" in ran.stdout
    assert (
        "warning GS301 attention-explosion at gnn_base.gnn.gnn1, all heads (worst head 0: 0.206): attention.entropy 0.229 < 0.35"
        in ran.stdout
    )
    assert "budget min entropy 0.9: gnn_base.gnn.gnn1, head 0: attention.entropy is" in ran.stdout
    summary = ran.stdout[ran.stdout.index("== gnnstab ==") :]
    assert "test_theirs.py::test_clean  str: STABLE  nothing to fix in 3 TransformerConv layers" in summary
    assert "test_theirs.py::test_one  str: UNSTABLE  1 warning" in summary
    assert "test_without" not in summary


def test_select_reaches_the_diagnosis_and_inner_markers_win(project) -> None:
    ran = project("""
import sys
import pytest

pytestmark = pytest.mark.gnnstab(select="GS4", fail_on="error")

@pytest.mark.gnnstab(select="GS3,GS5", ignore=["GS303"])
def test_one(gnnstab_monitor):
    with gnnstab_monitor("one"):
        pass

def test_options():
    assert sys.modules["gnnstab.monitor"].Monitor.calls == [{"select": ("GS3", "GS5"), "ignore": ("GS303",)}]
""")
    assert "2 passed" in ran.stdout, ran.stdout


def test_with_workers(project) -> None:
    pytest.importorskip("xdist")
    ran = project(
        """
import pytest

@pytest.mark.parametrize("name", ["clean", "one", "many"])
def test_it(name, gnnstab_monitor):
    with gnnstab_monitor(name):
        pass
""",
        "-n", "2",
    )  # fmt: skip
    assert "2 failed, 1 passed" in ran.stdout
    assert "test_theirs.py::test_it[clean]  str: STABLE" in ran.stdout
    assert "test_theirs.py::test_it[many]  str: UNSTABLE" in ran.stdout


def test_where_torch_cannot_be_imported(project) -> None:
    hidden = "import sys\nsys.modules['torch'] = None\n"
    ran = project("def test_plain():\n    pass\n", conftest=hidden)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout
    assert "gnnstab" not in ran.stdout.replace("plugins: ", "").split("collected")[1]
    ran = project("def test_it(gnnstab_monitor):\n    gnnstab_monitor(None)\n", conftest=hidden)
    assert ran.returncode == 1
    assert "torch" in ran.stdout


def test_a_plain_run_loads_nothing_of_gnnstab() -> None:
    """What costs time is what gets imported; the time itself is measured by tests/benchmarks/startup.py."""
    program = (
        "import pytest, sys\n"
        "import gnnstab.pytest_plugin\n"
        "loaded = {m for m in sys.modules if m.startswith('gnnstab')}\n"
        "assert loaded == {'gnnstab', 'gnnstab.pytest_plugin'}, loaded\n"
        "assert not {'torch', 'numpy', 'rich', 'click'} & set(sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


def test_a_real_monitor(project) -> None:
    ran = project(
        """
import torch
from torch_geometric.nn import TransformerConv

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = TransformerConv(8, 8, heads=2, concat=False)

    def forward(self, x, edges):
        return self.conv(x, edges)

def train(monitor, gain):
    torch.manual_seed(0)
    model = Network()
    with torch.no_grad():
        model.conv.lin_query.weight[8:] *= gain
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pairs = torch.cartesian_prod(torch.arange(10), torch.arange(10))
    edges = pairs[pairs[:, 0] != pairs[:, 1]].t()
    x = torch.randn(10, 8)
    with monitor(model, optimizer=optimizer, schedule="every step"):
        for _ in range(3):
            optimizer.zero_grad()
            model(x, edges).square().mean().backward()
            optimizer.step()

def test_healthy(gnnstab_monitor):
    train(gnnstab_monitor, 1.0)

def test_sick(gnnstab_monitor):
    train(gnnstab_monitor, 400.0)
""",
        "-W", "ignore",
        conftest="",
    )  # fmt: skip
    assert "1 failed, 1 passed" in ran.stdout, ran.stdout
    assert "FAILED test_theirs.py::test_sick" in ran.stdout
