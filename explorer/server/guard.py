"""Guard: an ASGI middleware that lets through only the routes a page needs, with bodies of a known shape and size, and sets security headers."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

Scope = Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/gradio_api"
READ = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/pwa_icon(/\d+)?|/(assets|static|svelte)/[\w./@+-]+|/healthz|/metrics|/login|/logout"
    rf"|{API}/(info/?|app_id/?|user/?|login_check/?|theme\.css|startup-events|queue/data|heartbeat/[a-z0-9]{{1,40}}|file=[\w./ @+-]+)",
    re.ASCII,
)
WRITE = {"/login": "form", "/logout": "form", f"{API}/queue/join": "event", f"{API}/cancel": "cancel", f"{API}/reset": "form"}  # /reset does nothing
RUN = re.compile(rf"{API}/run/[\w-]{{1,80}}/?", re.ASCII)  # what a page calls for handlers that do not queue
OAUTH = ("/login/huggingface", "/login/callback", "/logout")  # what gradio adds on a Space
SMALL = 64 * 1024  # bytes of a body, unless a handler takes a long text
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self' https://huggingface.co https://*.hf.space"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=(), payment=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
]


@dataclass(frozen=True)
class Forms:
    """What bodies must look like. event: of a handler's call, cancel: of a cancellation; both raise ValueError with a sentence. limit: bytes."""

    event: Callable[[bytes], Any]
    cancel: Callable[[bytes], Any]
    limit: int


class Guard:
    """Wraps an app. forms: the shapes of its handlers' inputs; login: whether there are /login and /logout; oauth: whether visitors log in on the hub;
    ahead: scripts that the page loads late,
    which a browser is told to fetch with it. process: names this start of the server in every answer, so that a page knows a later one."""

    def __init__(self, app: App, forms: Forms, login: bool = False, ahead: Sequence[str] = (), oauth: bool = False, process: str = "") -> None:
        self._app, self._forms, self._login, self._oauth = app, forms, login, oauth
        self._process = [(b"x-process", process.encode())]
        self._links = [(b"link", f"<{path}>; rel=modulepreload".encode()) for path in ahead]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # no route needs a socket
            return
        method, path = scope["method"], scope["path"]
        send = _with_headers(send, self._process + (self._links if path == "/" else []))
        if self._oauth and method == "GET" and path in OAUTH:
            await self._app(scope, receive, send)
        elif path in ("/login", "/logout") and not self._login:
            await refuse(send, 404, "There is nothing here.")
        elif method in ("GET", "HEAD") and READ.fullmatch(path) and ".." not in path:
            await self._app(scope, receive, send)
        elif method == "POST" and (kind := WRITE.get(path) or ("event" if RUN.fullmatch(path) else "")):
            await self._checked(kind, scope, receive, send)
        elif method == "OPTIONS" and path in WRITE:
            await self._app(scope, receive, send)
        else:
            await refuse(send, 404 if method in ("GET", "HEAD", "POST") else 405, "There is nothing here.")

    async def _checked(self, kind: str, scope: Scope, receive: Receive, send: Send) -> None:
        forms = self._forms
        limit = forms.limit if kind == "event" else SMALL
        body = await _body(scope, receive, limit)
        if body is None:
            await refuse(send, 413, f"A request may have at most {limit:,} bytes.")
            return
        if kind != "form":
            try:
                (forms.event if kind == "event" else forms.cancel)(body)
            except ValueError as error:
                await refuse(send, 422, str(error))
                return
        replayed = False

        async def again() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)


async def _body(scope: Scope, receive: Receive, limit: int) -> bytes | None:
    """The whole body, or None as soon as it is too long."""
    told = dict(scope["headers"]).get(b"content-length", b"0")
    if not told.isdigit() or int(told) > limit:
        return None
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _with_headers(send: Send, more: list[tuple[bytes, bytes]]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {name for name, _ in HEADERS}
            message = {**message, "headers": [(n, v) for n, v in message.get("headers", []) if n.lower() not in names] + HEADERS + more}
        await send(message)

    return sending


async def refuse(send: Send, status: int, sentence: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    """Answers with one sentence as JSON."""
    content = json.dumps({"error": sentence, "detail": sentence}).encode()
    start = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": content})
