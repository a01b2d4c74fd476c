"""Layers, Trade-offs and Planner in a real Chromium: what is recorded is there at once, controls answer, a row joins Compare, a sweep stops."""

from __future__ import annotations

import time

from tests.driving import browser_test, open_tab, visit

pytestmark = browser_test


def numbers(page, selector: str) -> str:
    return " ".join(page.inner_text(selector).split())


def test_a_budget_moves_the_map(desk: tuple) -> None:
    page, wrong = desk
    open_tab(page, "layers")
    for name in ("sensitivity", "sensitivity_ranking", "allocation_map", "allocation"):
        page.wait_for_selector(f"#plot-{name} .main-svg")
    said = page.locator("#tab-layers .prose.summary", has_text="stored bits a weight")
    before = said.inner_text()
    box = page.locator("#budget input[type=number]")
    box.fill("4")
    box.press("Enter")
    start = time.monotonic()
    page.wait_for_function("before => ![...document.querySelectorAll('#tab-layers .prose.summary')].some(e => e.innerText === before)", arg=before)
    assert time.monotonic() - start < 3 and "at 4 bits" in said.inner_text() and not wrong
    assert "No file holds it in low bits" in numbers(page, "#allocation-status")
    page.locator("#widths").get_by_label("4 and 8", exact=False).check(force=True)
    page.locator("#allocation-status", has_text="takes 4.312 bits a weight, more than the budget of 4; raise it").wait_for()
    box.fill("5")
    box.press("Enter")
    page.locator("#allocation-status", has_text="Commands writes it as compressed-tensors for vLLM").wait_for()
    assert "25 at 4 bits, 17 at 8 bits" in said.inner_text() and not wrong


def test_a_row_joins_compare_and_a_sweep_starts_and_stops(desk: tuple) -> None:
    page, wrong = desk
    open_tab(page, "tradeoffs")
    page.wait_for_selector("#plot-tradeoffs .main-svg")
    assert "6 configurations" in numbers(page, "#sweep-status")
    page.locator("#points-table button", has_text="SmoothQuant per-channel").first.click()
    page.locator("#point-report button", has_text="Put it into Compare").click()
    page.locator("#sweep-status", has_text="is in Compare").wait_for()
    assert "SmoothQuant per-channel" in numbers(page, "#compared")
    page.get_by_label("Latency", exact=False).first.check(force=True)
    page.locator("#tab-tradeoffs .prose.summary", has_text="Device:").wait_for()
    for label in ("2", "3"):
        page.locator("#tab-tradeoffs").get_by_label(label, exact=True).first.uncheck(force=True)
    page.locator("#sweep-status", has_text="2 configurations").wait_for()
    page.click("#sweep-run")
    page.locator("#sweep-status progress").wait_for()
    page.click("#sweep-cancel")
    page.locator("#sweep-status", has_text="Cancelled").wait_for()
    assert not wrong


def test_the_planner_answers_and_fits_a_phone(browser, address: str) -> None:
    page, wrong = visit(browser, address, 390, 844, "dark")
    open_tab(page, "planner")
    page.wait_for_selector("#plot-plan .main-svg")
    assert "70.554 billion" in numbers(page, "#plan-status") and page.locator("#plan-table tbody tr").count() >= 15
    page.locator("#tab-planner .fold").click()
    page.locator("#tab-planner").get_by_label("16", exact=True).first.check(force=True)
    start = time.monotonic()
    page.locator("#plan-status", has_text="Weights 141 GB").wait_for()
    assert time.monotonic() - start < 2 and page.evaluate("document.documentElement.scrollWidth") <= 390 and not wrong
    page.locator("#plan-context input[type=number]").press("Control+a")
    page.keyboard.type("-5")
    page.locator("#plan-status", has_text="from 512 to 131,072, not -5.").wait_for()
    page.locator("#plan-context input[type=number]").press("Control+a")
    page.keyboard.type("512\t")
    page.locator("#plan-status", has_text="a user at 512 tokens").wait_for()
    page.locator("#plan-cards input").press("Control+a")
    for typed, said in (("17", "from 1 to 16, not 17."), ("2", "2 × A100 80 GB hold llama-3.1-70b for 10 users at 512 tokens in BF16")):
        page.keyboard.type(typed)
        page.locator("#plan-status", has_text=said).wait_for()
        page.locator("#plan-cards input").press("Control+a")
    assert not page.locator(".toast-body").count() and not wrong
    page.close()


def test_a_link_brings_back_what_a_tab_is_set_to(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1440, 900, query="&tab=layers&layers.budget=4&layers.width=2")
    page.locator("#tab-layers .prose.summary", has_text="at 4 bits").wait_for()
    assert page.input_value("#budget input[type=number]") == "4" and not wrong
    open_tab(page, "weights")
    box = page.locator("#ms-planted input[type=number]")
    box.fill("40")
    box.press("Enter")
    page.click("#copy-link")
    page.locator("#status", has_text="weights.planted=40").wait_for()
    page.close()
