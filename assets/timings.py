"""Measures how long a person waits: `python -m assets.timings` writes assets/timings.json. Needs Chromium; run it on an idle machine."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULT = Path(__file__).with_suffix(".json")
RUNS = {"RTN 4-bit g64": ("rtn", "4"), "GPTQ 4-bit g64": ("gptq", "4")}


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


def page_seconds(repeats: int = 3) -> float:
    """Seconds from the start of the process to a page with every figure drawn in an open browser; the median."""
    from playwright.sync_api import sync_playwright

    taken = []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        for _ in range(repeats):
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            settings = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "QUANTIZATION_EXPLORER_STORE": f"{folder}/r.db"}
            start = time.perf_counter()
            with subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env={**os.environ, **settings}, stdout=subprocess.DEVNULL) as process:
                while True:
                    with socket.socket() as probe:
                        if probe.connect_ex(("127.0.0.1", port)) == 0:
                            break
                    time.sleep(0.02)
                page.goto(f"http://127.0.0.1:{port}/")
                page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 8 && document.querySelector('#comparison table')")
                taken.append(time.perf_counter() - start)
                page.close()
                process.terminate()
        browser.close()
    return sorted(taken)[repeats // 2]


def main() -> None:
    from explorer.devices import default_device, device_name

    rows = {"process start to a filled page": page_seconds(), **report_seconds()}
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    RESULT.write_text(
        json.dumps({"device": device_name(default_device()), "date": date, "seconds": {k: round(v, 2) for k, v in rows.items()}}, indent=1) + "\n"
    )
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
