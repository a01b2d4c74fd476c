"""A stand-in for the model hub on loopback: serves folders as repositories, some to whom its owners let in, and fails in every way a hub does."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMMIT = "c0ffee" * 6 + "0123"


class StandIn(http.server.ThreadingHTTPServer):
    """repositories: "owner/name" -> folder. fault: one of FAULTS or "". sent: bytes of weight data by file; asked: requests by path.

    gated, private: "owner/name" -> tokens that may read its files; of a private one the list as well.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Path] = {}
        self.fault = ""
        self.sent, self.asked = Counter(), Counter()
        self.gated, self.private = dict[str, set[str]](), dict[str, set[str]]()
        self.claimed: dict[str, int] = {}  # sizes that the listing and the headers claim, for models too large to make
        self.closing = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def header_length(self, path: Path) -> int:
        """Bytes of a safetensors file before its weights."""
        with path.open("rb") as file:
            return 8 + int.from_bytes(file.read(8), "little")


# What the hub answers: status, headers. The other faults are about what is sent.
STATUS = {
    "missing": (404, {"X-Error-Code": "RepoNotFound"}), "private": (401, {"X-Error-Code": "RepoNotFound"}), "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "busy": (429, {"Retry-After": "120"}), "broken": (500, {}), "down": (503, {}), "no revision": (404, {"X-Error-Code": "RevisionNotFound"}),
}  # fmt: skip
FAULTS = (*STATUS, "listed as gated", "slow", "not json", "no commit", "truncated", "corrupt", "insecure redirect", "header does not fit", "pickle only")


class _Handler(http.server.BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        try:
            self._answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self) -> None:
        server, path = self.server, self.path.split("?")[0]
        server.asked[path] += 1
        if server.fault in STATUS:
            return self._send(STATUS[server.fault][0], b"", STATUS[server.fault][1])
        if server.fault == "slow":
            server.closing.wait(5)
        if server.fault == "not json":
            return self._send(200, b"<html>Welcome to this hotel's network</html>", {})
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._listing("/".join(parts[2 : parts.index("revision")]))
        name = "/".join(parts[: parts.index("resolve")])
        if not self._let_in(server.gated, name) or not self._let_in(server.private, name):
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        return self._file(server.repositories[name] / parts[-1])

    def _let_in(self, doors: dict[str, set[str]], name: str) -> bool:
        return name not in doors or self.headers.get("Authorization", "").removeprefix("Bearer ") in doors[name]

    def _listing(self, name: str) -> None:
        folder = self.server.repositories.get(name) if self._let_in(self.server.private, name) else None
        if folder is None:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        files: list[dict[str, Any]] = []
        for path in sorted(folder.iterdir()):
            size = self.server.claimed.get(path.name, path.stat().st_size)
            pickled = self.server.fault == "pickle only" and path.suffix == ".safetensors"
            files.append({"rfilename": "pytorch_model.bin" if pickled else path.name, "size": size})
            if path.suffix == ".safetensors":
                files[-1]["lfs"] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": size}
        commit = "main" if self.server.fault == "no commit" else COMMIT
        gated = "manual" if self.server.fault == "listed as gated" or name in self.server.gated else False
        told = {"id": name, "sha": commit, "gated": gated, "private": name in self.server.private, "siblings": files}
        return self._send(200, json.dumps(told).encode(), {})

    def _file(self, path: Path) -> None:
        content, weights = bytearray(path.read_bytes()), path.suffix == ".safetensors"
        fault, start, status = self.server.fault, 0, 200
        if weights and fault == "insecure redirect":
            return self._send(302, b"", {"Location": "http://127.0.0.2:9/elsewhere"})
        if weights and fault == "corrupt":
            content[-5] ^= 255
        if weights and fault == "header does not fit":
            content[0] ^= 3
        end = len(content)
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end, status = int(first), min(end, int(last) + 1) if last else end, 206
        if weights:
            self.server.sent[path.name] += max(0, end - max(start, self.server.header_length(path)))
        if weights and fault == "truncated" and end - start > 100_000:
            self.send_response(status)
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            self.wfile.write(content[start : start + (end - start) // 2])
            self.close_connection = True
            return None
        if weights and fault == "trickle" and end - start > 100_000:
            return self._trickle(status, content[start:end])
        return self._send(status, bytes(content[start:end]), {})

    def _trickle(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        step = len(content) // 40 + 1
        for at in range(0, len(content), step):
            self.wfile.write(content[at : at + step])
            time.sleep(0.05)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A hub for the length of a `with`."""
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
