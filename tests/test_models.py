"""Models and texts: what is refused and in which words, the hub played by a local server that fails, calibration in true-sequential order."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from explorer import data, models
from explorer.calibration import sequential_inputs
from explorer.qlinear import put
from explorer.records import InputError, ModelRef

CPU = torch.device("cpu")


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may break."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "mamba"}, "not supported yet"),
        ({"auto_map": {"AutoModel": "own.Code"}}, "brings its own code"),
        ({"_attn_implementation_internal": "someone/kernel"}, "brings its own code"),
        ({"quantization_config": {"bits": 4}}, "already quantized"),
        (None, "must be JSON"),
    ],
)
def test_config_is_refused_in_words(folder: Path, change: dict | None, sentence: str) -> None:
    path = folder / "config.json"
    path.write_text("{" if change is None else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=sentence):
        models.resolve(str(folder))


@pytest.mark.parametrize(("missing", "sentence"), [("config.json", "no readable config"), ("model.safetensors", "holds no")])
def test_folder_that_is_no_model_is_refused(folder: Path, missing: str, sentence: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(InputError, match=sentence):
        models.resolve(str(folder))


def test_truncated_weights_are_a_sentence(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="could not be read as a model"):
        models.load(models.resolve(str(folder)), CPU)


def test_revision_follows_the_content(folder: Path) -> None:
    before = models.resolve(str(folder))
    weights = folder / "model.safetensors"
    data_ = bytearray(weights.read_bytes())
    data_[-1] ^= 1
    weights.write_bytes(data_)
    assert models.resolve(str(folder)).revision != before.revision


class Failing(http.server.BaseHTTPRequestHandler):
    """A hub that answers every request with one status."""

    code = 404

    def do_GET(self) -> None:
        self.send_response(self.code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture(params=[404, 401, 500])
def failing_hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The hub's address leads to a server here that fails in one way."""
    from huggingface_hub import HfApi, constants

    handler = type("Handler", (Failing,), {"code": request.param})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    original, address = HfApi.__init__, f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(HfApi, "__init__", lambda self, **kw: original(self, **{**kw, "endpoint": address}))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield request.param
    server.shutdown()
    server.server_close()
    thread.join()


def test_hub_failures_are_sentences(failing_hub: int) -> None:
    with pytest.raises(InputError, match="could not be found on the hub") as caught:
        models.resolve("someone/some-model")
    assert "choose 'demo'" in str(caught.value)


def test_download_failure_is_a_sentence() -> None:
    with pytest.raises(InputError, match="could not be downloaded"):
        models.load(ModelRef("someone/some-model", "0" * 40), CPU)


@pytest.mark.parametrize("source", ["wikitext2", "c4"])
def test_texts_of_the_hub_need_a_network_and_say_so(source: str) -> None:
    with pytest.raises(InputError, match="needs a network"):
        data.text_of(source, "evaluation")


def test_text_bounds_are_sentences() -> None:
    with pytest.raises(InputError, match="paste at most 200,000"):
        data.text_of("pasted", "evaluation", "x" * (data.PASTE_LIMIT + 1))
    with pytest.raises(InputError, match="There is no text"):
        data.text_of("poems", "evaluation")


def test_halves_of_the_bundled_text_share_no_topic() -> None:
    calibration, evaluation = data.bundled_text("calibration"), data.bundled_text("evaluation")
    paragraphs = [{p for p in text.split("\n\n") if len(p) > 50} for text in (calibration, evaluation)]
    assert paragraphs[0] and not paragraphs[0] & paragraphs[1]
    assert min(len(calibration), len(evaluation)) > 150_000


def test_each_set_of_layers_sees_the_layers_replaced_before_it(tiny_folder: Path) -> None:
    """q/k/v, o, gate/up, down of block 0, then block 1; zeroing a set changes what the next one reads, and only from then on."""
    loaded = models.load(models.resolve(str(tiny_folder)), CPU)
    rows = torch.randint(0, 4096, (2, 64), generator=torch.Generator().manual_seed(0))
    plain = [{name: x.clone() for name, x in group.items()} for group in sequential_inputs(loaded, rows)]
    kinds = [sorted(name.rsplit(".", 1)[1] for name in group) for group in plain]
    assert kinds == [["k_proj", "q_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]] * 2
    original = models.linears(loaded.model)["layers.0.self_attn.o_proj"]
    changed = []
    for group in sequential_inputs(loaded, rows):
        changed.append({name: x.clone() for name, x in group.items()})
        if "layers.0.self_attn.o_proj" in group:
            silent = torch.nn.Linear(original.in_features, original.out_features, bias=False, dtype=original.weight.dtype)
            put(loaded.model, "layers.0.self_attn.o_proj", silent.requires_grad_(False))
    same = [all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(plain, changed, strict=True)]
    assert same == [True, True] + [False] * 6
