"""A headless Chromium for the tests of the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gnnstab.records import Diagnosis
from gnnstab.report import render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

ARGUMENTS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-default-apps --window-size=1280,900"
)


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for all tests."""
    if CHROMIUM is None or DRIVER is None:
        # .ci/run installs it; who has none can still run everything else.
        pytest.skip("no Chromium with chromedriver on this machine (apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed (pip install 'gnnstab[test]')"
    )
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*ARGUMENTS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def show(driver: Any, tmp_path: Path) -> Iterator[Callable[[Diagnosis], Any]]:
    """Open a diagnosis' page; afterwards there must be no console message and no request but for the page itself."""
    path = tmp_path / "report.html"

    def open_page(diagnosis: Diagnosis) -> Any:
        path.write_text(render(diagnosis, "html"), encoding="utf-8")
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
        )
        for log in ("browser", "performance"):
            driver.get_log(log)
        driver.get(path.as_uri())
        return driver

    yield open_page
    assert driver.get_log("browser") == []
    requested = {url for url in requests(driver.get_log("performance")) if not url.startswith("data:")}
    assert requested <= {path.as_uri()}, requested
    driver.execute_script("try { localStorage.clear() } catch {}")


def requests(log: list[dict[str, Any]]) -> Iterator[str]:
    """Addresses of every request in a performance log, without their fragments."""
    for entry in log:
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            yield message["params"]["request"]["url"].partition("#")[0]
