"""Mutated requests against the guard with the shapes of the real page: `python -m tests.mutations COUNT [SEED]`. Prints counts; fails on a leak."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from typing import Any

import app
from explorer import recorded
from explorer.server.guard import Guard

# What a page never sends for any component: each of these in a place must be refused, or be of the type that the place takes.
NASTY: tuple[Any, ...] = (
    None, True, 0, -1, 2**70, 1.5, "", "x" * 301, "x" * 200_001, "<script>alert(1)</script>", "../../etc/passwd", "a\0b", "🎓" * 50, [], ["a"], [[]], [None],
    ["x" * 400], ["a"] * 65, {}, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, {"__type__": "update", "value": 1}, "http://169.254.169.254/",
)  # fmt: skip


def fits(props: dict[str, Any], kind: str, value: Any) -> bool:
    """A plain second opinion on whether a component may get a value."""
    word = isinstance(value, str | int | float) and (not isinstance(value, str) or len(value) <= 300)
    if value is None:
        return True
    if kind in ("dropdown", "radio", "checkboxgroup"):
        if props.get("multiselect") or kind == "checkboxgroup":
            return isinstance(value, list) and len(value) <= 64 and all(isinstance(v, str | int | float) and len(str(v)) <= 300 for v in value)
        return word
    if kind in ("number", "slider"):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "checkbox":
        return isinstance(value, bool)
    if kind == "browserstate":
        return True  # a person's own notes: any JSON, which the handlers take for none when it is broken
    return isinstance(value, str) and len(value) <= (props.get("max_length") or 20_000)


class Attack:
    """Bodies of every handler with places changed, fields added and dropped, bytes flipped; paths changed. `reached`: bodies that got behind."""

    def __init__(self, seed: int) -> None:
        blocks = app.build(None, list(recorded.seeds()), json.loads((app.ASSETS / "methods.json").read_text())["methods"], ["demo"])
        config = json.loads(json.dumps(blocks.get_config_file(), default=str))
        self.handlers = config["dependencies"]
        self.components = {c["id"]: c for c in config["components"]}
        self.guard, self.rng, self.reached = Guard(self.behind, app.forms(blocks)), random.Random(seed), list[bytes]()

    async def behind(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def post(self, path: str, body: bytes) -> int:
        """The status of the guard's answer."""
        said: list[int] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            said.append(message.get("status", 0))

        await self.guard({"type": "http", "method": "POST", "path": path, "headers": []}, receive, send)
        return said[0]

    def mutated(self, i: int) -> bytes:
        """The i-th request's body; one of a few is left as a page would send it."""
        rng, handler = self.rng, self.rng.choice(self.handlers)
        data = [self.components[c]["props"].get("value") for c in handler["inputs"]]
        body: Any = {"data": data, "fn_index": handler["id"], "session_hash": "abcdef12345", "event_data": None, "trigger_id": 3}
        for _ in range(rng.randint(0, 2) if data else 0):
            data[rng.randrange(len(data))] = rng.choice(NASTY)
        if i % 5 == 1:
            body[rng.choice([*body, "oauth_token", "request"])] = rng.choice(NASTY)
        if i % 7 == 1:
            data[rng.randrange(len(data) + 1) :] = rng.choice([[], list(data), [1, 2]])
        if i % 11 == 1:
            return json.dumps(body).replace("null", rng.choice(["NaN", "Infinity", "1e999", "[" * 500])).encode()
        raw = bytearray(json.dumps(body).encode())
        if i % 3 == 1:
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        return bytes(raw)

    async def run(self, count: int) -> Counter[str]:
        """Counts by status. Any exception of the guard ends it."""
        counts: Counter[str] = Counter()
        odd = ["/gradio_api/cancel", "/gradio_api/run/x", "/gradio_api/queue//join", "/gradio_api/x"]
        for i in range(count):
            path = "/gradio_api/queue/join" if i % 4 else self.rng.choice(odd)
            counts[str(await self.post(path, self.mutated(i)))] += 1
        return counts

    def leaks(self) -> list[str]:
        """Requests that got behind the guard and should not have."""
        wrong = []
        for raw in self.reached:
            body = json.loads(raw)
            handler = next(d for d in self.handlers if d["id"] == body["fn_index"])
            kinds = [self.components[c] for c in handler["inputs"]]
            wrong += [f"{len(body['data'])} inputs for {len(kinds)}"] if len(body["data"]) != len(kinds) else []
            wrong += [f"{c['type']}: {str(v)[:80]!r}" for c, v in zip(kinds, body["data"], strict=False) if not fits(c["props"], c["type"], v)]
        return wrong


def main() -> None:
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    attack = Attack(seed)
    counts = asyncio.run(attack.run(count))
    leaks = attack.leaks()
    print(json.dumps({"requests": count, "through": len(attack.reached), **counts, "leaks": leaks[:20]}))
    sys.exit(bool(leaks))


if __name__ == "__main__":
    main()
