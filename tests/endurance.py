"""The slower proofs of tests/soak.py: every fault again and again, a store whose writer is killed, memory over time; and the list of all proofs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.classes import classes
from tests.serving import ROOT, Visitor, client, served, warm
from tests.soak import cancel_cycles, class_start, figures, fill, server_of, sessions, single_flight, visit

WRITER = """
import sys, time
from explorer.records import Measurement
from explorer.store import Store
store, start = Store(sys.argv[1]), int(sys.argv[2])
for i in range(start, int(sys.argv[3])):
    store.put(f"key {i}", "quality", [Measurement("perplexity", float(i))] * 20, {"number": i})
    print(i, flush=True)
"""


def faults(times: int) -> dict[str, Any]:
    """Every fault of tests/faults.py in a real worker; how long until the next job is done."""
    from tests.test_worker import FAULTS, Service

    logging.getLogger("explorer.jobs").setLevel(logging.ERROR)  # it warns of every failed job, and here all of them fail
    after: dict[str, list[float]] = {}
    lost = 0
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder) / "log")
        number = 0
        for _ in range(times):
            for fault, words in FAULTS.items():
                service.answer(number=(number := number + 1))
                lost += words not in service.failure(fault)
                start = time.monotonic()
                lost += service.answer(number=(number := number + 1)).data["params"] != {"number": number}
                after.setdefault(fault, []).append(time.monotonic() - start)
        service.runner.close()
    slowest = max(after, key=lambda fault: max(after[fault]))
    return {"kinds": len(FAULTS), "times": times, "lost": lost, "next_job": figures([s for each in after.values() for s in each]), "slowest": slowest}


def kills(count: int, results: int) -> dict[str, Any]:
    """A process that stores results is killed again and again; every result that it said it had stored is read back whole."""
    from explorer.store import Store

    rng, said, killed = random.Random(0), -1, 0
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "r.db")
        while said < results - 1:
            with subprocess.Popen([sys.executable, "-c", WRITER, path, str(said + 1), str(results)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
                stop = said + rng.randint(1, results // (count + 1)) if killed < count else results
                for line in writer.stdout:
                    said = int(line)
                    if said >= stop:
                        writer.send_signal(signal.SIGKILL)
                        killed += 1
                        said = max([said, *map(int, writer.stdout.read().split())])
                        break
        store = Store(path)
        kept = [store.get(f"key {i}") for i in range(said + 1)]
        whole = sum(row is not None and len(row[0]) == 20 and row[1] == {"number": i} for i, row in enumerate(kept))
        check = store._db.execute("PRAGMA integrity_check").fetchone()[0]
        store.close()
    return {"kills": killed, "acknowledged": said + 1, "read_back_whole": whole, "integrity": check}


def server_kills(count: int, results: int) -> dict[str, Any]:
    """The server itself is killed again and again while four visitors run what is new; every result that came to one of them is in the store, whole."""
    rng, said, again = random.Random(0), set[int](), list[float]()
    left, killed, orphans = list(range(results)), 0, 0

    async def life(address: str, server: psutil.Process, most: float, start: float) -> list[psutil.Process]:
        """Until `most` results are there, or all; then the kill. Gives the workers that the server had."""
        config = await warm(address)
        again.append(time.monotonic() - start)
        family, before = server.children(recursive=True), len(said)
        async with client(address) as http:
            visitors = [asyncio.create_task(runs_what_is_left(Visitor(http, config), left, said)) for _ in range(4)]
            while len(said) - before < most and not all(task.done() for task in visitors):
                await asyncio.sleep(0.002)
            if most < results:
                server.send_signal(signal.SIGKILL)
            await asyncio.gather(*visitors)
        return family

    with tempfile.TemporaryDirectory() as folder:
        while left:
            most = rng.randint(1, results // (count + 1)) if killed < count else float("inf")
            start = time.monotonic()
            with served(Path(folder), seconds=0.0, factory="storing") as address:
                workers = asyncio.run(life(address, server_of(folder), most, start))
            killed += most < results
            orphans += len(psutil.wait_procs(workers, timeout=10)[1])
        return {"kills": killed, **read_back(Path(folder) / "r.db", said), "workers_left_behind": orphans, "ready_again": figures(again)}


async def runs_what_is_left(page: Visitor, left: list[int], said: set[int]) -> None:
    """Runs one seed after the other until none is left or the server is gone; notes those whose result came."""
    while left:
        number = left.pop()
        try:
            line = (await page.call(page.run_handler, method="rtn", Seed=number))[0]
        except (httpx.HTTPError, AssertionError, IndexError):  # gone, and this run with it
            line = ""
        if "done" not in line:
            left.append(number)
            return
        said.add(number)


def read_back(path: Path, said: set[int]) -> dict[str, Any]:
    """How many of the results that came to somebody are in the store, whole."""
    from explorer.store import Store

    store = Store(path)
    rows = {number: store.get(f"rtn {number}") for number in said}
    size = max(len(row[0]) for row in rows.values() if row)
    whole = sum(row is not None and len(row[0]) == size and row[1] == {"seed": number} for number, row in rows.items())
    check = store._db.execute("PRAGMA integrity_check").fetchone()[0]
    store.close()
    return {"acknowledged": len(said), "read_back_whole": whole, "integrity": check}


def mutations(count: int) -> dict[str, Any]:
    """Mutated requests; see tests/mutations.py."""
    done = subprocess.run([sys.executable, "-m", "tests.mutations", str(count), "1"], cwd=ROOT, capture_output=True, text=True)
    return json.loads(done.stdout) | {"failed": done.returncode}


def soak(count: int, seconds: float) -> dict[str, Any]:
    """Memory and open files of the server and its worker while visitors come and look; the first fifth of the time is warm-up."""
    taken, wrong, seen = list[float](), list[str](), list[tuple[float, int]]()

    def size(server: psutil.Process) -> tuple[float, int]:
        family = [server, *server.children(recursive=True)]
        return sum(p.memory_info().rss for p in family) / 2**20, sum(p.num_fds() for p in family)

    async def watch(server: psutil.Process) -> None:
        for _ in range(20):
            await asyncio.sleep(seconds / 20)
            seen.append(size(server))

    async def crowd(address: str, server: psutil.Process) -> None:
        config = await warm(address)
        await fill(address, config)
        visitors = (visit(address, config, seconds, 4.0, taken, wrong, 4 * i / count) for i in range(count))
        await asyncio.gather(watch(server), *visitors)

    with tempfile.TemporaryDirectory() as folder, served(Path(folder), seconds=0.0) as address:
        asyncio.run(crowd(address, server_of(folder)))
    early, late = seen[4], seen[-1]
    return {
        "sessions": count, "for_seconds": seconds, "errors": len(wrong), **figures(taken), "rss_mb": [round(early[0]), round(late[0])],
        "growth_percent": round(100 * (late[0] / early[0] - 1), 1), "descriptors": [early[1], late[1]],
    }  # fmt: skip


# name: (short form, long form). Each prints one line.
PROOFS = {
    "sessions_30": (partial(sessions, 30, 8), partial(sessions, 30, 60)),
    "sessions_100": (partial(sessions, 100, 6), partial(sessions, 100, 60)),
    "class_start": (partial(class_start, 40, 4), partial(class_start, 100, 10)),
    "class_votes": (partial(classes, 40, 20), partial(classes, 100, 300)),
    "single_flight": (partial(single_flight, 100), partial(single_flight, 100)),
    "cancel_cycles": (partial(cancel_cycles, 6), partial(cancel_cycles, 50)),
    "faults": (partial(faults, 1), partial(faults, 20)),
    "server_kills": (partial(server_kills, 2, 60), partial(server_kills, 20, 1000)),
    "kills": (partial(kills, 3, 200), partial(kills, 20, 1000)),
    "mutations": (partial(mutations, 10_000), partial(mutations, 100_000)),
    "soak": (partial(soak, 30, 180), partial(soak, 30, float(os.environ.get("SOAK_SECONDS", "7200")))),
}
