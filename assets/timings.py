"""Measures how long a person waits: `python -m assets.timings` writes assets/timings.json. Needs Chromium; run it on an idle machine."""

from __future__ import annotations

import datetime
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from assets.served import chromium, open_tab, served

RESULT = Path(__file__).with_suffix(".json")
RUNS = {"RTN 4-bit g64": ("rtn", "4"), "GPTQ 4-bit g64": ("gptq", "4")}
LAYERS = {"0 up_proj": "layers.0.mlp.up_proj", "1 q_proj": "layers.1.self_attn.q_proj", "2 down_proj": "layers.2.mlp.down_proj"}
# Sets window.waited to the milliseconds from the next press of the mouse to the end of the first frame that shows the layer's figure and its words.
WATCH = """path => {
  const figure = () => document.querySelector('#plot-weights .js-plotly-plot'), before = figure().data;
  let pressed;
  window.waited = 0;
  document.addEventListener('mousedown', event => { pressed = event.timeStamp; }, { once: true, capture: true });
  const painted = () => { window.waited = performance.now() - pressed; };
  const look = () => {
    const there = figure()?.data && figure().data !== before && document.querySelector('#tab-weights').textContent.includes(`Weights of ${path}`);
    requestAnimationFrame(there ? () => setTimeout(painted) : look);
  };
  look();
}"""
FILLED = "document.querySelectorAll('#tab-compare .js-plotly-plot .main-svg').length >= 4 && document.querySelector('#comparison table')"


def report_seconds() -> dict[str, float]:
    """Seconds from the runner's call to its report on the bundled model: first with nothing stored and no model loaded, then again."""
    from explorer.experiment import LocalRunner, last_report
    from explorer.store import Store

    taken: dict[str, float] = {}
    for name, (method, bits) in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder) / "r.db")
            for state in ("cold", "stored"):
                start = time.perf_counter()
                last_report(LocalRunner(store).run("demo", method, {"bits": int(bits)}))
                taken[f"{name}, {state}"] = time.perf_counter() - start
            store.close()
    return taken


def page_seconds(browser: Any, repeats: int = 3) -> float:
    """Seconds from the start of the process to a page with every figure of the first tab drawn in an open browser; the median."""
    taken = []
    for _ in range(repeats):
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        start = time.perf_counter()
        with served() as address:
            page.goto(address)
            page.wait_for_function(FILLED)
            taken.append(time.perf_counter() - start)
            page.close()
    return sorted(taken)[repeats // 2]


def picture_seconds(browser: Any, picks: int = 30) -> tuple[list[float], float]:
    """(seconds from the choice of a layer to its new picture on the screen in the Weights tab, sorted; megabytes that the first visit took)."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    weight = [0]
    network = context.new_cdp_session(page)
    network.send("Network.enable")
    network.on("Network.loadingFinished", lambda event: weight.append(event["encodedDataLength"]))
    taken = []
    with served() as address:
        page.goto(address)
        page.wait_for_function(FILLED)
        page.wait_for_load_state("networkidle")
        megabytes = sum(weight) / 1e6
        open_tab(page, "weights")
        page.wait_for_selector("#plot-weights .main-svg")
        page.wait_for_timeout(12_000)  # torch has been imported by then
        for pick in range(picks):
            layer = list(LAYERS)[pick % 3]
            page.click("#layer input")
            option = page.get_by_role("option", name=layer, exact=True)
            option.wait_for()
            page.evaluate(WATCH, LAYERS[layer])
            option.click()
            page.wait_for_function("window.waited")
            taken.append(page.evaluate("window.waited") / 1e3)
            page.wait_for_timeout(1500)  # a person looks at it; the tab's other figures follow meanwhile
        context.close()
    return sorted(taken), megabytes


def main() -> None:
    from explorer.devices import default_device
    from kernels.timing import device_name

    with chromium() as browser:
        rows = {"process start to a filled page": page_seconds(browser)}
        pictures, megabytes = picture_seconds(browser)
    rows |= {"choice of a layer to its picture, median": pictures[len(pictures) // 2], "the same, 95th percentile": pictures[len(pictures) * 19 // 20]}
    rows |= report_seconds()
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    record = {"device": device_name(default_device()), "date": date, "page_mb": round(megabytes, 2), "seconds": {k: round(v, 2) for k, v in rows.items()}}
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
