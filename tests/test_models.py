"""Models and texts: what is refused and in which words, weights read by map, calibration in true-sequential order."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from explorer import checkpoint, data, models, sizes
from explorer.calibration import first_inputs, sequential_statistics
from explorer.checkpoint import SUPPORTED
from explorer.experiment import LocalRunner, last_report
from explorer.hub import Hub, HubSettings
from explorer.loader import Loader
from explorer.qlinear import put
from explorer.records import InputError
from explorer.sizes import Weight
from explorer.store import Store
from tests import architectures, big_model
from tests.hub_server import stand_in

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
        ({"text_config": {"deep": [{"auto_map": {}}]}}, "brings its own code"),
        ({"vocab_size": 10**12}, "vocab_size is '1000000000000'"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        (None, "must be JSON"),
    ],
)
def test_config_is_refused_in_words(folder: Path, change: dict | None, sentence: str) -> None:
    path = folder / "config.json"
    path.write_text("{" if change is None else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=sentence):
        models.resolve(str(folder), Hub())


@pytest.mark.parametrize(("missing", "sentence"), [("config.json", "no readable config"), ("model.safetensors", "holds no")])
def test_folder_that_is_no_model_is_refused(folder: Path, missing: str, sentence: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(InputError, match=sentence):
        models.resolve(str(folder), Hub())


def test_truncated_weights_are_a_sentence(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="could not be read as a model"):
        models.load(models.resolve(str(folder), Hub()), CPU, Hub())


def test_revision_follows_the_content(folder: Path) -> None:
    before = models.resolve(str(folder), Hub())
    weights = folder / "model.safetensors"
    data_ = bytearray(weights.read_bytes())
    data_[-1] ^= 1
    weights.write_bytes(data_)
    assert models.resolve(str(folder), Hub()).revision != before.revision


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
    loaded = models.load(models.resolve(str(tiny_folder), Hub()), CPU, Hub())
    rows = torch.randint(0, 4096, (2, 64), generator=torch.Generator().manual_seed(0))
    asked = dict.fromkeys(models.linears(loaded.model), True)
    plain = list(sequential_statistics(loaded, rows, asked))
    kinds = [sorted(name.rsplit(".", 1)[1] for name in group) for group, *_ in plain]
    assert kinds == [["k_proj", "q_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]] * 2
    original = models.linears(loaded.model)["layers.0.self_attn.o_proj"]
    changed = []
    for group, seen, _ in sequential_statistics(loaded, rows, asked):
        changed.append(seen.gram)
        if "layers.0.self_attn.o_proj" in group:
            silent = torch.nn.Linear(original.in_features, original.out_features, bias=False, dtype=original.weight.dtype)
            put(loaded.model, "layers.0.self_attn.o_proj", silent.requires_grad_(False))
    same = [torch.equal(seen.gram, gram) for (_, seen, _), gram in zip(plain, changed, strict=True)]
    assert same == [True, True] + [False] * 6


@pytest.mark.parametrize("count", [1, 6, 7, 8])
def test_every_calibration_window_is_run_in_equal_batches(count: int, tiny_folder: Path) -> None:
    loaded = models.load(models.resolve(str(tiny_folder), Hub()), CPU, Hub())
    rows = torch.arange(count * 8).view(count, 8)
    hidden, _ = first_inputs(loaded, rows)
    assert torch.equal(torch.cat(hidden), loaded.model.get_input_embeddings()(rows)) and len({batch.shape for batch in hidden}) == 1


def test_c4_has_the_windows_that_papers_calibrate_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """128 windows of 2,048 tokens, from documents of about 430."""
    stream = SimpleNamespace(take=lambda count: [{"text": "word"}] * count)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *names, **options: stream))
    assert 430 * data.text_of("c4", "calibration").count("word") > 128 * 2048


@pytest.mark.parametrize("kind", SUPPORTED)
def test_each_architecture_is_fetched_quantized_and_measured(kind: str, tmp_path: Path) -> None:
    """From a hub, whole: every metric, every layer of the blocks quantized, the model left as it came."""
    folder = architectures.make(kind, tmp_path / kind)
    with stand_in() as server:
        server.repositories[f"someone/{kind}"] = folder
        hub = Hub(HubSettings(server.endpoint, tmp_path / "cache", shared=None))
        runner = LocalRunner(Store(":memory:"), Loader(CPU, hub=hub))
        params = {"bits": 4, "granularity": "group", "group_size": 32}
        report = last_report(runner.run(f"someone/{kind}", "rtn", params, tokens=256, length=128))
    assert {m.metric for m in report.measurements} >= {"perplexity", "kld_mean", "decode_tokens_per_second", "sample_text", "weight_bytes"}
    assert 0 < report.value("kld_mean") < 1 and abs(report.value("perplexity") / 4096 - 1) < 0.6 and not any(m.bad for m in report.measurements)
    inside = {name: why for name, why in report.provenance["skipped"].items() if "outside" not in why}
    assert len(report.by_layer("weight_error")) >= 8 and (not inside or (kind == "llama" and all("136" in why for why in inside.values())))
    assert 4 < report.value("bits_per_weight") < 8


@pytest.mark.parametrize("kind", SUPPORTED)
def test_read_model_is_what_transformers_reads(kind: str, tmp_path: Path) -> None:
    folder = architectures.make(kind, tmp_path)
    tokens = torch.randint(0, 4096, (2, 40), generator=torch.Generator().manual_seed(1))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ours = checkpoint.read_model(folder, checkpoint.check_config(folder))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=0.02, atol=0.02)
    assert linears_hold_what_blocks_multiply_by(ours)


def linears_hold_what_blocks_multiply_by(model: torch.nn.Module) -> bool:
    """Whether every matrix of the blocks is a layer that can be quantized."""
    matrices = {id(p) for block in models.blocks(model) for p in block.parameters() if p.ndim == 2}
    return matrices == {id(layer.weight) for layer in models.linears(model).values()}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_weights_in_bfloat16_stay_on_disk_until_they_are_used(kind: str, tmp_path: Path) -> None:
    bf16 = architectures.make(kind, tmp_path / "bf16", shards="200KB")
    assert len(list(bf16.glob("*.safetensors"))) > 1
    mapped = checkpoint._mapped(bf16, AutoModelForCausalLM.from_pretrained(bf16).config)
    assert mapped is not None and not any(p.is_meta for p in mapped.parameters())
    single = architectures.make(kind, tmp_path / "f32", torch.float32)
    assert checkpoint._mapped(single, AutoModelForCausalLM.from_pretrained(single).config) is None
    assert checkpoint.read_model(single, checkpoint.check_config(single)).dtype == torch.bfloat16


def test_a_model_stays_on_disk_and_the_estimates_cover_the_measured_peaks(tmp_path: Path) -> None:
    """60 million random weights in a process of its own: loading takes a fraction of them, quantizing block by block what the refusal reckons with,
    whole and offloaded.
    """
    big_model.make(tmp_path / "big", 0.12)
    whole, apart = (big_model.measured(tmp_path / "big", big_model.Asked("rtn", offloaded)) for offloaded in (False, True))
    weight = Weight({"BF16": whole["parameters"]}, 2048 * 5632)
    for found, estimate in ((whole, sizes.whole(weight, on_gpu=False)), (apart, sizes.offloaded(weight, on_gpu=False))):
        before, loaded, peak = (1e9 * found[when]["anonymous"] for when in ("before", "loaded", "peak"))
        assert loaded - before < 0.4 * 1e9 * found["checkpoint_gb"], found
        assert found["quantized_bytes" if found is whole else "packed_bytes"] < peak - before < estimate, found
