"""The page that `run --html` writes: which runs stand on it, and that it is the page's own report, with its table, its style and its script."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from explorer.__main__ import main
from explorer.commands.run import page_of
from explorer.link import WHOLE
from explorer.recorded import SEEDS
from explorer.records import Event, Report, report_from
from tests.driving import LOW_CONTRAST, browser_test

ALL = [report_from(data) for data in json.loads(SEEDS.read_text())]


def with_widths(report: Report, widths: dict[str, int]) -> Report:
    """A report of the same configuration with these bits of cache and head."""
    spec = dataclasses.replace(report.experiment.spec, **widths)
    return dataclasses.replace(report, experiment=dataclasses.replace(report.experiment, spec=spec))


class Recorded:
    """A runner that gives recorded reports and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def run(self, model: str, method: str, params: dict[str, Any], **options: Any) -> Iterator[Event]:
        self.asked.append((method, options))
        spec = {name: options[name] for name in WHOLE}
        yield with_widths(ALL[0] if method == "none" else ALL[2], spec)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    found = Recorded()
    monkeypatch.setattr("explorer.commands.run.runner_of", lambda store: found)
    return found


@pytest.mark.parametrize("widths", [{"head_bits": 8}, {"kv_bits": 4}, {"kv_bits": 8, "head_bits": 4}])
@pytest.mark.parametrize("method", ["rtn", "none"])
def test_the_baseline_beside_it_keeps_cache_and_head(runner: Recorded, method: str, widths: dict[str, int], tmp_path: Path) -> None:
    flags = [word for name, bits in widths.items() for word in (f"--{name.replace('_', '-')}", str(bits))]
    assert main(["run", "--method", method, *flags, "--html", str(tmp_path / "p.html"), "--store", str(tmp_path / "r.db")]) == 0
    (first, own), (second, whole) = runner.asked
    assert (first, second) == (method, "none") and {name: own[name] for name in widths} == widths
    assert {name: whole[name] for name in WHOLE} == WHOLE and own | WHOLE == whole


def test_it_is_the_report_of_the_page() -> None:
    """With the comparison and its verdicts, but no button that needs a server; with the page's style, also on a dark screen, and its script."""
    page = page_of([ALL[0], ALL[2]])
    assert "class='compare'" in page and "no failure found" in page and "data-pick" not in page.split("<script>")[0]
    style, script = page.split("<style>")[1].split("</style>")[0], page.rsplit("<script>", 1)[1]
    assert "table.compare th" in style and "[data-copy]" in script and "pv-tip" in script
    dark = style.split("@media screen and (prefers-color-scheme: dark)")[1].split("} }")[0]
    assert "--body-background-fill: #0" in dark and "--link: #6db6ea" in dark and "--simulated" in dark, "the colours of the page's dark theme"


@browser_test[0]
@browser_test[1]
def test_it_answers_from_a_disk_and_asks_nobody(browser, tmp_path: Path) -> None:
    path = tmp_path / "p.html"
    path.write_text(page_of([ALL[0], *ALL[2:]]))
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=scheme, permissions=["clipboard-read", "clipboard-write"])
        page, wrong = context.new_page(), list[str]()
        page.on("console", lambda message, wrong=wrong: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error)))
        page.on("request", lambda request, wrong=wrong: wrong.append(request.url) if not request.url.startswith(("data:", "blob:", path.as_uri())) else None)
        page.goto(path.as_uri())
        page.wait_for_selector("#quality .main-svg")
        assert page.evaluate(LOW_CONTRAST.replace(".gradio-container", "body")) == []
        page.locator("table.compare .pv").first.click()
        assert "measured: over 16 windows" in page.locator("#pv-tip").inner_text()
        page.get_by_text("Bits per weight, stored").click()
        assert page.locator("th[aria-sort=ascending]").inner_text().startswith("Bits per weight, stored")
        page.locator("[data-copy]").first.click()
        page.get_by_text("Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()").startswith("python -m explorer run")
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)", "paper is white"
        assert not wrong
        context.close()


@browser_test[0]
@browser_test[1]
def test_a_command_is_selected_where_there_is_no_clipboard(browser, tmp_path: Path) -> None:
    (tmp_path / "p.html").write_text(page_of([ALL[0], ALL[2]]))
    page = browser.new_page()
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.goto((tmp_path / "p.html").as_uri())
    page.locator("[data-copy]").first.click()
    assert page.evaluate("String(getSelection())").startswith("python -m explorer run")
    page.close()
