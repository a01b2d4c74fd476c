"""A run that takes a while, in a real Chromium: its column stands as soon as size and quality are known, and fills without moving."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.driving import browser_test, visit, wait_for_status
from tests.serving import served

pytestmark = browser_test
# What the table of the comparison shows: the height of each row, the width of each column, the second configuration's cell in each row by its title.
TABLE = """() => {
  const table = document.querySelector('#comparison table:not(.more)'), text = (cell) => cell.textContent.replace(/\\s+/g, ' ').trim();
  const size = (cell, side) => Math.round(cell.getBoundingClientRect()[side]), rows = [...table.rows].filter(row => row.cells.length > 2);
  return {rows: [...table.rows].slice(1).map(row => size(row, 'height')), widths: [...table.rows[0].cells].map(cell => size(cell, 'width')),
    cells: Object.fromEntries(rows.map(row => [text(row.cells[0]), text(row.cells[2])])), busy: !!document.querySelector('#status .status.busy')};
}"""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app over a stand-in whose runs take long enough to be cancelled, and little when they are begun again."""
    with served(tmp_path_factory.mktemp("app"), seconds=60.0) as url:
        yield f"{url}/"


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_quality_is_there_before_the_run_ends_and_stays_after_cancel(browser, slow: str, width: int, height: int) -> None:
    bits = 3 if width > 700 else 5  # neither ships as a recording
    page, wrong = visit(browser, slow, width, height, query=f"&method=gptq&bits={bits}&group_size=32")
    page.click("#run")
    page.locator("#comparison thead .chip", has_text="being measured").first.wait_for()
    part = page.evaluate(TABLE)
    page.click("#cancel")
    page.locator("#comparison thead .chip", has_text="incomplete, stopped").first.wait_for()
    wait_for_status(page, "Cancelled")
    kld, speed = "KL divergence, mean nats", "Decoding tokens/s"
    assert part["busy"] and part["cells"][kld][0].isdigit() and part["cells"][speed].startswith("being measured")
    assert "partly checked" in part["cells"]["Failure check"]
    stopped = page.evaluate(TABLE)["cells"]
    assert stopped[speed].startswith("not measured: stopped") and stopped[kld] == part["cells"][kld]
    page.click("#run")
    page.locator("#status .status.done").wait_for()
    page.wait_for_function("window.going === ''")  # nothing that a reload would go on with
    whole = page.evaluate(TABLE)
    assert whole["cells"][speed][0].isdigit() and "no failure found" in whole["cells"]["Failure check"]
    assert whole["rows"] == part["rows"] and (width < 700 or whole["widths"] == part["widths"]), "the column took its place once"
    assert not wrong
    page.close()
