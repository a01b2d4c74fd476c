"""The door: only listed routes, bodies of the right shape and size, headers, login with lockout, health and metrics; nothing invalid gets behind it."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from gradio.context import LocalContext
from prometheus_client import generate_latest

import app
from explorer.hub import HubSettings
from explorer.job import Finished
from explorer.jobs import WorkerRunner
from explorer.limits import Limits
from explorer.records import InputError, report_from
from explorer.server import login
from explorer.server.health import Metrics
from explorer.server.login import TRIES, Lockout, hashed, matches, read
from explorer.worker import WorkerSettings
from tests.serving import ROOT, served

CLOSED = (
    "/docs", "/redoc", "/openapi.json", "/monitoring", "/monitoring/summary", "/login", "/gradio_api/openapi.json", "/gradio_api/runs", "/gradio_api/upload",
    "/gradio_api/run-history/records", "/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/file=http://127.0.0.1:1/", "/gradio_api/deep_link",
    "/gradio_api/vibe-code/", "/gradio_api/stream/a/b/c/playlist.m3u8", "/gradio_api/dev/reload", "/gradio_api/file=../../etc/passwd", "/assets/../app.py",
    "/gradio_api/mcp/sse", "/gradio_api/call/run/1", "/static/%2e%2e/app.py", "/gradio_api/token",
)  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("app")) as url:
        yield url


def test_only_what_a_page_needs_is_open(address: str) -> None:
    with httpx.Client(base_url=address, trust_env=False) as http:
        page = http.get("/")
        assert page.status_code == 200 and "frame-ancestors" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff" and page.headers["referrer-policy"] == "no-referrer"
        early = re.fullmatch(r"<\.(/assets/[\w.-]+\.js)>; rel=modulepreload", page.headers["link"])
        assert early and http.get(early[1]).status_code == 200  # what draws figures is fetched beside the page
        [process] = re.findall(r'"app_id":(\d+)', page.text)
        assert {http.get(path).headers["x-process"] for path in ("/", "/gradio_api/app_id")} == {process}, "a page knows an answer of a later start"
        for path in CLOSED:
            assert http.get(path).status_code in (403, 404), path
            assert http.post(path, json={}).status_code in (404, 405), path
        for path in ("/gradio_api/call/run", "/gradio_api/call/v2/run", "/gradio_api/api/run", "/gradio_api/component_server"):
            assert http.post(path, json={"data": []}).status_code == 404
        for method in ("PUT", "DELETE", "PATCH", "TRACE"):
            assert http.request(method, "/").status_code == 405


def test_bodies_have_a_shape_and_a_size(address: str) -> None:
    join = "/gradio_api/queue/join"
    with httpx.Client(base_url=address, trust_env=False) as http:
        large = http.post(join, content=b"x" * 2_000_000)
        assert large.status_code == 413 and "at most" in large.json()["error"]
        assert http.post(join, content=(b"x" * 65536 for _ in range(40))).status_code == 413  # no length told
        assert http.post("/gradio_api/cancel", content=b"x" * 70_000).status_code == 413
        for body in ({}, {"fn_index": 10**6, "data": [], "session_hash": "abcdef"}, {"fn_index": True}, [], None, {"fn_index": 0, "data": [], "more": 1}):
            answer = http.post(join, json=body)
            assert answer.status_code == 422 and answer.json()["error"].endswith("."), body
            assert http.post("/gradio_api/run/predict", json=body).status_code == 422
            assert http.post("/gradio_api/cancel", json=body).status_code == 422


def test_health_and_metrics(address: str) -> None:
    with httpx.Client(base_url=address, trust_env=False) as http:
        for _ in range(100):
            if http.get("/healthz").status_code == 200:
                break
            time.sleep(0.1)
        assert http.get("/healthz").json() == {"worker": "ready"}
        assert "explorer_worker_up 1.0" in http.get("/metrics").text
        assert http.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"}).status_code == 403


def test_metrics_count_what_was_run() -> None:
    metrics = Metrics()
    report = next(r for r in map(report_from, json.loads((app.ASSETS / "seed_results.json").read_text())) if r.experiment.spec.method == "gptq")
    metrics(Finished("gptq", "done", 0.1, 2.0, report))
    metrics(Finished("run", "died", 0.1, 2.0))
    text = generate_latest(metrics.registry).decode()
    for line in ('jobs_total{name="gptq",outcome="done"} 1.0', 'outcome="died"} 1.0', 'kl_divergence_nats_count{method="gptq"} 1.0', "cache_hits_total 0.0"):
        assert line in text


def test_ten_thousand_mutations_and_none_invalid_gets_through() -> None:
    """In a process of its own, because gradio leaves an event loop open."""
    counts = json.loads(subprocess.run([sys.executable, "-m", "tests.mutations", "10000"], check=True, cwd=ROOT, timeout=120, capture_output=True).stdout)
    assert counts["requests"] == 10_000 and counts["through"] > 300 and counts["422"] > 3000


def test_login_and_lockout(tmp_path: Path) -> None:
    file = tmp_path / "names"
    file.write_text(f"ada:{hashed('correct horse')}\n")
    with served(tmp_path, auth=file) as address, httpx.Client(base_url=address, trust_env=False) as http:
        assert http.get("/").headers["location"] == "login" and http.get("/config").status_code == 401
        assert http.post("/gradio_api/queue/join", json={"fn_index": 0, "data": []}).status_code in (401, 422)
        assert http.get("/gradio_api/queue/data?session_hash=abc").status_code == 401 and http.get("/metrics").status_code == 401
        assert "password" in http.get("/login").text and http.get("/healthz").status_code in (200, 503)
        assert http.post("/login", data={"name": "<b>eve</b>", "password": "x"}).status_code == 401
        good = http.post("/login", data={"name": "ada", "password": "correct horse"})
        cookie = good.headers["set-cookie"].lower()
        assert good.status_code == 303 and "httponly" in cookie and "samesite=lax" in cookie and "correct" not in cookie
        assert http.get("/").status_code == 200 and http.get("/config").status_code == 200
        value = http.cookies.get("explorer_login")
        http.cookies.clear()
        forged = value[:-1] + ("0" if value[-1] != "0" else "1")
        assert http.get("/config", headers={"Cookie": f"explorer_login={forged}"}).status_code == 401
        for _ in range(TRIES["name"]):
            assert http.post("/login", data={"name": "ada", "password": "guess"}).status_code == 401
        locked = http.post("/login", data={"name": "ada", "password": "correct horse"})
        assert locked.status_code == 429 and int(locked.headers["retry-after"]) > 200


def test_passwords_and_their_file(tmp_path: Path) -> None:
    stored = hashed("correct horse")
    assert matches("correct horse", stored) and not matches("correct horse ", stored) and hashed("correct horse") != stored
    short, cut = base64.b64encode(bytes(8)).decode(), stored[:-4]
    for content in ("", "ada\n", "ada:nohash\n", "ada:abc$def\n", f"ada:{stored}$x\n", f"ada:{cut}\n", f"ada:{short}${short}\n", "ada:é$é\n"):
        (tmp_path / "names").write_text(content, "utf-8")
        with pytest.raises(InputError, match="must have a line"):
            read(tmp_path / "names")
    (tmp_path / "names").write_bytes(b"ada:\xff\n")
    with pytest.raises(InputError, match="no UTF-8 text"):
        read(tmp_path / "names")
    assert login.main([str(tmp_path / "names"), "ada"]) == 2 and login.main([str(tmp_path), "ada"]) == 2
    with pytest.raises(SystemExit, match="2"):
        login.main([])
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none")
    lockout = Lockout()
    for i in range(TRIES["address"]):
        assert lockout.take(f"name {i}", "address 1.2.3.4") == 0
    assert lockout.take("address 1.2.3.4") > 0 and lockout.take("name 1") == 0 and len(lockout._wrong) <= 10_000


def test_guesses_at_once_are_no_more_than_guesses_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(login, "matches", lambda password, stored: tried.append(password) or time.sleep(0.02) or password == "right")
    door = login.Login(lambda scope, receive, send: None, {"ada": "salt$hash"})

    async def answers(*passwords: str) -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=door), base_url="http://t") as http:
            return [r.status_code for r in await asyncio.gather(*(http.post("/login", data={"name": "ada", "password": one}) for one in passwords))]

    def ask(*passwords: str) -> list[int]:
        """In a thread of its own: in this one the browser tests may have left a loop that runs."""
        with ThreadPoolExecutor(1) as other:
            return other.submit(asyncio.run, answers(*passwords)).result()

    for _ in range(2 * TRIES["name"]):
        assert ask("right") == [303], "a right password is given back"
    tried.clear()
    assert sorted(ask(*map(str, range(30)))) == [401] * TRIES["name"] + [429] * (30 - TRIES["name"]) and len(tried) == TRIES["name"]


def test_a_login_of_too_many_fields_is_refused() -> None:
    door = login.Login(lambda scope, receive, send: None, {"ada": "salt$hash"})

    async def answer() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=door, raise_app_exceptions=False), base_url="http://t") as http:
            return await http.post("/login", data={str(i): "x" for i in range(5)})

    with ThreadPoolExecutor(1) as other:
        refused = other.submit(asyncio.run, answer()).result()
    assert refused.status_code == 400 and "a name and a password" in refused.text


def test_made_up_sessions_of_one_address_leave_room_for_others(tmp_path: Path) -> None:
    """And a class of a hundred behind one address, each with a run of its own, is let in."""
    who, where = ["session 0"], ["here"]
    settings = WorkerSettings(tmp_path / "log", HubSettings(offline=True), "tests.faults:runner")
    runner = WorkerRunner(settings, Limits(spare=False), lambda: who[0], delay=60.0, address=lambda: where[0])
    held = []

    def ask(number: int) -> None:
        held.append(runner.run("demo", "good", {"number": number}))
        next(held[-1])

    try:
        for i in range(192):
            who[0] = f"session {i}"
            ask(i)
        who[0] = "one more"
        with pytest.raises(InputError, match="192 runs in line, which is its share"):
            ask(1000)
        ask(0)  # what somebody waits for already is no further run
        who[0], where[0] = "another", "elsewhere"
        ask(1000)
        who[0], where[0] = "one more", "here"
        with pytest.raises(InputError, match="its share"):
            ask(1001)
        held[1].close()
        ask(1001)
    finally:
        for events in held:
            events.close()
        runner.close()


@pytest.mark.parametrize(("name", "arguments", "folders"), [("127.0.0.1", [], None), ("0.0.0.0", [], ()), ("127.0.0.1", ["--public"], ())])
def test_a_public_server_names_no_folders_and_shares_its_time(name: str, arguments: list[str], folders: tuple | None) -> None:
    made = app.settings(arguments, {"GRADIO_SERVER_NAME": name, "GRADIO_SERVER_PORT": "7860", "HF_TOKEN": "hf_secret"})
    assert made.hub.folders == folders and made.public == (folders is not None) and bool(made.limits.seconds_of_session) == made.public
    assert "hf_secret" not in repr(made)


def test_the_room_for_results_comes_from_the_environment() -> None:
    given = {"QUANTIZATION_EXPLORER_STORE_BYTES": "5000000"}
    assert app.settings([], given).store_bytes == 5_000_000 and app.settings([], {}).store_bytes == app.LIMIT
    with pytest.raises(InputError, match="number of bytes"):
        app.settings([], {"QUANTIZATION_EXPLORER_STORE_BYTES": "2 GB"})


def test_address_and_port_are_flags_or_variables_and_a_port_is_a_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    made = app.settings(["--port", "7861"], {"GRADIO_SERVER_PORT": "7860"})
    assert (made.name, made.port, made.open_browser) == ("127.0.0.1", 7861, True) and app.settings(["--host", "0.0.0.0"], {}).public
    assert app.settings([], {}).port is None and app.settings([], {"GRADIO_SERVER_PORT": "7860"}).port == 7860
    for argv in (["--port", "0"], ["--port", "65536"], []):
        with pytest.raises(InputError, match="from 1 to 65535"):
            app.settings(argv, {"GRADIO_SERVER_PORT": "abc"})
    monkeypatch.setenv("GRADIO_SERVER_PORT", "abc")
    with pytest.raises(SystemExit) as stopped:
        app.main([])
    assert stopped.value.code == 2 and "'abc'" in capsys.readouterr().err


def test_visitors_log_in_on_the_hub_only_on_a_space_that_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    space = {"SPACE_ID": "a/b", "OAUTH_CLIENT_ID": "x"}
    monkeypatch.setattr(app, "find_spec", lambda name: None)
    assert not app.settings([], space).oauth
    monkeypatch.setattr(app, "find_spec", lambda name: name)
    assert not app.settings([], {"OAUTH_CLIENT_ID": "x"}).oauth and not app.settings([], {"SPACE_ID": "a/b"}).oauth
    made = app.settings([], space)
    assert made.oauth and made.hub.login and made.hub.token == ""
    assert app.login() == ""
    for until, told in ((time.time() + 60, "hf_mine"), (time.time() - 60, "")):
        request = SimpleNamespace(request=SimpleNamespace(scope={"session": {"oauth_info": {"access_token": "hf_mine", "expires_at": until}}}))
        before = LocalContext.request.set(request)
        assert app.login() == told
        LocalContext.request.reset(before)
