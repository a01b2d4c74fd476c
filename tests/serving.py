"""The app over a stand-in runner, in a process of its own: `python -m tests.serving PORT FOLDER`; and raw HTTP as a page speaks it. For load and faults."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from gradio_client.utils import apply_diff

from explorer.records import Event, Partial, Progress, QuantSpec, Report, report_from
from explorer.worker import WorkerSettings

ROOT = Path(__file__).parent.parent
SLOW = 30.0  # seconds that absmax takes here, to be cancelled
EARLY = 60  # steps after which a long run tells what it has


class Canned:
    """Gives a recorded report of the asked method after `seconds`, all but its speed before, one at a time; a baseline, and what was begun before, takes
    a tenth of them. Notes each computation as a line in the file of its store.
    """

    def __init__(self, settings: WorkerSettings, seconds: float) -> None:
        from explorer.turns import Line

        data = json.loads((ROOT / "assets" / "seed_results.json").read_text())
        self.reports = {r.experiment.spec.method: r for r in map(report_from, data)}
        self.log, self.seconds, self.line, self.made = settings.store, seconds, Line(), dict[str, Report]()
        self.begun = set[str]()

    def run(self, model: str, method: str, params: dict[str, Any], **options: Any) -> Iterator[Event]:
        from explorer.turns import waiting

        key = json.dumps([method, params, options], sort_keys=True)
        if key not in self.made:
            with self.line.place() as ahead:
                yield from waiting(ahead)
                with self.log.open("a") as file:
                    file.write(f"{time.monotonic()} start {key}\n")
                try:
                    brief = method == "none" or key in self.begun
                    steps = int((SLOW if method == "absmax" else self.seconds / 10 if brief else self.seconds) / 0.05)
                    self.begun.add(key)
                    made = self.of(method, params)
                    for i in range(steps):
                        yield Progress("measure", i, steps)
                        if i == min(steps // 4, EARLY):
                            yield Partial(untimed(made))
                        time.sleep(0.05)
                finally:
                    with self.log.open("a") as file:
                        file.write(f"{time.monotonic()} end {key}\n")
            self.made[key] = made
        yield self.made[key]

    def of(self, method: str, params: dict[str, Any]) -> Report:
        """The recorded report of a method under these parameters."""
        found = self.reports.get(method, self.reports["rtn"])
        return dataclasses.replace(found, experiment=dataclasses.replace(found.experiment, spec=QuantSpec.of(method, **params)))


def untimed(report: Report) -> Report:
    """A report as it is before its speed is measured."""
    kept = tuple(m for m in report.measurements if not m.metric.startswith(("decode_", "first_token", "time_to")))
    return dataclasses.replace(report, measurements=kept, provenance=report.provenance | {"missing": ["speed"]})


def canned(settings: WorkerSettings) -> Canned:
    """What WorkerSettings.factory names."""
    return Canned(settings, float(os.environ.get("CANNED_SECONDS", "0.3")))


class Storing:
    """Gives a recorded report of the asked method, stored before it is given, under its options' seed; in a real store that outlives the server."""

    def __init__(self, settings: WorkerSettings) -> None:
        from explorer.store import Store

        self.canned, self.store = Canned(settings, 0.0), Store(settings.store.with_name("r.db"))

    def run(self, model: str, method: str, params: dict[str, Any], **options: Any) -> Iterator[Event]:
        report = list(self.canned.run(model, method, params, **options))[-1]
        key = f"{method} {options['seed']}"
        held = self.store.get(key) is not None
        if not held:
            self.store.put(key, method, report.measurements, {"seed": options["seed"]})
        yield dataclasses.replace(report, provenance=report.provenance | {"from_store": held})


def storing(settings: WorkerSettings) -> Storing:
    """What WorkerSettings.factory names."""
    return Storing(settings)


@contextmanager
def served(folder: Path, seconds: float = 0.3, auth: Path | None = None, factory: str = "canned") -> Iterator[str]:
    """The address of the app over a stand-in runner, which a function of this module makes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.serving", str(port), str(folder), *([str(auth)] if auth else [])]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, "CANNED_SECONDS": str(seconds), "FACTORY": factory}) as process:
        address = f"http://127.0.0.1:{port}"
        (folder / "pid").write_text(str(process.pid))
        try:
            for _ in range(900):
                try:
                    urllib.request.urlopen(f"{address}/healthz", timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None, "the app ended"
                    time.sleep(0.1)
            yield address
        finally:
            process.terminate()


class Visitor:
    """One page: calls handlers as its script does, over the queue."""

    def __init__(self, client: httpx.AsyncClient, config: dict[str, Any]) -> None:
        self.client, self.config, self.session = client, config, secrets.token_hex(5)
        self.components = {c["id"]: c for c in config["components"]}
        self.run_handler = next(d for d in config["dependencies"] if any(self.named(t[0]) == "run" for t in d["targets"]))

    def named(self, component: int | None) -> str:
        """A component's elem_id, or its label where it has none; "" for one without either and for the page itself."""
        props = self.components.get(component, {"props": {}})["props"]
        return props.get("elem_id") or props.get("label") or ""

    def body(self, handler: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """A request with every input as the page starts with it; changes: by elem_id."""
        data = [changes.get(self.named(i), self.components[i]["props"].get("value")) for i in handler["inputs"]]
        return {"data": data, "fn_index": handler["id"], "session_hash": self.session, "trigger_id": None, "event_data": None}

    async def call(self, handler: dict[str, Any], **changes: Any) -> list[Any]:
        """The last output of a handler. Raises AssertionError when it is refused or fails."""
        return [output async for output in self.stream(handler, **changes)][-1]

    async def stream(self, handler: dict[str, Any], **changes: Any) -> Any:
        """Yields every output of a handler. A stream comes as its first output and then changes; at its end nothing is sent again."""
        joined = await self.client.post("/gradio_api/queue/join", json=self.body(handler, **changes))
        assert joined.status_code == 200, joined.text
        self.event = joined.json()["event_id"]
        shown: list[Any] = []
        async with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as answer:
            async for line in answer.aiter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("msg") == "process_generating":
                    told = message["output"]["data"]
                    shown = [apply_diff(old, changes) for old, changes in zip(shown, told, strict=True)] if shown else told
                    yield shown
                if message.get("msg") == "process_completed":
                    assert message["success"], message
                    if not shown:
                        yield message["output"]["data"]
                    return

    async def cancel(self, handler: dict[str, Any]) -> None:
        """What the page does on Cancel."""
        asked = {"session_hash": self.session, "fn_index": handler["id"], "event_id": self.event}
        assert (await self.client.post("/gradio_api/cancel", json=asked)).status_code == 200


def client(address: str) -> httpx.AsyncClient:
    """For hundreds of visitors at once."""
    return httpx.AsyncClient(base_url=address, timeout=60, limits=httpx.Limits(max_connections=None), trust_env=False, verify=False)


async def warm(address: str) -> dict[str, Any]:
    """The app's config, once its worker is ready."""
    async with client(address) as http:
        visitor = Visitor(http, (await http.get("/config")).json())
        await visitor.call(visitor.run_handler)  # wakes the worker
        for _ in range(200):
            if (await http.get("/healthz")).status_code == 200:
                return visitor.config
            await asyncio.sleep(0.1)
    raise AssertionError("no worker after 20 s")


def main() -> None:
    import app
    from explorer.hub import HubSettings
    from explorer.jobs import WorkerRunner
    from explorer.limits import Limits
    from explorer.server.health import Metrics
    from explorer.server.login import read
    from explorer.ui.visitor import session

    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    metrics = Metrics()
    work = WorkerSettings(folder / "log", HubSettings(offline=True), f"tests.serving:{os.environ['FACTORY']}")
    made = app.Settings(port=port, store=folder / "log", open_browser=False)
    names = read(Path(sys.argv[3])) if len(sys.argv) > 3 else {}
    app.serve(made, WorkerRunner(work, Limits(spare=False), session, metrics), metrics, names)


if __name__ == "__main__":
    main()
