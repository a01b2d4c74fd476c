"""The Weights, Activations and Kernel tabs as a person meets them: a group under the microscope, planted outliers, the steps of the kernel."""

from __future__ import annotations

from tests.driving import browser_test, open_tab, settle, visit

pytestmark = browser_test


def drag(page, slider: str, value: str) -> None:
    """Sets a slider by its number field."""
    page.locator(f"{slider} input[type=number]").fill(value)


def test_a_planted_outlier_empties_its_group(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1440, 900)
    open_tab(page, "weights")
    group = page.locator("#microscope-group")
    group.locator("h3", has_text="RTN 4-bit g64, row 0, group 0").wait_for()
    assert group.locator("tbody tr").count() == 64 and group.locator(".ms-words > div").count() == 8
    for name in ("number_line", "error_map", "scales", "projections", "granularity", "shared_scale", "clipping", "weights"):
        page.locator(f"#plot-{name} .main-svg .trace, #plot-{name} .main-svg .hm").first.wait_for(state="attached")
    words = page.locator(".summary", has_text="With one scale for the tensor the narrowest")
    words.filter(has_text="4-bit RTN").first.wait_for()
    page.locator("#scale-each label", has_text="Group").click()
    page.locator(".summary", has_text="With one scale for the group the narrowest").first.wait_for()
    drag(page, "#ms-planted", "150")
    group.locator(".ms-facts div", has_text="become exactly 0, group").locator("b", has_text="100%").wait_for()
    page.click("#ms-outlier")
    group.locator("h3", has_not_text="row 0, group 0").first.wait_for()
    settle(page)  # the jump empties the box that is filled next
    page.locator("#ms-typed textarea, #ms-typed input").fill("not a number")
    page.keyboard.press("Enter")
    page.locator("#weights-status .error", has_text="must be numbers").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1440 and not wrong
    page.close()


def test_outliers_break_int8_live_and_the_dial_streams(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1440, 900, "dark")
    open_tab(page, "activations")
    summary = page.locator(".summary", has_text="Int8 weights alone cost")
    summary.first.wait_for()
    drag(page, "#strength", "8")
    page.locator(".summary", has_text="The weights suffer as well").first.wait_for()
    page.click("#dial-one")
    page.locator("#dial-status progress").wait_for()
    page.click("#dial-cancel")
    page.locator("#dial-status", has_text="Cancelled").wait_for()
    assert not wrong
    page.close()


def test_the_kernel_is_stepped_on_a_phone(browser, address: str) -> None:
    page, wrong = visit(browser, address, 390, 844)
    open_tab(page, "stepper")
    page.locator("#stepper h3", has_text="Step 1 of 13: Load").wait_for()
    page.click("#stepper-next")
    page.locator("#stepper h3", has_text="Step 2 of 13: Unpack").wait_for()
    drag(page, "#stepper-step", "13")
    page.locator("#stepper h3", has_text="Store the result").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390 and not wrong
    page.close()
