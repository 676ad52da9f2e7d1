"""The page in a real browser: filter, follow, copy, theme, hostile names, speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

import examples
import gallery
from gnnstab.records import Diagnosis
from gnnstab.report.escape import visible

pytestmark = pytest.mark.browser

Show = Callable[[Diagnosis], Any]


def all_of(browser: Any, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", selector))


def one(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def click(element: Any) -> None:
    """Bring an element to the middle, clear of the bars that stay at the top, and click it."""
    element.parent.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    element.click()


def shown(browser: Any) -> list[str]:
    """Codes of the findings that the filter leaves."""
    return [e.get_attribute("data-code") for e in all_of(browser, "#finding-list li[data-code]") if e.is_displayed()]


def wait_for(condition: Callable[[], Any], seconds: float = 5.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    assert value
    return value


def test_filter_by_severity_code_and_layer(show: Show) -> None:
    page = show(gallery.run())
    assert len(shown(page)) == 6
    click(one(page, "input[value=info]"))
    assert "GS103" not in shown(page)
    one(page, "#f-code").send_keys("GS301")
    assert shown(page) == ["GS301", "GS301"]
    assert one(page, "#count").text == "2 of 6 findings"
    click(one(page, "#clear"))
    one(page, "#f-layer").send_keys("GNN2.1")
    assert sorted(shown(page)) == ["GS501", "GS502"]
    layers = [e.get_attribute("data-layer") for e in all_of(page, ".layer") if e.is_displayed()]
    assert layers == ["gnn_base.gnn.gnn2.1"]
    one(page, "#f-layer").send_keys("no such layer")
    assert shown(page) == []
    assert one(page, "#nothing").is_displayed()


def test_filter_with_the_keyboard_alone(show: Show) -> None:
    page = show(gallery.run())
    one(page, "body").send_keys("/")
    assert page.switch_to.active_element.get_attribute("id") == "f-layer"
    page.switch_to.active_element.send_keys("embed")
    assert shown(page) == ["GS401"]
    page.switch_to.active_element.send_keys("\ue00c")  # Escape
    assert len(shown(page)) == 6
    page.switch_to.active_element.send_keys("\ue004")  # Tab
    assert page.switch_to.active_element.get_attribute("value") == "error"
    page.switch_to.active_element.send_keys(" ")
    assert len(shown(page)) == 3


def test_follow_a_finding_to_its_evidence_even_when_the_filter_hides_it(show: Show) -> None:
    page = show(gallery.run())
    link = one(page, "li[data-code=GS502] a.evidence")
    target = link.get_attribute("href").partition("#")[2]
    click(link)
    place = page.find_element("id", target)
    assert "Score distribution" in place.text
    assert page.switch_to.active_element == place
    wait_for(
        lambda: page.execute_script(
            "const r = arguments[0].getBoundingClientRect(); return r.top >= 0 && r.top < innerHeight", place
        )
    )
    one(page, "#f-layer").send_keys("embed")
    assert not place.is_displayed()
    page.execute_script("location.hash = ''; location.hash = arguments[0]", target)
    wait_for(place.is_displayed)
    assert len(shown(page)) == 6


def test_copy_a_fix(show: Show) -> None:
    page = show(gallery.run())
    origin = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    page.execute_cdp_cmd("Browser.grantPermissions", origin)
    button = one(page, ".fix button[data-copy]")
    code = page.find_element("id", button.get_attribute("data-copy")).get_property("textContent")
    click(button)
    wait_for(lambda: button.text == "Copied")
    pasted = page.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0], e => arguments[0](String(e)))"
    )
    assert pasted == code
    assert "lin_root" in code


def test_copy_without_the_clipboard_interface(show: Show) -> None:
    page = show(gallery.run())
    page.execute_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    button = one(page, ".fix button[data-copy]")
    click(button)
    wait_for(lambda: button.text == "Copied")
    assert all_of(page, "textarea") == []
    assert page.switch_to.active_element == button


def test_theme_follows_the_system_until_it_is_toggled(show: Show) -> None:
    page = show(gallery.run())

    def ground() -> str:
        return str(page.execute_script("return getComputedStyle(document.body).backgroundColor"))

    light, toggle = ground(), one(page, "#theme")
    assert toggle.text == "Dark theme"
    click(toggle)
    dark = ground()
    assert dark != light
    assert toggle.text == "Light theme"
    page.refresh()
    assert ground() == dark
    click(one(page, "#theme"))
    assert ground() == light
    page.execute_script("localStorage.clear(); delete document.documentElement.dataset.theme")
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    assert ground() == dark


def test_hostile_names_show_as_text(show: Show) -> None:
    page = show(examples.hostile_names())
    title = page.title
    text = one(page, "main").get_property("textContent")
    for name in examples.HOSTILE_NAMES:
        assert visible(name)[:25] in text
    assert title != "owned"
    assert all_of(page, "img, iframe, object, embed, main script, main style") == []
    targets = page.execute_script("return [...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
    assert all(target.startswith("#") for target in targets)
    one(page, "#f-layer").send_keys("<img")
    assert len(shown(page)) == 1


@pytest.mark.parametrize(
    "make", [gallery.run, examples.hostile_names, examples.nan_values], ids=["run", "hostile", "nan"]
)
def test_nothing_sticks_out_on_a_telephone(show: Show, make: Callable[[], Diagnosis]) -> None:
    page = show(make())
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_everything_shows_without_script(show: Show) -> None:
    page = show(gallery.run())
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.refresh()
        assert not one(page, "#filter").is_displayed()
        assert len(shown(page)) == 6
        assert all(e.is_displayed() for e in all_of(page, ".layer, .fix, figure"))
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_paper_gets_everything_but_the_controls(show: Show) -> None:
    page = show(gallery.run())
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not any(e.is_displayed() for e in all_of(page, ".bar, .filter, button"))
        assert len(shown(page)) == 6
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_500_findings_over_200_layers_open_and_filter(show: Show) -> None:
    diagnosis = gallery.deep(200, 500)
    page = show(diagnosis)
    filtering = "const f = document.querySelector('#f-layer'); f.value = 'blocks.7.'; f.dispatchEvent(new Event('input', {bubbles: true}))"
    page.execute_script(filtering)
    assert (
        0
        < len(
            [
                c
                for c in page.execute_script(
                    "return [...document.querySelectorAll('#finding-list li[data-code]')].map(e => e.hidden)"
                )
                if not c
            ]
        )
        < 10
    )
