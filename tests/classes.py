"""A class on its phones: a hundred pages that follow a teacher and vote, over HTTP as their scripts speak it. A proof of tests/endurance.py."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from tests.serving import client, served, warm

FOLLOW = 4.0  # seconds between two looks of a phone, as the page has it


class Screen:
    """One page of the Class tab. Its handlers are named by what triggers them: an elem_id and an event, or the timer."""

    def __init__(self, http: httpx.AsyncClient, config: dict[str, Any], taken: list[float]) -> None:
        self.http, self.session, self.taken = http, secrets.token_hex(5), taken
        ids = {c["id"]: c["props"].get("elem_id") or "" for c in config["components"]}
        self.handlers = {(ids[part], event): d for d in config["dependencies"] if d["backend_fn"] for part, event in d["targets"] if part in ids}
        asked = next(part for part, name in ids.items() if name == "class-asked")
        self.handlers["", "tick"] = next(d for d in config["dependencies"] if d["outputs"][:1] == [asked] and d["targets"][0][1] == "tick")

    async def send(self, part: str, event: str, *values: Any) -> list[Any]:
        """A handler's outputs; its time is noted. Raises AssertionError when it is refused."""
        start = time.perf_counter()
        body = {"data": list(values), "fn_index": self.handlers[part, event]["id"], "session_hash": self.session, "trigger_id": None, "event_data": None}
        answer = await self.http.post("/gradio_api/run/predict", json=body)
        self.taken.append(time.perf_counter() - start)
        assert answer.status_code == 200, answer.text[:200]
        return answer.json()["data"]


async def phone(screen: Screen, code: str, until: float, voted: list[int], revealed: list[int], delay: float) -> None:
    """Joins, then looks every four seconds and votes once on each question."""
    rng, ticket = random.Random(delay), secrets.token_hex(16)
    await asyncio.sleep(delay)
    _, choice, _, seen, _ = await screen.send("join", "click", code, ticket)
    while time.monotonic() < until:
        if choice.get("choices") and choice.get("interactive", True):
            said = await screen.send("class-choice", "input", seen, ticket, rng.choice(choice["choices"])[1])
            voted.append("Voted" in str(said))
        choice = {}
        await asyncio.sleep(FOLLOW * rng.uniform(0.9, 1.1))
        found = await screen.send("", "tick", seen, ticket)
        choice = found[1] if isinstance(found[1], dict) else {}
        seen = found[3] if isinstance(found[3], str) else seen
        revealed.append("The answer:" in str(found[2]))


def count_of(told: list[Any]) -> int:
    """The votes on the teacher's screen."""
    return sum(int(part.split("<")[0]) for part in str(told[0]).split("<td>")[1:] if part.split("<")[0].isdecimal())


def classes(count: int, seconds: float) -> dict[str, Any]:
    """A teacher reveals after eight seconds and goes on after six more, longer than between two looks of a phone; `count` phones follow.

    Votes that the server took, and answers that arrived.
    """
    waits, voted, revealed, wrong, counted = list[float](), list[int](), list[int](), list[str](), list[int]()

    async def lesson(address: str) -> None:
        config = await warm(address)
        async with client(address) as http:
            teacher = Screen(http, config, [])
            mine = (await teacher.send("open-room", "click", f"{address}/", "gptq", 0))[0]
            until = time.monotonic() + seconds
            phones = [phone(Screen(http, config, waits), mine["code"], until, voted, revealed, FOLLOW * i / count) for i in range(count)]
            told = asyncio.gather(*phones, return_exceptions=True)
            step = asked = 0
            while time.monotonic() < until - FOLLOW:
                await asyncio.sleep(8)
                counted.append(count_of(await teacher.send("class-reveal", "click", mine, "gptq", step)))
                await asyncio.sleep(1.5 * FOLLOW)
                step, asked = (step + 1) % 3, asked + 1
                await teacher.send("class-step", "input", mine, "gptq", step)
                if asked >= 3:  # the step was asked before, and is as it was left
                    await teacher.send("class-again", "click", mine, "gptq", step)
            wrong.extend(f"{type(e).__name__}: {e}"[:200] for e in await told if isinstance(e, Exception))
            counted.append(count_of(await teacher.send("class-reveal", "click", mine, "gptq", step)))

    with tempfile.TemporaryDirectory() as folder, served(Path(folder), seconds=0.0) as address:
        asyncio.run(lesson(address))
    ordered = sorted(waits)
    return {
        "phones": count, "errors": len(wrong), "requests": len(ordered), "p50_ms": round(1000 * ordered[len(ordered) // 2]),
        "p95_ms": round(1000 * ordered[int(0.95 * (len(ordered) - 1))]), "max_ms": round(1000 * ordered[-1]), "votes_sent": len(voted),
        "votes_taken": sum(voted), "votes_counted": sum(counted), "answers_seen": sum(revealed), "wrong": wrong[:3],
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(classes(10, 20.0)))
