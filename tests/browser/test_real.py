"""The page of a real diagnosis, its fixes verified: the 7-agent actor on its own batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from browser.test_page import wait_for
from gnnstab.records import Diagnosis

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def verified(driver: Any) -> Diagnosis:
    """Needs the browser first, so that nothing is measured where no page can be opened."""
    import torch

    import gnnstab
    from gnnstab.verification import prove
    from models import informarl

    torch.set_num_threads(1)
    model = informarl.load_actor("agents7_default")
    batch = {name: tensor[:6] for name, tensor in informarl.sample_batch(7).items()}
    found = gnnstab.diagnose(model, batch=batch, loss=informarl.policy_loss)
    # Fewer graphs and steps than a user would take: here the page is tested, not the verdict.
    return prove(found, model, batch=batch, loss=informarl.policy_loss, seeds=5, steps=20)


def test_the_seven_agent_actor(show: Callable[[Diagnosis], Any], verified: Diagnosis) -> None:
    page = show(verified)
    assert page.find_element("css selector", "h1").text == "Root cause: sum-aggregation."
    fix = page.find_element("css selector", ".fix")
    assert "tried" in fix.text or "confirmed on this model" in fix.text
    assert "before" in fix.text
    assert fix.find_elements("css selector", "svg[role=img]")
    button = fix.find_element("css selector", "button[data-copy]")
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button)
    code = page.find_elements("css selector", f"[id='{button.get_attribute('data-copy')}']")
    assert len(code) == 1
    button.click()
    # The clipboard is asynchronous: the label follows when it has answered, and goes back after 2 s.
    wait_for(lambda: button.text == "Copied")
    finding = page.find_element("css selector", "#finding-list li[data-layer='gnn.gnn1']")
    link = finding.find_element("css selector", "a.evidence")
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", link)
    target = link.get_attribute("href").partition("#")[2]
    link.click()
    assert "entropy" in page.find_element("id", target).text.lower()
    page.find_element("id", "f-layer").send_keys("embed")
    shown = [e for e in page.find_elements("css selector", "#finding-list li[data-code]") if e.is_displayed()]
    assert {e.get_attribute("data-layer") for e in shown} == {"gnn.embed_layer"}
    before = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    page.find_element("id", "theme").click()
    assert page.execute_script("return getComputedStyle(document.body).backgroundColor") != before
