"""Proofs under load and faults, on loopback: `python -m tests.soak short|long [NAME ...]`. Prints one line each; `long` writes assets/soak.json."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.serving import ROOT, Visitor, client, served, warm

RESULTS = ROOT / "assets" / "soak.json"
CONFIGURATIONS = [{"method": method, "kv": bits} for method in ("rtn", "gptq", "awq", "nf4", "hqq") for bits in (16, 4)]


def figures(seconds: list[float]) -> dict[str, float]:
    """Count, median, 95th percentile and most, in ms."""
    ordered = sorted(seconds)
    return {
        "requests": len(ordered), "p50_ms": round(1000 * statistics.median(ordered)), "p95_ms": round(1000 * ordered[int(0.95 * (len(ordered) - 1))]),
        "max_ms": round(1000 * ordered[-1]),
    }  # fmt: skip


async def visit(address: str, config: dict[str, Any], seconds: float, think: float, taken: list[float], wrong: list[str], delay: float) -> None:
    """One visitor who runs stored configurations, with a pause between them."""
    await asyncio.sleep(delay)
    rng, until = random.Random(delay), time.monotonic() + seconds
    async with client(address) as http:
        visitor = Visitor(http, config)
        while time.monotonic() < until:
            start = time.perf_counter()
            try:
                outputs = await visitor.call(visitor.run_handler, **rng.choice(CONFIGURATIONS))
                if "done" not in outputs[0]:
                    wrong.append(str(outputs[0])[:200])
                taken.append(time.perf_counter() - start)
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}"[:200])
            await asyncio.sleep(think * rng.uniform(0.7, 1.3))


async def fill(address: str, config: dict[str, Any]) -> None:
    """Every configuration once, so that all are stored."""
    async with client(address) as http:
        for chosen in CONFIGURATIONS:
            visitor = Visitor(http, config)
            await visitor.call(visitor.run_handler, **chosen)


def sessions(count: int, seconds: float, think: float = 4.0) -> dict[str, Any]:
    """Visitors who look at stored results; with the CPU time that one look takes of the server and of this load generator, which share the cores."""
    taken: list[float] = []
    wrong: list[str] = []
    used: list[float] = []

    async def crowd(address: str, server: psutil.Process) -> None:
        config = await warm(address)
        await fill(address, config)
        before = [sum(process.cpu_times()[:2]) for process in (server, psutil.Process())]
        await asyncio.gather(*(visit(address, config, seconds, think, taken, wrong, think * i / count) for i in range(count)))
        used.extend(sum(process.cpu_times()[:2]) - then for process, then in zip((server, psutil.Process()), before, strict=True))

    with tempfile.TemporaryDirectory() as folder, served(Path(folder), seconds=0.0) as address:
        asyncio.run(crowd(address, server_of(folder)))
    each = [round(1000 * seconds / len(taken), 1) for seconds in used]
    return {"sessions": count, "errors": len(wrong), **figures(taken), "server_cpu_ms": each[0], "client_cpu_ms": each[1], "wrong": wrong[:3]}


def server_of(folder: str) -> psutil.Process:
    """The process that `served` started in a folder."""
    return psutil.Process(int((Path(folder) / "pid").read_text()))


def class_start(count: int, within: float = 10.0) -> dict[str, Any]:
    """Everyone arrives within some seconds, loads the page and presses Run on something that takes a second to compute; the worker starts cold."""
    first, whole, wrong = list[float](), list[float](), list[str]()

    async def arrive(address: str, config: dict[str, Any], i: int) -> None:
        await asyncio.sleep(within * i / count)
        start = time.perf_counter()
        async with client(address) as http:
            try:
                pages = [await http.get(path) for path in ("/", "/theme.css")]  # the configuration is in the page
                assert all(page.status_code == 200 for page in pages)
                first.append(time.perf_counter() - start)
                visitor = Visitor(http, config)
                outputs = await asyncio.wait_for(visitor.call(visitor.run_handler, **CONFIGURATIONS[i % 10]), 60)
                whole.append(time.perf_counter() - start)
                if "done" not in outputs[0]:
                    wrong.append(str(outputs[0])[:200])
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}"[:200])

    async def everyone(address: str) -> None:
        async with client(address) as http:
            config = (await http.get("/config")).json()
        await asyncio.gather(*(arrive(address, config, i) for i in range(count)))

    with tempfile.TemporaryDirectory() as folder, served(Path(folder), seconds=1.0) as address:
        asyncio.run(everyone(address))
    return {"sessions": count, "errors": len(wrong), "page": figures(first), "result": figures(whole), "wrong": wrong[:3]}


def single_flight(count: int) -> dict[str, Any]:
    """Submits of ten configurations at once."""
    outcomes: Counter[str] = Counter()

    async def submit(address: str, config: dict[str, Any], i: int) -> None:
        async with client(address) as http:
            visitor = Visitor(http, config)
            outputs = await visitor.call(visitor.run_handler, **CONFIGURATIONS[i % 10])
            outcomes["result" if "done" in outputs[0] else str(outputs[0])[:100]] += 1

    async def everyone(address: str) -> None:
        config = await warm(address)
        await asyncio.gather(*(submit(address, config, i) for i in range(count)))

    with tempfile.TemporaryDirectory() as folder, served(Path(folder), seconds=0.4) as address:
        asyncio.run(everyone(address))
        runs = Counter(line.split(" start ")[1] for line in (Path(folder) / "log").read_text().splitlines() if " start " in line)
    return {"submits": count, "configurations": 10, "runs": len(runs) - 1, "baseline_runs": 1, "most_runs_of_one": max(runs.values()), **outcomes}


def cancel_cycles(count: int) -> dict[str, Any]:
    """Start, wait until it computes, cancel, start again: how long the device stays busy, and whether two ever compute at once."""
    busy: list[float] = []

    async def active(http: Any) -> float:
        lines = (await http.get("/metrics")).text.splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("explorer_jobs_active ")))

    async def cycles(address: str) -> None:
        config = await warm(address)
        async with client(address) as http:
            for i in range(count):
                visitor = Visitor(http, config)
                async for outputs in visitor.stream(visitor.run_handler, method="absmax", kv=(8, 4, 2)[i % 3]):
                    if "measure" in str(outputs[0]):
                        break
                start = time.perf_counter()
                await visitor.cancel(visitor.run_handler)
                while await active(http):
                    await asyncio.sleep(0.02)
                busy.append(time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder, served(Path(folder), seconds=0.0) as address:
        asyncio.run(cycles(address))
        now, most = 0, 0
        for line in (Path(folder) / "log").read_text().splitlines():
            now = now + 1 if " start " in line else now - 1
            most = max(most, now)
    return {"cycles": count, "busy_after_cancel": figures(busy), "most_at_once": most}


def main() -> None:
    from tests.endurance import PROOFS

    form, wanted = sys.argv[1], sys.argv[2:]
    outcomes: dict[str, Any] = {}
    for name, (short, long) in PROOFS.items():
        if not wanted or name in wanted:
            start, load = time.monotonic(), round(os.getloadavg()[0], 1)  # a busy machine explains slow answers
            prove: Callable[[], dict[str, Any]] = short if form == "short" else long
            outcomes[name] = prove() | {"seconds": round(time.monotonic() - start), "load_before": load}
            print(json.dumps({name: outcomes[name]}), flush=True)
    if form == "long":
        before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        cores = len(os.sched_getaffinity(0))
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
        for outcome in outcomes.values():
            outcome |= {"date": date, "commit": commit, "cores": cores}
        RESULTS.write_text(json.dumps(before | outcomes, indent=1) + "\n")


if __name__ == "__main__":
    main()
