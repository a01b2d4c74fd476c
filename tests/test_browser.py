"""The app as a person meets it, in a real Chromium: the first view, a comparison, a cancelled run, one layer, a phone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the path (Debian: the package chromium)")]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app in a process of its own, with an empty store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = tmp_path_factory.mktemp("app") / "r.db"
    settings = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "QUANTIZATION_EXPLORER_STORE": str(store)}
    with subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env={**os.environ, **settings}, stdout=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}/"
        for _ in range(240):
            try:
                urllib.request.urlopen(url, timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "the app ended"
                time.sleep(0.25)
        yield url
        process.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


def visit(browser, address: str, width: int, height: int, theme: str = "light"):
    """An open page of a size, and the list that collects its console errors and its requests to other hosts."""
    page = browser.new_page(viewport={"width": width, "height": height})
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith((address, "data:", "blob:")) else None)
    page.goto(f"{address}?__theme={theme}")
    page.wait_for_selector("#plot-quality .main-svg", timeout=30_000)
    page.wait_for_load_state("load")
    return page, wrong


def choose(page, label: str) -> None:
    """Clicks a choice among the controls of the shown method."""
    page.locator("#controls .method fieldset label:visible").get_by_text(label, exact=True).first.click()


def wait_for_status(page, words: str, seconds: float = 90) -> None:
    page.locator("#status .status", has_text=words).wait_for(timeout=1000 * seconds)


@pytest.mark.parametrize(("width", "height", "theme"), [(1440, 900, "light"), (1440, 900, "dark"), (390, 844, "light")])
def test_first_view_is_filled_and_fits(browser, address: str, width: int, height: int, theme: str) -> None:
    page, wrong = visit(browser, address, width, height, theme)
    assert page.locator("#comparison thead th").count() == 6
    assert page.locator(".sample").count() == 5
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 8")
    for name in ("quality", "divergence", "memory", "speed", "layers", "weights", "activations", "outliers"):
        plot, drawing = page.locator(f"#plot-{name}").bounding_box(), page.locator(f"#plot-{name} .main-svg").first.bounding_box()
        assert abs(plot["width"] - drawing["width"]) < 4 and drawing["height"] >= 300, name
        assert page.locator(f"#plot-{name} .main-svg").first.text_content().strip(), name
    assert not wrong
    page.close()


def test_text_has_contrast(browser, address: str) -> None:
    """Every visible text stands at 4.5:1 or more on its background, in both themes (WCAG 2.1, 1.4.3)."""
    for theme in ("light", "dark"):
        page, _ = visit(browser, address, 1440, 900, theme)
        page.wait_for_timeout(500)
        assert page.evaluate(LOW_CONTRAST) == [], theme
        page.close()


LOW_CONTRAST = """() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return c.startsWith('color(srgb') ? m.map((v, i) => i < 3 ? 255 * v : v) : m };
  const over = (top, below) => { const a = top.length > 3 ? top[3] : 1; return [0, 1, 2].map(i => a * top[i] + (1 - a) * below[i]) };
  const light = c => { const f = c.slice(0, 3).map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2] };
  const ground = e => { const up = []; for (; e; e = e.parentElement) up.push(parse(getComputedStyle(e).backgroundColor));
    return up.reverse().reduce((below, top) => over(top, below), [255, 255, 255]) };
  const low = [];
  const walk = document.createTreeWalker(document.querySelector('.gradio-container'), NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, box = e.getBoundingClientRect();
    if (!walk.currentNode.textContent.trim() || !box.width || e.closest('script,style,[aria-hidden=true],.hidden') || e.closest('svg:not(.main-svg)')) continue;
    const style = getComputedStyle(e);
    if (style.visibility === 'hidden' || style.opacity === '0') continue;
    const back = ground(e), paint = over(parse(e.closest('svg') ? style.fill : style.color), back);
    const [a, b] = [light(paint), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push(ratio.toFixed(2) + ' ' + walk.currentNode.textContent.trim().slice(0, 40));
  }
  return [...new Set(low)];
}"""


def test_run_adds_a_column_and_returns_from_the_store_at_once(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1440, 900)
    choose(page, "3")
    page.click("#run")
    page.locator("#status progress").wait_for(timeout=30_000)
    wait_for_status(page, "RTN 3-bit g64: measured now")
    heads = page.locator("#comparison thead th").all_inner_texts()
    assert len(heads) == 6 and "RTN 3-bit g64" in " ".join(heads[-1].split()) and "16-bit baseline" in " ".join(heads[1].split())
    page.click("#reset")
    wait_for_status(page, "recorded results")
    page.click("#run")
    wait_for_status(page, "RTN 3-bit g64: from the store")
    assert not wrong
    page.close()


def test_cancel_stops_the_work_and_the_next_run_starts(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1440, 900)
    page.click("#method input")
    page.get_by_role("option", name="GPTQ").click()
    page.wait_for_timeout(500)
    choose(page, "2")
    page.click("#run")
    wait_for_status(page, "quantize", 60)
    page.click("#cancel")
    wait_for_status(page, "Cancelled", 2)
    page.wait_for_timeout(2000)
    choose(page, "3")
    page.click("#run")
    page.locator("#status progress").wait_for(timeout=5000)
    lines = set()
    for _ in range(20):
        lines.add(page.inner_text("#status"))
        page.wait_for_timeout(100)
    assert not any("ahead in line" in line for line in lines), "2 seconds after Cancel the work must have stopped"
    page.click("#cancel")
    wait_for_status(page, "Cancelled", 2)
    assert page.locator("#comparison thead th").count() == 6 and not wrong
    page.close()


def test_bad_input_is_a_sentence(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1440, 900)
    page.fill("#model input", "no such/model!")
    page.keyboard.press("Enter")
    page.click("#run")
    wait_for_status(page, "is neither a folder here nor a model id", 60)
    assert page.locator("#comparison thead th").count() == 6 and not wrong
    page.close()


def test_layer_and_columns_can_be_changed(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1440, 900)
    page.click("#layer input")
    page.get_by_role("option", name="1 down_proj").click()
    page.get_by_text("Weights of layers.1.mlp.down_proj").wait_for(timeout=5000)
    page.locator("#compared .token-remove").nth(2).click()
    page.wait_for_function("document.querySelectorAll('#comparison thead th').length === 5")
    assert not wrong
    page.close()
