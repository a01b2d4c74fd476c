"""A run that takes a while, in a real Chromium: its column stands as soon as size and quality are known, and fills without moving."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.driving import browser_test, visit, wait_for_status
from tests.serving import served

pytestmark = browser_test
ROWS = "() => [...document.querySelector('#comparison table:not(.more)').rows].map(row => Math.round(row.getBoundingClientRect().height))"
WIDTHS = "() => [...document.querySelectorAll('#comparison table:not(.more) thead th')].map(cell => Math.round(cell.getBoundingClientRect().width))"


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app over a stand-in whose runs take some seconds."""
    with served(tmp_path_factory.mktemp("app"), seconds=6.0) as url:
        yield f"{url}/"


def row(page, title: str) -> str:
    """The text of the cell of the second configuration in the row of this title."""
    line = page.locator("#comparison table:not(.more) tr", has=page.locator("th", has_text=title)).first
    return " ".join(line.locator("td").nth(1).inner_text().split())


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_quality_is_there_before_the_run_ends_and_stays_after_cancel(browser, slow: str, width: int, height: int) -> None:
    bits = 3 if width > 700 else 5  # neither ships as a recording
    page, wrong = visit(browser, slow, width, height, query=f"&method=gptq&bits={bits}&group_size=32")
    page.click("#run")
    page.locator("#comparison thead .chip", has_text="being measured").first.wait_for(timeout=60_000)
    assert page.locator("#status .status.busy").count(), "the run goes on"
    assert row(page, "KL divergence, mean")[0].isdigit() and row(page, "Decoding").startswith("being measured")
    assert "partly checked" in row(page, "Failure check")
    rows, widths = page.evaluate(ROWS), page.evaluate(WIDTHS)
    page.click("#cancel")
    page.locator("#comparison thead .chip", has_text="incomplete, stopped").first.wait_for(timeout=10_000)
    wait_for_status(page, "Cancelled", 5)
    assert row(page, "Decoding").startswith("not measured: stopped") and row(page, "KL divergence, mean")[0].isdigit()
    page.click("#run")
    page.locator("#comparison thead .chip", has_text="being measured").first.wait_for(timeout=60_000)
    page.locator("#status .status.done").wait_for(timeout=60_000)
    assert row(page, "Decoding")[0].isdigit() and "no failure found" in row(page, "Failure check")
    assert page.evaluate(ROWS)[1:] == rows[1:] and (width < 700 or page.evaluate(WIDTHS) == widths), "the column took its place once"
    assert not wrong
    page.close()
