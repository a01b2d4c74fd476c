"""Optional login for a lab: names with scrypt hashes in a file, a signed cookie, lockout. `python -m explorer.server.login FILE NAME` adds a name."""

from __future__ import annotations

import argparse
import base64
import getpass
import hashlib
import hmac
import html
import os
import secrets
import sys
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from explorer.records import InputError
from explorer.server.guard import App, Receive, Scope, Send, refuse
from explorer.writing import NotWritten, refused

COST = {"n": 2**14, "r": 8, "p": 1}  # scrypt: 16 MB and about 50 ms a guess
DIGEST = 64  # bytes that scrypt gives
TRIES = {"name": 5, "address": 50}  # wrong passwords until a name or an address is locked; a whole class may share an address
LOCKED, HOURS = 300.0, 12  # seconds that it is locked, hours that a cookie lasts
COOKIE = "explorer_login"
OPEN = ("/healthz", "/robots.txt", "/favicon.ico", "/gradio_api/startup-events")  # the last one is how the server starts itself, and tells nothing


def hashed(password: str, salt: bytes | None = None) -> str:
    """ "salt$hash" in base64, by scrypt."""
    salt = salt or os.urandom(16)
    digest = hashlib.scrypt(password.encode(), salt=salt, dklen=DIGEST, **COST)
    return "$".join(base64.b64encode(part).decode() for part in (salt, digest))


def matches(password: str, stored: str) -> bool:
    """Whether a password is the one that was hashed; the same time for a wrong one."""
    return hmac.compare_digest(hashed(password, base64.b64decode(stored.partition("$")[0])), stored)


def read(path: Path) -> dict[str, str]:
    """Name -> hash of a file with a line "name:salt$hash" each. Raises InputError with a sentence."""
    entries = [line.partition(":") for line in lines(path) if line.strip()]
    if not entries or any(not name or not well_formed(stored) for name, _, stored in entries):
        raise InputError(f"The login file {path} must have a line 'name:salt$hash' for each name; add one with python -m explorer.server.login {path} NAME.")
    return {name: stored for name, _, stored in entries}


def lines(path: Path) -> list[str]:
    """Of a UTF-8 file. Raises InputError for one that cannot be read."""
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The login file {path} cannot be read ({getattr(error, 'strerror', 'it is no UTF-8 text')}).") from error


def well_formed(stored: str) -> bool:
    """Whether a text may be what `hashed` gives."""
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in stored.split("$"))
    except ValueError:  # of base64, and of another number of parts
        return False
    return bool(salt) and len(digest) == DIGEST


class Lockout:
    """Counts wrong passwords by name and by address; remembers at most 10,000."""

    def __init__(self) -> None:
        self._lock, self._wrong = threading.Lock(), OrderedDict[str, list[float]]()

    def take(self, *keys: str) -> float:
        """Counts a try as wrong until it is given back, so that guesses at once are no more than guesses in a row; 0, or where none is allowed seconds
        until one is.
        """
        with self._lock:
            now, longest = time.monotonic(), 0.0
            for key in keys:
                recent = [t for t in self._wrong.get(key, []) if now - t < LOCKED]
                if len(recent) >= (most := TRIES[key.split()[0]]):
                    longest = max(longest, LOCKED - (now - recent[-most]))
            for key in () if longest else keys:
                self._wrong[key] = [*self._wrong.get(key, []), now][-max(TRIES.values()) :]
                self._wrong.move_to_end(key)
            while len(self._wrong) > 10_000:
                self._wrong.popitem(last=False)
            return longest

    def give_back(self, *keys: str) -> None:
        """Takes the last try back: its password was right."""
        with self._lock:
            for key in keys:
                if self._wrong.get(key):
                    self._wrong[key].pop()


class Login:
    """An ASGI middleware: whoever has no valid cookie sees the login form, and nothing else but OPEN."""

    def __init__(self, app: App, names: dict[str, str]) -> None:
        self._app, self._names = app, names
        self._secret, self._lockout = secrets.token_bytes(32), Lockout()
        self._nobody = hashed(secrets.token_hex(8))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        if scope["path"] == "/login":
            await (await self._login(request))(scope, receive, send)
        elif scope["path"] == "/logout":
            response = RedirectResponse("login", 303)
            response.delete_cookie(COOKIE)
            await response(scope, receive, send)
        elif scope["path"] in OPEN or self.valid(request.cookies.get(COOKIE, "")):
            await self._app(scope, receive, send)
        elif scope["path"] == "/" and scope["method"] == "GET":
            await RedirectResponse("login", 303)(scope, receive, send)
        else:
            await refuse(send, 401, "Please log in first.")

    def cookie(self, name: str) -> str:
        """A signed cookie for a name, good for HOURS."""
        text = f"{base64.urlsafe_b64encode(name.encode()).decode()}.{int(time.time()) + HOURS * 3600}"
        return f"{text}.{hmac.new(self._secret, text.encode(), 'sha256').hexdigest()}"

    def valid(self, cookie: str) -> bool:
        """Whether a cookie was signed here, for a name that is still known, and is not too old."""
        text, _, signature = cookie.rpartition(".")
        if not hmac.compare_digest(hmac.new(self._secret, text.encode(), "sha256").hexdigest().encode(), signature.encode()):
            return False
        name, _, until = text.partition(".")
        return base64.urlsafe_b64decode(name).decode() in self._names and time.time() < int(until)

    async def _login(self, request: Request) -> Response:
        if request.method != "POST":
            return form()
        try:
            fields = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=4)
        except ValueError:
            return form("A login is a name and a password, and nothing else.", 400)
        name, password = (fields.get(field, [""])[0][:200] for field in ("name", "password"))
        address = request.client.host if request.client else ""
        keys = (f"name {name}", f"address {address}")
        if left := self._lockout.take(*keys):
            return form(f"Too many wrong passwords; try again in {left:.0f} s.", 429, {"Retry-After": f"{left:.0f}"})
        if not await run_in_threadpool(matches, password, self._names.get(name, self._nobody)):
            return form("Name or password is wrong.", 401)
        self._lockout.give_back(*keys)
        response = RedirectResponse("./", 303)
        response.set_cookie(COOKIE, self.cookie(name), max_age=HOURS * 3600, httponly=True, samesite="lax", secure=request.url.scheme == "https")
        return response


def form(problem: str = "", status: int = 200, headers: dict[str, str] | None = None) -> HTMLResponse:
    """The login page."""
    style = "body{font:16px system-ui;max-width:20em;margin:15vh auto;padding:0 1em;color-scheme:light dark}input,button{font:inherit;width:100%;padding:.5em}"
    note = f"<p role='alert'>{html.escape(problem)}</p>" if problem else ""
    return HTMLResponse(
        f"<!doctype html><html lang='en'><meta name='viewport' content='width=device-width'><title>Log in</title><style>{style}</style><main>"
        f"<h1>Quantization Explorer</h1>{note}<form method='post'><p><label>Name <input name='name' autocomplete='username' required></label></p>"
        "<p><label>Password <input name='password' type='password' autocomplete='current-password' required></label></p><button>Log in</button></form></main>",
        status, headers,
    )  # fmt: skip


def main(argv: list[str]) -> int:
    """Adds or replaces a name in a login file that only its owner may read."""
    parser = argparse.ArgumentParser(prog="python -m explorer.server.login", description="Adds a name to a login file, or gives one another password.")
    parser.add_argument("file", type=Path, help="the login file; a new one only its owner may read")
    parser.add_argument("name", help="who may log in")
    args = parser.parse_args(argv)
    try:
        return add(args.file, args.name)
    except InputError as error:
        print(error, file=sys.stderr)
        return 3 if isinstance(error, NotWritten) else 2


def add(path: Path, name: str) -> int:
    """Asks for a password and keeps it for a name; 2 where one of them cannot be. Raises InputError, or NotWritten with the file as it was."""
    before = lines(path) if path.exists() else None
    if not name or any(mark in name for mark in ":\n$"):
        print("A name has no colon and no line break.", file=sys.stderr)
        return 2
    try:
        password = getpass.getpass(f"Password for {name}: ")
    except EOFError:  # nobody types
        password = ""
    if len(password) < 10:
        print("A password has at least 10 characters.", file=sys.stderr)
        return 2
    kept = [line for line in before or () if not line.startswith(f"{name}:")]
    with refused(path):
        try:
            path.touch(0o600)
            path.write_text("\n".join([*kept, f"{name}:{hashed(password)}", ""]), "utf-8")
        except OSError:
            with suppress(OSError):
                path.unlink() if before is None else path.write_text("\n".join([*before, ""]), "utf-8")  # there was room for it
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
