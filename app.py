"""Composition root and Hugging Face Space entry: settings -> runner -> UI -> guarded launch. torch loads while the page is already served."""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))  # else every click sums up the last 10,000, for a page that is closed here
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from explorer.hub import HubSettings, settings_from
from explorer.jobs import WorkerRunner
from explorer.limits import Limits
from explorer.presets import DEMO, configurations
from explorer.recorded import seeds
from explorer.records import Event, InputError, Progress
from explorer.store import LIMIT, bytes_from, place_from
from explorer.worker import WorkerSettings, local_runner
from explorer.zerogpu import ZeroGpuRunner


@contextmanager
def no_type_stubs() -> Iterator[None]:
    """While gradio is imported: it would rewrite the type stubs of all its components for editors, which takes a third of the time to the first
    page. It skips components whose source file cannot be told.
    """
    real = inspect.getfile

    def unknown(item: object) -> str:
        raise OSError("not told while gradio is imported")

    inspect.getfile = unknown
    try:
        yield
    finally:
        inspect.getfile = real


@contextmanager
def uncollected() -> Iterator[None]:
    """While hundreds of thousands of objects are made that all stay: the garbage collector would look through them again and again, a fifth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def unread_port() -> Iterator[None]:
    """While gradio is imported: it would read the port from the environment, and end with a traceback where that is no number."""
    given = os.environ.pop("GRADIO_SERVER_PORT", None)
    try:
        yield
    finally:
        if given is not None:
            os.environ["GRADIO_SERVER_PORT"] = given


with no_type_stubs(), uncollected(), unread_port():
    from starlette.middleware import Middleware

    from explorer.server.guard import Guard
    from explorer.server.health import Metrics, routes
    from explorer.server.login import Login, read
    from explorer.server.pages import Pages
    from explorer.ui.app import FRAMES, STYLE, build, theme
    from explorer.ui.blocks import unserved
    from explorer.ui.forms import forms
    from explorer.ui.visitor import Sessions, address, login, remember_signatures, session

ASSETS = Path(__file__).parent / "assets"
VARIABLES = (
    "Variables: GRADIO_SERVER_NAME and GRADIO_SERVER_PORT for --host and --port, QUANTIZATION_EXPLORER_AUTH_FILE for --auth-file, "
    "QUANTIZATION_EXPLORER_STORE (result file), QUANTIZATION_EXPLORER_STORE_BYTES (what it may fill), QUANTIZATION_EXPLORER_FOLDERS (folders that visitors "
    "may open models from), HF_HUB_OFFLINE=1 (no network)."
)


class LazyRunner:
    """Makes the real runner in a background thread, `delay` seconds after the start or at the first run, so that the first page does not wait
    for torch. A run that comes sooner than torch waits, and says so.
    """

    def __init__(self, store: Path, delay: float = 0.0, hub: HubSettings | None = None, store_bytes: int = LIMIT) -> None:
        self._settings = WorkerSettings(store, hub or HubSettings(), store_bytes=store_bytes)
        self._made, self._wanted, self._runner, self._error = threading.Event(), threading.Event(), None, None
        threading.Thread(target=self._make, args=(delay,), daemon=True).start()

    def _make(self, delay: float) -> None:
        self._wanted.wait(delay)
        try:
            self._runner = local_runner(self._settings)
        except Exception as error:  # shown to whoever presses Run
            self._error = error
        self._made.set()

    def _ready(self) -> Iterator[Event]:
        self._wanted.set()
        while not self._made.wait(0.5):
            yield Progress("starting", 0, 1, "loading torch and transformers")
        if self._error is not None:
            raise RuntimeError(f"the engine could not start: {self._error}") from self._error

    def run(self, model: str, method: str, params: dict[str, Any], **options: Any) -> Iterator[Event]:
        yield from self._ready()
        yield from self._runner.run(model, method, params, **options)

    def do(self, task: str, arguments: dict[str, Any]) -> Iterator[Event]:
        yield from self._ready()
        yield from self._runner.do(task, arguments)

    def healthy(self) -> bool:
        """Whether torch is loaded and the store is open."""
        return self._runner is not None

    def waiting(self) -> int:
        """Unknown: nobody counts in this process."""
        return 0

    active = waiting


@dataclass(frozen=True)
class Settings:
    """How this server runs. strangers: whether visitors are, although only this machine can reach the port, as behind a proxy. oauth: whether they may
    log in on the hub, as on a Space that asks for it. store_bytes: what results may fill; the oldest leave for new ones.
    """

    name: str = "127.0.0.1"
    port: int | None = None
    store: Path = field(default_factory=place_from)
    hub: HubSettings = field(default_factory=HubSettings)
    auth_file: Path | None = None
    in_process: bool = False
    zero_gpu: bool = False
    open_browser: bool = True
    strangers: bool = False
    oauth: bool = False
    store_bytes: int = LIMIT

    @property
    def public(self) -> bool:
        """Whether others than this machine's user can reach it."""
        return self.strangers or self.name not in ("127.0.0.1", "localhost", "::1")

    @property
    def limits(self) -> Limits:
        """Of the queue: a share for each visitor where there are others."""
        return Limits(seconds_of_session=1800.0 if self.public else 0.0, spare=psutil.virtual_memory().available > 4 * 2**30)


def settings(argv: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """From the command line and from the variables that Gradio, the hub's client and Spaces use. Raises InputError for what cannot be."""
    parser = argparse.ArgumentParser(prog="python app.py", description="Serves the Quantization Explorer.", epilog=VARIABLES)
    parser.add_argument("--host", default=environment.get("GRADIO_SERVER_NAME"), help="address that is listened on; 127.0.0.1, this machine only, without one")
    parser.add_argument("--port", default=environment.get("GRADIO_SERVER_PORT"), help="port; the first free one from 7860 on without one")
    parser.add_argument("--auth-file", type=Path, default=environment.get("QUANTIZATION_EXPLORER_AUTH_FILE") or None, help="who may log in")
    parser.add_argument("--in-process", action="store_true", help="compute in this process: less memory, but a fault there ends the server")
    parser.add_argument("--public", action="store_true", help="visitors are strangers, as behind a proxy: no folders by name, a share of time for each")
    args = parser.parse_args(argv)
    made = Settings(
        args.host or "127.0.0.1", port_from(args.port),
        place_from(environment), settings_from(environment),
        args.auth_file, args.in_process, "SPACES_ZERO_GPU" in environment,
        args.host is None, args.public,
        {"SPACE_ID", "OAUTH_CLIENT_ID"} <= environment.keys() and find_spec("authlib") is not None,  # a Space of gradio's kind brings it along
    )  # fmt: skip
    made = replace(made, hub=replace(made.hub, login=made.oauth), store_bytes=bytes_from(environment))
    folders = environment.get("QUANTIZATION_EXPLORER_FOLDERS", "")
    if made.public or folders:  # a visitor must not learn which folders there are
        made = replace(made, hub=replace(made.hub, folders=tuple(map(Path, filter(None, folders.split(os.pathsep))))))
    return made


def port_from(given: str | None) -> int | None:
    """A port, or None for the first that is free. Raises InputError for what is no port."""
    if not given:
        return None
    if not (given.isascii() and given.isdigit() and 0 < int(given) < 65536):
        raise InputError(f"A port (--port, or the variable GRADIO_SERVER_PORT) is a number from 1 to 65535, not {given[:40]!r}.")
    return int(given)


def runner_of(made: Settings, metrics: Metrics) -> Any:
    """The runner that fits where this runs."""
    work = WorkerSettings(made.store, made.hub, store_bytes=made.store_bytes)
    if made.zero_gpu:
        import spaces

        return ZeroGpuRunner(work, spaces.GPU, login)
    if made.in_process:
        return LazyRunner(made.store, 4.0, made.hub, made.store_bytes)
    return WorkerRunner(work, made.limits, session, metrics, delay=7.0, token=login, address=address)


def ahead() -> list[str]:
    """Paths of the scripts that draw figures: gradio's page asks for them only when its first figure is laid out."""
    import gradio

    return [f"./assets/{path.name}" for path in Path(gradio.__file__).parent.glob("templates/frontend/assets/PlotlyPlot-*.js")]


def serve(made: Settings, runner: Any, metrics: Metrics, names: dict[str, str]) -> None:
    """Builds the page over a runner and serves it behind its guard, until the process ends. names: who may log in, with hashes; everyone when empty.
    Raises InputError where the port is taken.
    """
    metrics.watch(runner)
    architectures = [f"arch:{name}" for name in configurations() if name != DEMO]
    with uncollected(), unserved():
        blocks = build(runner, list(seeds()), json.loads((ASSETS / "methods.json").read_text())["methods"], [DEMO, *architectures], made.oauth)
        blocks.queue(max_size=256)
    remember_signatures(blocks)
    shapes = forms(blocks)
    keep_out = [Middleware(Login, names=names)] if names else []
    door = [Middleware(Guard, forms=shapes, login=bool(names), ahead=ahead(), oauth=made.oauth, process=str(blocks.app_id)), *keep_out,
            Middleware(Pages, script=FRAMES.read_text())]  # fmt: skip
    for name in ("no_proxy", "NO_PROXY"):  # gradio asks its own server whether it is up, and a proxy need not know this machine
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost", made.name]))
    try:
        served, _, _ = blocks.launch(
            server_name=made.name, server_port=made.port, app_kwargs={"middleware": door, "routes": routes(runner, metrics)},
            theme=theme(), css=STYLE.read_text(), max_threads=200, state_session_capacity=300, enable_monitoring=False, run_history=False,
            show_error=False, max_file_size="1kb", footer_links=[], ssr_mode=False, strict_cors=True, inbrowser=made.open_browser,
            prevent_thread_lock=True, _frontend=False,  # no end with "set share=True" where the first page takes over three seconds
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"No page can be served at {made.name}, port {made.port or '7860 to 7959'}; another program has it, or there is no such address "
                         "here. Choose another --port or --host.") from error  # fmt: skip
    served.state_holder = Sessions(blocks)
    gc.freeze()  # the page stays as long as the server: no collection need look through it
    blocks.block_thread()


def main(argv: Sequence[str] | None = None) -> None:
    try:
        made = settings(sys.argv[1:] if argv is None else argv, os.environ)
        names = read(made.auth_file) if made.auth_file else {}
        metrics = Metrics()
        serve(made, runner_of(made, metrics), metrics, names)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
