"""The hub played by a local server: every fault is a sentence, nothing is fetched that will not fit, what comes is checked, kept and capped."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from explorer import downloads, loader, models, rights, sizes
from explorer.experiment import LocalRunner
from explorer.hub import Hub, HubSettings, settings_from, split_id
from explorer.loader import Loader
from explorer.records import InputError, ModelRef, Progress
from explorer.store import Store
from tests.hub_server import COMMIT, FAULTS, StandIn, stand_in

CPU = torch.device("cpu")
NAME = "someone/tiny"


@pytest.fixture
def server(tiny_folder: Path) -> Iterator[StandIn]:
    with stand_in() as made:
        made.repositories[NAME] = tiny_folder
        yield made


@pytest.fixture
def hub(server: StandIn, tmp_path: Path) -> Hub:
    return Hub(HubSettings(server.endpoint, tmp_path / "models", shared=None, timeout=0.5))


SENTENCES = {
    "missing": "knows no public model", "private": "or it is private", "gated": "is gated", "busy": "in 120 s", "broken": "fault of its own \\(500\\)",
    "down": "fault of its own \\(503\\)", "no revision": "knows no revision", "listed as gated": "is gated", "slow": "too slow", "not json": "not be read",
    "no commit": "could not be read", "truncated": "broke off", "corrupt": "came damaged", "insecure redirect": "not secure",
    "header does not fit": "damaged on the hub", "pickle only": "no weights as safetensors",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_a_sentence_and_the_next_try_works(hub: Hub, server: StandIn, fault: str) -> None:
    server.fault = fault
    with pytest.raises(InputError, match=SENTENCES[fault]) as caught:
        models.load(models.resolve(NAME, hub), CPU, hub)
    assert str(caught.value).count("\n") == 0 and str(caught.value).endswith(".")
    server.fault = ""
    again = Hub(hub.settings)
    assert models.load(models.resolve(NAME, again), CPU, again).ref == ModelRef(NAME, COMMIT)


@pytest.mark.parametrize("door", ["gated", "private"])
def test_a_visitor_reads_with_their_own_login_and_nobody_else_does(hub: Hub, server: StandIn, tmp_path: Path, door: str) -> None:
    hub = Hub(dataclasses.replace(hub.settings, login=True))
    getattr(server, door)[NAME] = {"hf_mine"}
    refused = {"gated": "Accept its terms on the hub, log in here", "private": "or it is private"}[door]
    with pytest.raises(InputError, match=refused):
        models.resolve(NAME, hub)
    with rights.of("hf_mine"):
        ref = models.load(models.resolve(NAME, hub), CPU, hub).ref
        assert ref == ModelRef(NAME, COMMIT) and rights.token() == "hf_mine"
    assert rights.token() == "" and downloads.found(hub.settings, ref)  # the files are here now, and still not everyone's
    for name in (NAME, f"{NAME}@{COMMIT}"):
        with pytest.raises(InputError, match=refused):
            models.resolve(name, hub)
        with rights.of("hf_another"), pytest.raises(InputError) as caught:
            models.resolve(name, hub)
        assert "hf_" not in str(caught.value)
        assert ("let your account in" if door == "gated" else "or it is private") in str(caught.value)
    assert not any(b"hf_mine" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_login_is_no_gate_of_its_own_and_a_server_without_one_says_what_to_do(hub: Hub, server: StandIn) -> None:
    server.gated[NAME] = {"hf_mine"}
    with pytest.raises(InputError, match="download it, and give the folder here"):
        models.resolve(NAME, hub)
    server.gated.clear()
    with rights.of("hf_another"):
        assert models.resolve(NAME, Hub(hub.settings)).name == NAME


def test_unreachable_hub_is_a_sentence(tmp_path: Path) -> None:
    hub = Hub(HubSettings("http://127.0.0.1:9", tmp_path, shared=None, timeout=1))
    with pytest.raises(InputError, match="cannot be reached"):
        models.resolve(NAME, hub)


@pytest.mark.parametrize(
    "name", ["", "../etc/passwd", "a/b/c", "a--b/c", "-x/y", "é/x", "a/b?x=1", "a/b\n", "http://x/y", "x" * 200, "a/b@", "a/b@../x", "a\0b"]
)
def test_ids_that_are_none_never_reach_the_hub(hub: Hub, server: StandIn, name: str) -> None:
    with pytest.raises(InputError, match="neither a folder here nor a model id"):
        models.resolve(name, hub)
    assert not server.asked


def test_folders_outside_the_allowed_ones_are_not_told_from_ids(hub: Hub, tiny_folder: Path, tmp_path: Path) -> None:
    closed = Hub(dataclasses.replace(hub.settings, folders=(tmp_path,)))
    sentences = []
    for name in (str(tiny_folder), "/no/such/folder"):
        with pytest.raises(InputError, match="neither a folder here") as caught:
            models.resolve(name, closed)
        sentences.append(str(caught.value).replace(repr(name[:60]), ""))
    assert sentences[0] == sentences[1]
    inside = shutil.copytree(tiny_folder, tmp_path / "allowed")
    assert models.resolve(str(inside), closed).name == str(inside)
    (tmp_path / "link").symlink_to(tiny_folder)
    with pytest.raises(InputError, match="neither a folder here"):
        models.resolve(str(tmp_path / "link"), closed)


def test_a_revision_can_be_asked_for() -> None:
    assert split_id("a/b@v1.0") == ("a/b", "v1.0") and split_id("gpt2") == ("gpt2", "main")


@pytest.mark.parametrize("limit", ["disk", "memory"])
def test_too_large_is_refused_with_no_weight_byte(hub: Hub, server: StandIn, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    ref = models.resolve(NAME, hub)
    if limit == "disk":
        hub = Hub(dataclasses.replace(hub.settings, cache_bytes=100_000))
    else:
        monkeypatch.setattr(models, "free_memory", lambda device: 10**8)
    with pytest.raises(InputError, match="at most 0.0 GB are kept" if limit == "disk" else "0.00 billion parameters and needs about 0.6 GB"):
        models.load(ref, CPU, hub)
    assert sum(server.sent.values()) == 0 and not (hub.settings.cache / "someone--tiny").exists()


def test_a_training_that_does_not_fit_is_refused_with_no_weight_byte(hub: Hub, server: StandIn, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "free_memory", lambda device: 10**9)
    runner = LocalRunner(store, Loader(CPU, hub=hub))
    with pytest.raises(InputError, match=r"Training 0\.00 billion weights takes about"):
        list(runner.run(NAME, "qat", {"group_size": 32}, tokens=512, length=128))
    assert sum(server.sent.values()) == 0 and not (hub.settings.cache / "someone--tiny").exists()


def test_parameters_are_counted_from_the_headers(hub: Hub, server: StandIn) -> None:
    listing = hub.listing(NAME)
    weight = hub.weigh(listing)
    assert weight.total == sum(p.numel() for p in models.load(models.resolve(NAME, hub), CPU, hub).model.parameters())
    assert weight.parameters.keys() == {"BF16"} and weight.largest == 80 * 64
    many = dataclasses.replace(weight, parameters={"BF16": 7_000_000_000}, largest=32000 * 4096)
    assert sizes.whole(many, on_gpu=False) < 24 * 2**30 < sizes.whole(dataclasses.replace(many, parameters={"F32": 7 * 10**9}), on_gpu=False)
    assert weight.outside == 2 * 4096 * 64 + 64  # embedding, head and the last normalisation


def test_a_class_that_types_one_name_asks_once(hub: Hub, server: StandIn) -> None:
    for _ in range(30):
        models.resolve(NAME, hub)
        with pytest.raises(InputError):
            models.resolve("someone/else", hub)
    assert set(server.asked.values()) == {1}


def test_download_shows_progress_stops_and_goes_on(hub: Hub, server: StandIn) -> None:
    server.fault = "trickle"
    listing = hub.listing(NAME)
    steps = downloads.fetch(hub, listing)
    events = [next(steps) for _ in range(12)]
    start = time.monotonic()
    steps.close()
    assert time.monotonic() - start < 0.5 and all(isinstance(e, Progress) and e.done <= e.total for e in events)
    folder = downloads.folder_of(hub.settings, NAME, COMMIT)
    part = folder / "model.safetensors.part"
    got = part.stat().st_size
    assert got > 0 and not downloads.found(hub.settings, ModelRef(NAME, COMMIT))
    server.fault, before = "", server.sent["model.safetensors"]
    models.load(models.resolve(NAME, hub), CPU, hub)
    size = (folder / "model.safetensors").stat().st_size
    assert not part.exists() and server.sent["model.safetensors"] - before <= size - got


def test_deadline_of_a_download(hub: Hub, server: StandIn) -> None:
    server.fault = "trickle"
    hub = Hub(dataclasses.replace(hub.settings, deadline=0.3))
    with pytest.raises(InputError, match="took too long"):
        models.load(models.resolve(NAME, hub), CPU, hub)


def test_what_was_fetched_works_offline_and_other_names_say_so(hub: Hub) -> None:
    ref = models.load(models.resolve(NAME, hub), CPU, hub).ref
    offline = Hub(dataclasses.replace(hub.settings, offline=True))
    assert models.resolve(NAME, offline) == models.resolve(f"{NAME}@{COMMIT}", offline) == ref
    assert models.context(ref, offline) == 1024 and models.load(ref, CPU, offline).ref == ref
    for other in ("someone/else", f"{NAME}@{'0' * 40}"):
        with pytest.raises(InputError, match="works offline"):
            models.resolve(other, offline)


def test_a_cache_of_the_hubs_own_client_is_read(hub: Hub, server: StandIn, tiny_folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "shared" / "models--someone--tiny"
    shutil.copytree(tiny_folder, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    offline = Hub(dataclasses.replace(hub.settings, offline=True, shared=tmp_path / "shared"))
    assert models.load(models.resolve(NAME, offline), CPU, offline).ref.revision == COMMIT
    (place / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(InputError, match="works offline"):
        models.resolve(NAME, offline)


def test_the_least_recently_used_model_leaves_a_full_cache(server: StandIn, tiny_folder: Path, tmp_path: Path) -> None:
    size = sum(p.stat().st_size for p in tiny_folder.iterdir())
    hub = Hub(HubSettings(server.endpoint, tmp_path / "models", int(2.2 * size), shared=None))
    for name in ("a/one", "a/two", "a/one", "a/three"):
        server.repositories[name] = tiny_folder
        models.load(models.resolve(name, hub), CPU, hub)
        time.sleep(0.02)
    assert {p.parent.name for p in hub.settings.cache.glob("*/*")} == {"a--one", "a--three"}


def test_settings_come_from_the_variables_of_the_hubs_client() -> None:
    made = settings_from({"HF_ENDPOINT": "https://mirror.example/", "HF_HUB_OFFLINE": "1", "HF_HOME": "/x", "HF_TOKEN": "secret"})
    assert made.endpoint == "https://mirror.example" and made.offline and made.shared == Path("/x/hub")
    assert made.token == "" and "secret" not in repr(dataclasses.replace(made, token="secret"))


@pytest.mark.parametrize("ask", [
    ("perturb", {"method": "rtn", "params": {}, "layer": "layers.0.self_attn.q_proj"}), ("sensitivity", {}), ("inputs", {"layer": "layers.0.self_attn.q_proj"}),
    ("generate", {"specs": [], "prompt": "x"}),
], ids=lambda ask: ask[0])  # fmt: skip
def test_a_task_asks_the_hub_of_its_loader(ask: tuple[str, dict], tmp_path: Path) -> None:
    runner = LocalRunner(Store(":memory:"), Loader(CPU, hub=Hub(HubSettings(cache=tmp_path, shared=None, offline=True))))
    with pytest.raises(InputError, match="works offline"):
        list(runner.do(ask[0], {"model": "someone/model", **ask[1]}))
