"""Every tab under axe-core: nothing that keeps a person with a keyboard or a screen reader out."""

from __future__ import annotations

from importlib.resources import files

import pytest

from explorer.ui.tab import tabs
from tests.driving import browser_test, open_tab, visit

pytestmark = browser_test
# What gradio and Plotly draw themselves and a page cannot change; each with its reason.
THEIRS = {
    "aria-allowed-attr": "gradio's lists give aria-expanded to their options",
    "aria-required-children": "gradio's tab list holds the menu of tabs that do not fit",
    "nested-interactive": "gradio's multi-select puts buttons into its list box",
}


def test_axe_finds_nothing_serious(browser, address: str) -> None:
    script = files(pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python, which carries axe-core")) / "axe.min.js"
    page, _ = visit(browser, address, 1440, 900)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.matches('.skip[href=\"#results\"]')")
    page.evaluate(script.read_text())
    for i, name in enumerate(tab.name for tab in tabs()):
        open_tab(page, name)
        page.wait_for_timeout(400)
        where = f"#tab-{name}" if i else "body"  # what surrounds the tabs is the same for all
        assert page.locator(where).first.is_visible()
        found = page.evaluate("(where) => axe.run(where, {runOnly: ['wcag2a', 'wcag2aa'], resultTypes: ['violations']})", where)["violations"]
        serious = [(v["id"], v["nodes"][0]["html"][:160]) for v in found if v["impact"] in ("serious", "critical") and v["id"] not in THEIRS]
        assert not serious, (name, serious)
    page.close()
