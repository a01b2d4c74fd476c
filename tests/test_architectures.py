"""Architecture-only models and the quantized head: right shapes, the same weights every time, what is measured, what is refused and in which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from explorer import architectures, models
from explorer.experiment import LocalRunner, last_report
from explorer.hub import Hub
from explorer.loader import Loader
from explorer.metrics.speed import read_per_token
from explorer.qlinear import QuantizedLinear, quantized_head
from explorer.records import InputError, Report
from explorer.store import Store

CPU = torch.device("cpu")
PUBLISHED = {
    "llama-3.2-1b": 1.236e9,
    "llama-3.1-8b": 8.03e9,
    "llama-3.1-70b": 70.55e9,
    "qwen2.5-0.5b": 0.494e9,
    "qwen2.5-7b": 7.616e9,
    "mistral-7b": 7.248e9,
    "qwen2.5-72b": 72.7e9,
    "llama-3.1-405b": 405.9e9,
    "mixtral-8x7b": 46.7e9,
    "qwen3-8b": 8.19e9,
    "qwen3-30b-a3b": 30.53e9,
    "gemma-3-27b": 27.01e9,
    "phi-4": 14.66e9,
    "gpt-oss-20b": 20.91e9,
    "gpt-oss-120b": 116.83e9,
    "deepseek-v3": 671.03e9,
}
TINY = {
    "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 512, "max_position_embeddings": 128, "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a tiny architecture beside no other."""
    (tmp_path / "tiny.json").write_text(json.dumps({"source": "this test", "config": TINY}))
    monkeypatch.setattr(architectures, "FOLDER", tmp_path)
    architectures.architectures.cache_clear()
    yield "arch:tiny"
    architectures.architectures.cache_clear()


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_architectures_have_the_published_size(name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    options = dict(architectures.known(f"arch:{name}")["config"])
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(PUBLISHED[name], rel=2e-3)
    assert architectures.known(f"arch:{name}")["source"] and models.resolve(f"arch:{name}", Hub()).random


def test_names_are_exactly_the_shipped_ones() -> None:
    assert set(architectures.architectures()) == {f"arch:{name}" for name in PUBLISHED}
    with pytest.raises(InputError, match="here for planning: models of type mixtral are not run"):
        models.load(models.resolve("arch:mixtral-8x7b", Hub()), CPU, Hub())
    with pytest.raises(InputError, match=r"no architecture 'arch:gpt-9'; there are arch:deepseek"):
        models.resolve("arch:gpt-9", Hub())


def test_weights_are_the_same_every_time_and_not_of_each_other(tiny: str) -> None:
    loaded = models.load(models.resolve(tiny, Hub()), CPU, Hub())
    layers = models.linears(loaded.model)
    assert all(layer.weight.device.type == "meta" for layer in layers.values()) and len(layers) == 14
    first, again, other = (architectures.weight(loaded.model, f"layers.{i}.mlp.up_proj", CPU) for i in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and first.float().std().item() == pytest.approx(0.02, rel=0.05)
    architectures.fill(loaded.model, layers, CPU)
    with torch.no_grad():
        logits = loaded.model(models.windows(loaded, "", 64, 32)).logits
    assert logits.isfinite().all() and loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    architectures.empty(layers)
    assert all(layer.weight.device.type == "meta" for layer in layers.values())


def test_an_architecture_is_measured_for_size_and_speed_alone(tiny: str, store: Store) -> None:
    loader = Loader(CPU)
    runner = LocalRunner(store, loader)
    base, four = (last_report(runner.run(tiny, method, {})) for method in ("none", "rtn"))
    for report in (base, four):
        assert report.value("decode_tokens_per_second") > 0 and report.value("weight_bytes") > 0
        assert report.value("perplexity") is None and report.value("sample_text") is None
        assert "weights are random" in report.provenance["text"] and report.provenance["device"]
    assert base.value("bits_per_weight") == 16 and four.value("bits_per_weight") == 4.25
    inside = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    assert base.value("weight_bytes") - four.value("memory_kept") == 2 * inside and four.value("memory_codes") == inside / 2
    assert all(layer.weight.device.type == "meta" for layer in models.linears(loader._last.model).values())
    assert last_report(runner.run(tiny, "rtn", {})).provenance["from_store"]


def test_what_means_nothing_or_does_not_fit_is_a_sentence(tiny: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = LocalRunner(store)
    for method in ("gptq", "qat"):
        with pytest.raises(InputError, match="random weights, on which calibration or training means nothing"):
            last_report(runner.run(tiny, method, {}))
    monkeypatch.setattr(architectures, "free_memory", lambda device: architectures.ROOM + 140_000)
    with pytest.raises(InputError, match="arch:tiny does not fit here: its weights in 16 bits need"):
        last_report(runner.run(tiny, "none", {}))
    monkeypatch.setattr(architectures, "free_memory", lambda device: 0)
    with pytest.raises(InputError, match="its embedding and head, and the rest in 2 bits, need"):
        last_report(LocalRunner(store).run(tiny, "rtn", {}))


def head_reports(runner: LocalRunner, model: str) -> dict[int, Report]:
    return {bits: last_report(runner.run(model, "rtn", {"granularity": "channel"}, head_bits=bits, tokens=2048)) for bits in (16, 8, 4)}


def test_a_quantized_head_is_named_counted_and_part_of_the_key(tiny_folder: Path, store: Store) -> None:
    """The tiny folder's head is a matrix of its own, which its codes replace."""
    reports = head_reports(LocalRunner(store, Loader(CPU)), str(tiny_folder))
    full = 2 * 4096 * 64
    assert [r.name for r in reports.values()] == ["RTN 4-bit per-channel", "RTN 4-bit per-channel, head 8-bit", "RTN 4-bit per-channel, head 4-bit"]
    for bits, report in reports.items():
        assert not report.provenance["from_store"] and report.value("bits_per_weight") == reports[16].value("bits_per_weight")
        saved = reports[16].value("weight_bytes") - report.value("weight_bytes")
        assert saved == (0 if bits == 16 else full - report.value("head_bytes"))
        assert report.value("memory_codes") + report.value("memory_scales") + report.value("memory_kept") == report.value("weight_bytes")
    assert reports[4].value("head_bytes") < reports[8].value("head_bytes") < full / 1.9
    assert reports[16].experiment.spec.head_bits - 16 == 0 and "lm_head" in reports[16].provenance["skipped"]
    assert "lm_head" not in reports[4].provenance["skipped"] and "int4" in reports[4].provenance["head"]
    assert reports[4].value("kld_mean") > reports[16].value("kld_mean")
    with pytest.raises(InputError, match="The head takes 16, 8, 4 bits, not 3"):
        last_report(LocalRunner(store).run(str(tiny_folder), "rtn", {}, head_bits=3))


def test_a_tied_head_gets_codes_of_its_own_and_the_embedding_stays(tiny: str, store: Store) -> None:
    reports = head_reports(LocalRunner(store, Loader(CPU)), tiny)
    for bits in (8, 4):
        assert reports[bits].value("weight_bytes") == reports[16].value("weight_bytes") + reports[bits].value("head_bytes")
    loaded = models.load(models.resolve(tiny, Hub()), CPU, Hub())
    before = read_per_token(loaded.model)
    table = loaded.model.lm_head.weight.nbytes
    loaded.model.lm_head = head = quantized_head(loaded.model.lm_head, 4, CPU)
    assert isinstance(head, QuantizedLinear) and read_per_token(loaded.model) == before - table + sum(head.packed_bytes().values())
