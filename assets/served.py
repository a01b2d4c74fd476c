"""The app in a process of its own and a browser beside it, for what measures or photographs the page. Needs Chromium and playwright."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@contextmanager
def served() -> Iterator[str]:
    """The address of an app with an empty store that has just begun to listen."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        settings = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "QUANTIZATION_EXPLORER_STORE": f"{folder}/r.db"}
        with subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env={**os.environ, **settings}, stdout=subprocess.DEVNULL) as process:
            try:
                while True:
                    with socket.socket() as probe:
                        if probe.connect_ex(("127.0.0.1", port)) == 0:
                            break
                    if process.poll() is not None:
                        raise RuntimeError("the app ended before it listened")
                    time.sleep(0.02)
                yield f"http://127.0.0.1:{port}/"
            finally:
                process.terminate()


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=FLAGS)
        yield browser
        browser.close()


def open_tab(page: Any, name: str) -> None:
    """Opens a tab; on a narrow page the bar scrolls to it."""
    page.locator(f"#tab-{name}-button").click()
    page.locator(f"#tab-{name}").wait_for(state="visible", timeout=10_000)
