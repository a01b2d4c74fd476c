"""Text and Failure lab in a real Chromium: texts stream and are marked, the guard speaks, a bug is guessed and revealed, a phone's width."""

from __future__ import annotations

from tests.driving import LOW_CONTRAST, browser_test, open_tab, settle, visit

pytestmark = browser_test


def unreadable(page) -> list[str]:
    """Texts of too little contrast, once the colours of what was clicked have faded."""
    page.mouse.move(0, 0)
    settle(page)
    return page.evaluate(LOW_CONTRAST)


def keep_two(page) -> None:
    """Leaves the baseline, 8 and 4 bits: what needs no calibration."""
    for heads in (5, 4):
        page.locator("#compared .token-remove").nth(3).click()
        page.wait_for_function(f"document.querySelectorAll('#comparison table:not(.more) thead th').length === {heads}")


def test_texts_stream_and_a_bug_is_guessed(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1440, 900)
    keep_two(page)
    open_tab(page, "text")
    page.get_by_role("button", name="Python", exact=True).click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.startsWith('def main')")
    page.click("#write")
    page.locator(".written .sample").nth(2).wait_for()
    page.locator(".status.done", has_text="Left the baseline").wait_for()
    assert page.locator(".written .tk").count() >= 3 * 16 and page.locator(".tk.parted").count() >= 1
    assert "rank" in page.locator(".written .tk").nth(3).get_attribute("title")
    page.locator("#plot-token_divergence .main-svg").first.wait_for()
    assert page.locator("#guard article").count() == 2, page.inner_text("#guard")
    assert unreadable(page) == []
    open_tab(page, "failures")
    assert not page.get_by_text("All layers lose about the same").is_visible(), "what gives a bug away is folded"
    page.click("#plant-hidden")
    page.locator("#lab-status", has_text="Which one?").wait_for()
    assert page.locator("#lab .told").count() == 0
    page.click("#reveal")
    page.locator("#lab .told").wait_for()
    page.locator("#plot-lab-layers .main-svg").first.wait_for()
    assert "The guard names it." in page.inner_text("#lab .told")
    page.set_viewport_size({"width": 390, "height": 844})
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390 and not wrong
    page.close()
