"""Composition root and Hugging Face Space entry: store + loader + runner -> UI -> launch. torch loads while the page is already served."""

from __future__ import annotations

import inspect
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from explorer.records import Event, Progress, Report, report_from


@contextmanager
def no_type_stubs() -> Iterator[None]:
    """While gradio is imported: it would rewrite the type stubs of all its components for editors, which takes a third of the time to the first
    page. It skips components whose source file cannot be told.
    """
    real = inspect.getfile

    def unknown(item: object) -> str:
        raise OSError("not told while gradio is imported")

    inspect.getfile = unknown
    try:
        yield
    finally:
        inspect.getfile = real


with no_type_stubs():
    from explorer.ui.app import STYLE, build, theme

ASSETS = Path(__file__).parent / "assets"


class LazyRunner:
    """Makes the real runner in a background thread, `delay` seconds after the start or at the first run, so that the first page does not wait
    for torch. A run that comes sooner than torch waits, and says so.
    """

    def __init__(self, store: Path, delay: float = 0.0) -> None:
        self._store, self._made, self._wanted, self._runner, self._error = store, threading.Event(), threading.Event(), None, None
        threading.Thread(target=self._make, args=(delay,), daemon=True).start()

    def _make(self, delay: float) -> None:
        self._wanted.wait(delay)
        try:
            from explorer.experiment import LocalRunner
            from explorer.store import Store

            self._runner = LocalRunner(Store(self._store))
        except Exception as error:  # shown to whoever presses Run
            self._error = error
        self._made.set()

    def _ready(self) -> Iterator[Event]:
        self._wanted.set()
        while not self._made.wait(0.5):
            yield Progress("starting", 0, 1, "loading torch and transformers")
        if self._error is not None:
            raise RuntimeError(f"the engine could not start: {self._error}") from self._error

    def run(self, model: str, method: str, params: dict[str, Any], **options: Any) -> Iterator[Event]:
        yield from self._ready()
        yield from self._runner.run(model, method, params, **options)

    def do(self, task: str, arguments: dict[str, Any]) -> Iterator[Event]:
        yield from self._ready()
        yield from self._runner.do(task, arguments)


def seeds() -> list[Report]:
    """The results the page shows first, marked as recorded."""
    reports = [report_from(data) for data in json.loads((ASSETS / "seed_results.json").read_text())]
    for report in reports:
        report.provenance["recorded"] = True
    return reports


def main() -> None:
    store = Path(os.environ.get("QUANTIZATION_EXPLORER_STORE", Path.home() / ".cache" / "quantization-explorer" / "results.db"))
    catalogue = json.loads((ASSETS / "methods.json").read_text())["methods"]
    architectures = [f"arch:{path.stem}" for path in sorted((ASSETS / "architectures").glob("*.json"))]
    blocks = build(LazyRunner(store, delay=4.0), seeds(), catalogue, ["demo", *architectures])
    blocks.queue(max_size=256).launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        server_port=int(os.environ["GRADIO_SERVER_PORT"]) if "GRADIO_SERVER_PORT" in os.environ else None,
        theme=theme(), css=STYLE.read_text(), max_threads=200, state_session_capacity=300, enable_monitoring=False, run_history=False,
        show_error=False, max_file_size="1kb", footer_links=[], ssr_mode=False, strict_cors=True, inbrowser="GRADIO_SERVER_NAME" not in os.environ,
    )  # fmt: skip


if __name__ == "__main__":
    main()
