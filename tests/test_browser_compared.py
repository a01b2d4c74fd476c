"""What is compared, in a real Chromium: taken off at once, its baseline taken off, and put there by a click far from where it shows."""

from __future__ import annotations

from tests.driving import browser_test, open_tab, settle, visit, wait_for_status

pytestmark = browser_test
# The colour of each configuration, by its name: in the head of the table, and in two figures.
COLOURS = """() => {
  const drawn = (at) => [...document.querySelector(`${at} .js-plotly-plot`).data].map(trace => [trace.name, trace.marker.color]);
  const heads = [...document.querySelectorAll('#comparison table:not(.more) thead th:has(.swatch)')];
  const table = heads.map(head => [head.childNodes[1].textContent, getComputedStyle(head.firstChild).backgroundColor]);
  return Object.fromEntries([['table', table], ['#plot-quality', drawn('#plot-quality')], ['#plot-speed', drawn('#plot-speed')]]
    .map(([at, pairs]) => [at, Object.fromEntries(pairs)]));
}"""


def columns(page) -> int:
    return page.locator("#comparison table.compare:not(.more) thead th").count() - 1


def test_what_is_taken_off_at_once_leaves_every_tab(desk: tuple) -> None:
    page, wrong = desk
    assert columns(page) == 5
    page.locator("#compared .remove-all").click()
    wait_for_status(page, "The 16-bit baseline stays")
    settle(page)
    assert columns(page) == 1 and page.locator("#compared .token").count() == 1
    open_tab(page, "weights")
    page.locator("#tab-weights", has_text="Run a quantized configuration").wait_for()
    open_tab(page, "compare")
    page.locator("#compared .token-remove").first.click()  # the baseline itself
    settle(page)
    assert columns(page) == 1 and page.locator("#compared .token").count() == 1
    page.click("#reset")
    settle(page)
    assert columns(page) == 5 and not wrong


def test_a_laptop_at_twice_its_size_has_no_column_beside_the_results(desk: tuple) -> None:
    """1,440 by 900 points at 200% are 720 by 450: the controls stand above what is compared, the table has the page's width."""
    page, wrong = desk
    page.set_viewport_size({"width": 720, "height": 450})
    page.locator("#fold").wait_for()
    controls, results = (page.locator(part).bounding_box() for part in ("#controls", "#results"))
    assert controls["x"] == results["x"] and results["width"] > 680 and page.evaluate("document.documentElement.scrollWidth") == 720
    page.set_viewport_size({"width": 1440, "height": 900})
    page.locator("#fold").wait_for(state="hidden")
    assert not wrong


def test_tabs_are_one_stop_and_groups_have_names(desk: tuple) -> None:
    """The open tab is the bar's only stop, arrows walk it, Enter opens; a group of choices is called by its question, a button by what it is about."""
    page, wrong = desk
    stops = "() => [...document.querySelectorAll('#tabs > .tab-wrapper > [role=tablist] [role=tab]')].filter(tab => tab.tabIndex === 0).map(tab => tab.id)"
    assert page.evaluate(stops) == ["tab-compare-button"]
    page.locator("#tab-compare-button").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.locator("#tab-weights").wait_for(state="visible")
    page.wait_for_function(f"({stops})().join() === 'tab-weights-button'")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.locator("#tab-compare").wait_for(state="visible")
    names = page.evaluate("[...document.querySelectorAll('#controls fieldset')].filter(group => group.offsetParent).map(group => group.ariaLabel)")
    assert names == ["Bits", "Granularity", "Group size"] and page.get_by_role("button", name="batch sweep of RTN 4-bit g64").count() == 1
    assert not wrong


def test_a_page_that_nobody_touches_draws_nothing(desk: tuple) -> None:
    page, wrong = desk
    settle(page)
    before = page.evaluate("window.frames_asked")
    page.wait_for_timeout(2000)
    assert before > 0 and page.evaluate("window.frames_asked") - before < 20, "it asks for every frame of two seconds"
    assert not wrong


def test_the_address_is_written_at_once_when_one_is_taken_off(desk: tuple) -> None:
    page, wrong = desk
    settle(page)
    page.evaluate("() => { const plain = window.setTimeout; window.setTimeout = (f, ms, ...more) => plain(f, ms >= 900 ? 60000 : ms, ...more) }")
    page.locator("#compared .token-remove").nth(1).click()
    page.wait_for_url("**with=&with=**")
    page.reload()
    wait_for_status(page, "Opened from a link")
    settle(page)
    assert page.locator("#compared .token").count() == 4
    page.click("#reset")
    settle(page)
    assert columns(page) == 5 and not wrong


def test_those_that_stay_keep_their_colours(desk: tuple) -> None:
    page, wrong = desk
    before = page.evaluate(COLOURS)
    page.locator("#compared .token-remove").nth(1).click()
    wait_for_status(page, "Off the page")
    settle(page)
    after = page.evaluate(COLOURS)
    assert len(before["#plot-quality"]) == len(after["#plot-quality"]) + 1 == 4 and len(after["table"]) == 4
    assert all(after[place].items() <= before[place].items() for place in ("table", "#plot-quality", "#plot-speed"))
    page.wait_for_url("**with=&with=**")
    page.reload()
    wait_for_status(page, "Opened from a link")
    settle(page)
    assert page.evaluate(COLOURS) == after, "and the link gives the same ones again"
    page.click("#reset")
    settle(page)
    assert page.evaluate(COLOURS) == before and not wrong


def test_a_name_in_the_table_of_points_brings_its_report_into_view(desk: tuple) -> None:
    page, wrong = desk
    open_tab(page, "tradeoffs")
    page.locator("#points-table button.name").nth(20).click()
    page.locator("#point-report table.compare").first.wait_for()
    page.wait_for_function("document.activeElement.id === 'point-report'")
    top = page.locator("#point-report").bounding_box()["y"]
    assert -5 <= top < page.viewport_size["height"] / 2 and not wrong


def test_a_step_without_runs_has_no_button_for_compare(desk: tuple) -> None:
    page, wrong = desk
    open_tab(page, "learn")
    page.locator("#learn-compare").wait_for(state="hidden")  # the first walkthrough is arithmetic
    page.locator("#learn-story input").click()
    page.get_by_role("option").nth(3).click()
    page.locator("#learn-compare").wait_for(state="visible")
    page.click("#learn-compare")
    page.locator("#tab-compare").wait_for(state="visible")
    wait_for_status(page, "left the page; Reset")
    settle(page)
    assert columns(page) > 1 and not wrong
    other, wrong = visit(page.context.browser, page.url.split("?")[0], 1440, 900)
    assert columns(other) == 5 and "not recorded" not in other.inner_text("#comparison"), "another visitor's first view is as full as ever"
    assert not wrong
    other.close()
