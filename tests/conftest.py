"""Shared fixtures: the interpreter switch that must be set before any kernel is imported, a tiny model folder, an empty store."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from explorer.store import Store

gc.disable()  # until all tests are imported: what torch and gradio consist of stays, and looking through it again and again takes a fifth of the time

# What takes longest comes first, so that at the end no core waits for a long file that was begun last.
LONG = (
    "browser", "learn_browser", "machine_code", "browser_clicks", "browser_partial", "address", "offload", "load", "experiment", "browser_history",
    "browser_weights", "browser_text", "stories", "speed", "laws", "models", "summation", "browser_layers", "browser_compared", "kernels", "worker",
    "door", "detectors", "gguf", "wide", "saving", "cli", "sweep", "properties",
)  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests of pages, queues and deadlines wait much of their time."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Files are not divided, and those with browser tests run in two processes, each with one app and one browser: more pages at once starve each other."""
    from xdist.scheduler import LoadFileScheduling

    files = [path for path in Path(__file__).parent.glob("test_*.py") if "browser_test" in path.read_text()]
    side = {path.name: f"browser {at % 2}" for at, path in enumerate(sorted(files, key=place))}

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return side.get(Path(file).name, file)

    return Scheduling(config, log)


def place(path: Path) -> int:
    """A test file's place in the order."""
    name = path.stem.removeprefix("test_")
    return LONG.index(name) if name in LONG else len(LONG)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: place(item.path))


def pytest_collection_finish() -> None:
    gc.freeze()  # a run collects garbage, and would look through half a million objects of modules, a third of a second each time
    gc.enable()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # or extensions complain at the end of what they take for leaks


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """After a file's last test, what its tests have imported stays as well."""
    yield
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def interpreted() -> Iterator[None]:
    """Kernels run in Triton's interpreter as tests/interpreter.py has it."""
    from tests.interpreter import drop_idle_work, read_block_scales

    with pytest.MonkeyPatch.context() as patch:
        read_block_scales(patch)
        drop_idle_work(patch)
        yield


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "results.db")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real repository folder: a Llama of random weights with one layer whose width no group size divides, and the demo tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from explorer.models import DEMO

    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = LlamaConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=1024, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app in a process of its own, with an empty store; with a proxy that is none, as its own machine is reached without one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = tmp_path_factory.mktemp("app") / "r.db"
    settings = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "QUANTIZATION_EXPLORER_STORE": str(store)}
    settings |= {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "example.org", "no_proxy": ""}
    with subprocess.Popen([sys.executable, "app.py"], cwd=Path(__file__).parent.parent, env={**os.environ, **settings}, stdout=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}/"
        for _ in range(240):
            try:
                urllib.request.urlopen(url, timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "the app ended"
                time.sleep(0.25)
        yield url
        process.terminate()


@pytest.fixture(scope="session")
def browser() -> Iterator:
    from tests.driving import CHROMIUM, FLAGS

    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def desk(browser, address: str) -> Iterator[tuple]:
    """One page of a desk's size, and the list of what goes wrong in it, for tests of a file that can follow each other: each leaves what the next expects."""
    from tests.driving import visit

    page, wrong = visit(browser, address, 1440, 900)
    yield page, wrong
    page.close()


@pytest.fixture(scope="module")
def weight():
    """[64, 256] bfloat16 values, as checkpoints hold them, so that ties between two codes occur."""
    import torch

    generator = torch.Generator().manual_seed(3)
    return (torch.randn(64, 256, generator=generator) * torch.rand(64, 1, generator=generator)).bfloat16().float()
