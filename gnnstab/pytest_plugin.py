"""pytest plugin: the fixture ``gnnstab_monitor``, the marker ``gnnstab`` and a section in the summary.

Loaded by every pytest run of an environment that has gnnstab, so it imports nothing but pytest itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gnnstab.monitor import Monitor

MARKER = (
    "gnnstab(fail_on='warning', select=None, ignore=None, budgets=()): limits for the models that the test gives to the "
    "gnnstab_monitor fixture"
)
_OPTIONS = ("fail_on", "select", "ignore", "budgets")
_MONITORS: pytest.StashKey[list[tuple[str, Any]]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def gnnstab_monitor(request: pytest.FixtureRequest) -> Callable[..., Monitor]:
    """Makes monitors whose findings fail the test.

    ``with gnnstab_monitor(model, optimizer=optimizer) as monitor: …`` takes the arguments of `gnnstab.Monitor`. When the
    test function is over, every monitor made is diagnosed; the test fails on findings at or above the marker's
    ``fail_on``, on a broken budget, and when nothing could be judged.
    """
    options(request.node)  # a wrong marker is told before the test runs
    made: list[tuple[str, Any]] = []
    request.node.stash[_MONITORS] = made

    def monitor(model: Any, **arguments: Any) -> Monitor:
        from gnnstab.monitor import Monitor

        watching = Monitor(model, **{"on_finding": "ignore", **arguments})
        made.append((type(model).__name__, watching))
        return watching

    return monitor


def options(item: pytest.Item) -> dict[str, Any]:
    """The options of the markers of a test, the innermost winning; raises `pytest.UsageError` for an unknown one."""
    found: dict[str, Any] = {"fail_on": "warning", "select": None, "ignore": None, "budgets": ()}
    for marker in reversed(list(item.iter_markers("gnnstab"))):
        unknown = [name for name in marker.kwargs if name not in _OPTIONS]
        if marker.args or unknown:
            wrong = f"unknown option {unknown[0]!r}" if unknown else "options go by name"
            raise pytest.UsageError(f"{item.nodeid}: @pytest.mark.gnnstab: {wrong}; known are {', '.join(_OPTIONS)}")
        found.update(marker.kwargs)
    return found


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Judge the monitors right after the test function, so that the test itself fails and not its teardown."""
    result = yield
    _judge(pyfuncitem)
    return result


def _judge(item: pytest.Item) -> None:
    monitors = item.stash.get(_MONITORS, [])
    if not monitors:
        return
    from gnnstab.budgets import check
    from gnnstab.report.summary import verdict
    from gnnstab.testing import codes, failure

    chosen = options(item)
    failures = []
    for name, monitor in monitors:
        diagnosis = monitor.diagnose(select=codes(chosen["select"]), ignore=codes(chosen["ignore"]))
        word, rest = verdict(diagnosis)
        # User properties travel with the report, also from the workers of a distributed run.
        item.user_properties.append(("gnnstab", f"{name}: {word}  {rest}"))
        text = failure(diagnosis, chosen["fail_on"], check(chosen["budgets"], diagnosis))
        if text:
            failures.append(f"{name}: {text}")
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line per monitored model."""
    lines = [
        f"{report.nodeid}  {value}"
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for key, value in report.user_properties
        if key == "gnnstab"
    ]
    if lines:
        terminalreporter.section("gnnstab")
        for line in sorted(lines):
            terminalreporter.write_line(line)
