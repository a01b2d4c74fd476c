"""Pages: an ASGI middleware that makes the page and its static files once, compressed, and hands the same bytes to every visitor.

The page is the same for everyone at one address, and making it anew costs more than a hundred clicks; behind the login, because of what is in it.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import brotli
from starlette.concurrency import run_in_threadpool

from explorer.server.guard import App, Message, Receive, Scope, Send

SAME = re.compile(r"/|/config/?|(/gradio_api)?/theme\.css|/(assets|static|svelte)/[\w./@+-]+", re.ASCII)
HASHED = re.compile(r"/assets/[\w./@+-]*-[\w-]{8}\.(js|css|woff2?)", re.ASCII)  # a name that changes with its content
ADDRESS = (b"host", b"x-forwarded-host", b"x-forwarded-proto", b"x-gradio-server")  # what the page is told of itself
TEXTS = (b"text/", b"application/json", b"application/javascript", b"image/svg")
KEPT = 64 * 2**20  # bytes of responses
LARGE = 1000  # bytes from which compressing is worth it


@dataclass(frozen=True)
class Response:
    """A whole response. tag: of its content, as If-None-Match names it."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    tag: bytes


class Pages:
    """Wraps an app whose answers to SAME depend on the address and the coding alone. script: JavaScript that a page runs before any of its own."""

    def __init__(self, app: App, script: str = "") -> None:
        self._app, self._kept, self._bytes = app, OrderedDict[tuple, Response](), 0
        self._first = f"<head><script>\n{script}</script>".encode()
        self._making: defaultdict[tuple, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD") or not SAME.fullmatch(scope["path"]) or b"range" in headers:
            await self._app(scope, receive, send)
            return
        coding = coding_of(headers.get(b"accept-encoding", b""))
        key = (scope["path"], coding, scope["scheme"], scope.get("root_path"), *(headers.get(name) for name in ADDRESS))
        if key not in self._kept:
            async with self._making[key]:  # one makes it, the others wait
                found = self._kept.get(key) or await self._made(scope, receive, coding)
            self._making.pop(key, None)
            self._keep(key, found)
        else:
            found = self._kept[key]
            self._kept.move_to_end(key)
        if found.status == 200 and found.tag in headers.get(b"if-none-match", b""):
            start = [(name, value) for name, value in found.headers if name in (b"etag", b"cache-control", b"vary")]
            await send({"type": "http.response.start", "status": 304, "headers": start})
            await send({"type": "http.response.body", "body": b""})
            return
        await send({"type": "http.response.start", "status": found.status, "headers": list(found.headers)})
        await send({"type": "http.response.body", "body": found.body if scope["method"] == "GET" else b""})

    def _keep(self, key: tuple, response: Response) -> None:
        if response.status != 200 or key in self._kept:
            return
        self._kept[key] = response
        self._bytes += len(response.body)
        while self._bytes > KEPT:
            self._bytes -= len(self._kept.popitem(last=False)[1].body)

    async def _made(self, scope: Scope, receive: Receive, coding: bytes) -> Response:
        """The app's answer to a visitor of whom it knows nothing, compressed."""
        parts: list[bytes] = []
        start: Message = {}

        async def take(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            parts.append(message.get("body", b""))

        asked = [(name, scope_value) for name, scope_value in scope["headers"] if name in ADDRESS]
        await self._app({**scope, "method": "GET", "headers": asked, "query_string": b""}, receive, take)
        body, told = b"".join(parts), {name.lower(): value for name, value in start["headers"]}
        kind, vary = told.get(b"content-type", b""), []
        if kind.startswith(b"text/html"):
            body = body.replace(b"<head>", self._first, 1)
        if len(body) >= LARGE and kind.startswith(TEXTS):
            vary = [(b"vary", b"Accept-Encoding")]
            if coding:
                body = await run_in_threadpool(brotli.compress if coding == b"br" else gzip.compress, body, **LEVELS[coding])
                vary.append((b"content-encoding", coding))
        tag = b'"' + hashlib.sha256(body).hexdigest()[:32].encode() + b'"'
        hold = b"public, max-age=31536000, immutable" if HASHED.fullmatch(scope["path"]) else b"no-cache"
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"etag", tag), (b"cache-control", hold), *vary]
        return Response(start["status"], headers, body, tag)


LEVELS = {b"br": {"quality": 6}, b"gzip": {"compresslevel": 6}}


def coding_of(accepted: bytes) -> bytes:
    """The best of the codings that a browser accepts, b"" for none. A coding with a weight of zero is refused by it."""
    names = {part.split(b";")[0].strip() for part in accepted.lower().split(b",") if not re.search(rb";\s*q=0(\.0*)?\s*$", part)}
    return next((name for name in LEVELS if name in names), b"")
