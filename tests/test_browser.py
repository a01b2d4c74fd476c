"""The app as a person meets it, in a real Chromium: the first view, every tab, a comparison, a cancelled run, one layer, a phone."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from explorer.ui.tab import tabs
from tests.driving import BARE, LOW_CONTRAST, browser_test, choose, open_tab, settle, visit, wait_for_status

pytestmark = browser_test
APART = ("planner", "stepper", "learn", "trainer", "classroom")  # tabs that neither a run nor what is compared changes
# What gradio and Plotly draw themselves and a page cannot change; each with its reason.
THEIRS = {
    "aria-allowed-attr": "gradio's lists give aria-expanded to their options",
    "aria-required-children": "gradio's tab list holds the menu of tabs that do not fit",
    "nested-interactive": "gradio's multi-select puts buttons into its list box",
}


def filled(page, width: int) -> None:
    """The first view holds its figures at their size, and nothing is wider than the page."""
    assert page.locator("#comparison table:not(.more) thead th").count() == 6
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#comparison table").first.bounding_box()["y"] < page.viewport_size["height"] / 2, "the result is in the upper half of the first screen"
    assert page.locator("#run").is_visible()
    for button, folded in (("#fold", "#method"), ("#fold-shared", "#compared"), ("#fold-shared", "#save-csv")):
        fold = page.locator(button)
        assert fold.is_visible() == (width < 700) and page.locator(folded).is_visible() == (width >= 700)
        if width < 700:
            fold.press("Enter")
            assert page.locator(folded).is_visible() and fold.get_attribute("aria-expanded") == "true"
            fold.click()
            assert page.locator(folded).is_hidden()
    for name in ("quality", "divergence", "memory", "speed"):
        page.wait_for_selector(f"#plot-{name} .main-svg")
        plot, drawing = page.locator(f"#plot-{name}").bounding_box(), page.locator(f"#plot-{name} .main-svg").first.bounding_box()
        assert abs(plot["width"] - drawing["width"]) < 4 and drawing["height"] >= 300, name
        assert page.locator(f"#plot-{name} .main-svg").first.text_content().strip(), name


@pytest.mark.parametrize(("width", "height", "theme"), [(1440, 900, "dark"), (390, 844, "light")])
def test_first_view_is_filled_and_fits(browser, address: str, width: int, height: int, theme: str) -> None:
    page, wrong = visit(browser, address, width, height, theme)
    filled(page, width)
    assert not wrong
    page.close()


@pytest.mark.parametrize(("width", "height", "theme"), [(1440, 900, "light"), (390, 844, "dark")])
def test_every_tab_opens(browser, address: str, width: int, height: int, theme: str) -> None:
    """No tab scrolls sideways, shows a number that is none, a figure without size, text of low contrast (below 4.5:1, WCAG 2.1, 1.4.3), or an error
    in the console; in one theme axe-core, too, finds nothing that keeps a person with a keyboard or a screen reader out.
    """
    page, wrong = visit(browser, address, width, height, theme)
    filled(page, width)
    if theme == "light":
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.matches('.skip[href=\"#results\"]')")
        page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text())
    for name in [tab.name for tab in tabs()]:
        open_tab(page, name)
        settle(page)
        panel, button = page.locator(f"#tab-{name}"), page.locator(f"#tab-{name}-button").bounding_box()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert button["x"] >= 0 and button["x"] + button["width"] <= width, f"the bar of tabs shows that {name} is open"
        assert page.evaluate("id => document.getElementById(id).getBoundingClientRect().y + scrollY", f"tab-{name}") < height / 2, name
        assert width > 700 or page.locator("#run").is_visible() == (name not in APART), name
        text = panel.inner_text()
        assert not any(word in text for word in ("undefined", "Traceback")), name
        assert name != "failures" or panel.locator(".bugs article").count() >= 7, "the catalogue of bugs"
        numbers = " ".join(panel.locator("td, .summary, .js-plotly-plot text").all_text_contents())
        assert "NaN" not in numbers, name
        assert page.evaluate(LOW_CONTRAST) == [], name
        assert page.evaluate(BARE) == [], name
        for drawing in panel.locator(".js-plotly-plot").all():
            if drawing.is_visible():
                box = drawing.locator(".main-svg").first.bounding_box()
                assert box["height"] >= 200 and 200 < box["width"] <= width, name
        assert theme != "light" or barriers(page, "body" if name == "compare" else f"#tab-{name}") == [], name
    assert not wrong
    page.close()


def barriers(page, where: str) -> list[tuple[str, str]]:
    """What axe-core finds serious in a part of the page, (rule, element). Contrast is LOW_CONTRAST's, which is stricter and takes a tenth of the time."""
    assert page.locator(where).first.is_visible()
    rules = {"runOnly": ["wcag2a", "wcag2aa"], "resultTypes": ["violations"], "selectors": False, "rules": {"color-contrast": {"enabled": False}}}
    found = page.evaluate("([where, rules]) => axe.run(where, rules)", [where, rules])["violations"]
    return [(v["id"], v["nodes"][0]["html"][:160]) for v in found if v["impact"] in ("serious", "critical") and v["id"] not in THEIRS]


def test_cancel_stops_the_work_and_the_next_run_starts(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1440, 900)
    page.click("#method input")
    page.get_by_role("option", name="GPTQ").click()
    settle(page)
    choose(page, "2")
    page.click("#run")
    wait_for_status(page, "quantize", 240)
    page.click("#cancel")
    wait_for_status(page, "Cancelled")  # within 2 s where the machine is idle: tests/test_worker.py and tests/test_load.py hold it to that
    page.wait_for_timeout(2000)
    choose(page, "3")
    page.click("#run")
    page.locator("#status progress").wait_for()
    lines = set()
    for _ in range(20):
        lines.add(page.inner_text("#status"))
        page.wait_for_timeout(100)
    assert not any("ahead in line" in line for line in lines), "2 seconds after Cancel the work must have stopped"
    page.click("#cancel")
    wait_for_status(page, "Cancelled")
    assert page.locator("#comparison table:not(.more) thead th").count() == 6 and not wrong
    page.close()


def test_run_adds_a_column_and_returns_from_the_store_at_once(desk: tuple) -> None:
    page, wrong = desk
    choose(page, "3")
    page.click("#run")
    page.locator("#status progress").wait_for()
    page.locator("#status .status", has_text=re.compile("RTN 3-bit g64: (partly )?measured now")).wait_for()  # a cancelled run left a part
    heads = page.locator("#comparison table:not(.more) thead th").all_inner_texts()
    names = [" ".join(head.split()) for head in heads]
    assert len(names) == 6 and "RTN 3-bit g64" in names[2] and "16-bit baseline" in names[1] and "RTN 2-bit g64" in names[-1], "the others keep their places"
    assert "RTN 8-bit per-channel left the page" in page.inner_text("#status") and "RTN 3-bit g64" in page.inner_text("#answers h3")
    page.evaluate("scrollTo(0, 1500)")
    assert page.locator("#run").bounding_box()["y"] < 900, "the controls stay in sight"
    page.click("#reset")
    wait_for_status(page, "recorded results")
    page.click("#run")
    wait_for_status(page, "RTN 3-bit g64: stored")
    assert not wrong


def test_bad_input_is_a_sentence(desk: tuple) -> None:
    page, wrong = desk
    page.fill("#model input", "no such/model!")
    page.keyboard.press("Enter")
    page.click("#run")
    wait_for_status(page, "is neither a folder here nor a model id")
    assert page.locator("#comparison table:not(.more) thead th").count() == 6 and not wrong


def test_layer_and_columns_can_be_changed(desk: tuple) -> None:
    page, wrong = desk
    page.click("#layer input")
    page.get_by_role("option", name="1 down_proj").click()
    open_tab(page, "weights")
    page.get_by_text("Weights of layers.1.mlp.down_proj").wait_for()
    page.click("#layer input")
    page.get_by_role("option", name="2 down_proj").click()
    page.get_by_text("Weights of layers.2.mlp.down_proj").wait_for()
    open_tab(page, "compare")
    names = page.locator("#compared .token").all_inner_texts()
    page.get_by_role("button", name=f"Remove {names.pop(2)}", exact=True).click()
    page.wait_for_function("document.querySelectorAll('#comparison table:not(.more) thead th').length === 5")
    settle(page)
    crosses = page.locator("#compared .token .token-remove").all()
    assert [cross.get_attribute("aria-label") for cross in crosses] == [f"Remove {name}" for name in names]
    assert all(min(cross.bounding_box()["width"], cross.bounding_box()["height"]) >= 24 for cross in crosses)
    assert not wrong
