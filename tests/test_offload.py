"""A model that does not fit its device: the same numbers as in memory, weights a layer at a time, codes on file, refusals before the memory is full."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pretended_gpu
import pytest
import torch
from pretended_gpu import gpu  # noqa: F401 - a fixture
from safetensors.torch import load_file

from explorer import experiment, loader, models, offload, quantizing, sizes
from explorer.checkpoint import weigh
from explorer.data import bundled_text
from explorer.experiment import LocalRunner, last_report
from explorer.hub import Hub
from explorer.loader import Loader
from explorer.methods import build
from explorer.metrics import NoRoom, Subject, floor, metrics
from explorer.records import InputError, Report, TextRef, report_from
from explorer.saving import Prepared, choose, save
from explorer.store import Store
from tests import architectures
from tests.measuring import drained, measuring

CPU = torch.device("cpu")
CALIBRATION = TextRef("bundled", "0", 256, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of six blocks, so that one of them is a small part."""
    where = tmp_path_factory.mktemp("model") / "llama"
    return architectures.make("llama", where, num_hidden_layers=6, hidden_size=128, intermediate_size=256, tie_word_embeddings=False)


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model fits its device whole."""
    monkeypatch.setattr(sizes, "whole", lambda weight, on_gpu: 1e15)


def loaded(folder: Path, device: torch.device = CPU) -> models.LoadedModel:
    return models.load(models.resolve(str(folder), Hub()), device, Hub())


def quantized(model: models.LoadedModel, name: str, **params: Any) -> Subject:
    rows = models.windows(model, bundled_text("evaluation"), 128, 64)
    bare = Subject(model, {}, {}, models.linears(model.model), rows, 0.0)
    return drained(quantizing.quantize(bare, build(name, params), CALIBRATION, bundled_text("calibration")))[0]


def report(folder: Path, store: Path, method: str, **params: Any) -> Report:
    runner = LocalRunner(Store(store), Loader(CPU))
    return last_report(runner.run(str(folder), method, params, tokens=1024, length=256, sequences=2))


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "smoothquant", "nf4", "nvfp4"])
def test_numbers_are_those_of_a_model_in_memory(method: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with measuring("quality", "layers", "integrity", "size", "depth"):
        whole = report(folder, tmp_path / "a.db", method)
    monkeypatch.setattr(sizes, "whole", lambda weight, on_gpu: 1e15)
    apart = report(folder, tmp_path / "b.db", method)
    for name in ("kld_mean", "perplexity", "weight_error", "output_error", "integrity", "bits_per_weight", "residual_error"):
        ours, theirs = ({m.layer: m.value for m in r.measurements if m.metric == name} for r in (apart, whole))
        assert ours and ours == theirs, name


def test_the_baseline_is_scored_but_not_timed(folder: Path, tmp_path: Path, tight: None) -> None:
    found = report(folder, tmp_path / "a.db", "none")
    assert found.find("perplexity") and not found.find("decode_tokens_per_second") and not found.find("sample_text")


def test_what_lacked_memory_is_measured_once_there_is_room(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one store and one loader: nothing is kept of a moment without room, and nothing is measured twice while it lasts."""
    runner, ask = LocalRunner(Store(tmp_path / "a.db"), Loader(CPU)), (str(folder), "none", {})
    few = {"tokens": 1024, "length": 256}
    weight, lacking = sizes.whole(weigh(folder), False), ("kld_floor", "decode_tokens_per_second", "sample_text")
    with monkeypatch.context() as patch:
        patch.setattr(models, "free_memory", lambda device: weight - 1)
        for module in (floor, experiment):
            patch.setattr(module, "free_memory", lambda device: 0)
        first = last_report(runner.run(*ask, **few))
        again = last_report(runner.run(*ask, **few))
    assert first.find("perplexity") and not any(report.find(name) for report in (first, again) for name in lacking)
    assert not first.provenance["from_store"] and again.provenance["from_store"]
    later = last_report(runner.run(*ask, **few))
    assert all(later.find(name) for name in lacking) and later.provenance["measured_now"] == ["floor", "sample", "speed"]
    assert not later.provenance["offloaded"] and last_report(runner.run(*ask, **few)).provenance["from_store"]


def test_the_failure_lab_writes_its_sample_once_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model with layers that are not quantized, which come from their files at each token while it does not fit whole."""
    where = architectures.make("llama", tmp_path / "llama")
    runner, asked = LocalRunner(Store(tmp_path / "a.db"), Loader(CPU)), {"model": str(where), "method": "rtn", "params": {}}
    asked["options"] = {"tokens": 512, "length": 256}

    def answered() -> tuple[Report, bool]:
        found = list(runner.do("failure", asked))[-1]
        return report_from(found.data["report"]), bool(found.provenance.get("from_store"))

    weight = sizes.whole(weigh(where), False)
    with monkeypatch.context() as patch:
        patch.setattr(models, "free_memory", lambda device: weight - 1)
        patch.setattr(experiment, "free_memory", lambda device: weight - 1)
        patch.setattr(loader, "free_memory", lambda device: weight - 1)
        assert [(bool(report.find("sample_text")), kept) for report, kept in (answered(), answered())] == [(False, False), (False, True)]
    assert [(bool(report.find("sample_text")), kept) for report, kept in (answered(), answered())] == [(True, False), (True, True)]


def test_codes_lie_in_files_that_nobody_has_to_remove(folder: Path, tmp_path: Path, tight: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    subject = quantized(loaded(folder), "rtn")
    maps = Path("/proc/self/maps").read_text()
    assert maps.count(f"{tmp_path}/quantization-explorer-") == len(subject.qtensors) and not list(tmp_path.iterdir())
    del subject
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_saved_checkpoint_is_the_same_one(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("whole", "apart"):
        made = Prepared.of(quantized(loaded(folder), "awq", bits=4))
        save(made, choose(made), tmp_path / name, "", {})
        monkeypatch.setattr(sizes, "whole", lambda weight, on_gpu: 1e15)
    whole, apart = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "apart"))
    assert whole.keys() == apart.keys() and all(torch.equal(whole[key], apart[key]) for key in whole)


@pytest.mark.parametrize(("method", "params"), [("rtn", {}), ("gptq", {"group_size": 64}), ("awq", {"group_size": 64}), ("nf4", {"double_quant": True})])
def test_a_gpu_holds_packed_layers_and_one_weight_at_a_time(
    method: str,
    params: dict,
    folder: Path,
    tight: None,
    gpu: torch.device,  # noqa: F811
) -> None:
    """On the pretended GPU, which refuses operations on tensors of both devices. What it holds at most while it quantizes: the packed form, embedding
    and head, what a layer needs to be rounded, and less than the 16-bit weights of two blocks.
    """
    model = loaded(folder, gpu)
    inside = sum(layer.weight.nbytes for layer in models.linears(model.model).values())
    assert model.offloaded and offload.streams(model.model) and model.model.lm_head.weight.is_cuda
    gc.collect()
    assert pretended_gpu.held.bytes < 1.1 * (model.model.lm_head.weight.nbytes + model.model.model.embed_tokens.weight.nbytes)
    start = pretended_gpu.held.bytes
    pretended_gpu.held.start()
    subject = quantized(model, method, **params)
    peak, largest = pretended_gpu.held.peak, max(layer.weight.numel() for layer in subject.originals.values())
    for name in ("quality", "layers", "integrity", "activations", "depth", "size"):
        assert any(not hasattr(event, "stage") for event in metrics()[name].measure(subject)), name
    assert all(q.codes.device.type == "cpu" for q in subject.qtensors.values())
    with pytest.raises(NoRoom):
        list(metrics()["speed"].measure(Subject(model, {}, {}, models.linears(model.model), subject.windows, 0.0)))
    with subject.quantized():
        assert not offload.streams(model.model)
    packed = sum(sum(layer.packed_bytes().values()) for layer in subject.layers.values())
    rounding = sizes.beside(sizes.Weight({}, largest, widest=max(layer.in_features for layer in subject.originals.values())))
    assert peak - start < packed + rounding + 2 * inside / model.model.config.num_hidden_layers, (start, peak, packed, rounding, inside)


def test_what_fits_neither_way_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "free_memory", lambda device: 10**8)
    with pytest.raises(InputError, match=r"needs about 0\.6 GB of memory .* this machine has 0\.1 GB free"):
        loaded(folder)


def test_a_method_that_trains_all_of_it_is_refused(folder: Path, tight: None) -> None:
    with pytest.raises(InputError, match="trains the whole model"):
        quantized(loaded(folder), "qat", steps=1)


def test_a_full_memory_or_disk_ends_with_a_sentence_and_the_models_own_layers(folder: Path, tight: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(folder)
    own = models.linears(model.model)
    monkeypatch.setattr(offload, "free_memory", lambda device: 10**8)
    with pytest.raises(InputError, match=r"full after 1 of 42 layers: 0\.1 GB are free"):
        quantized(model, "rtn")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    with pytest.raises(InputError, match="TMPDIR"):
        quantized(model, "gptq")
    assert models.linears(model.model) == own


def test_room_for_the_square_matrices_of_gptq_is_asked_for(folder: Path, tight: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 bytes for each pair of a layer's 256 inputs beside 20 a weight: more than the 48 a weight that rounding to nearest takes."""
    model = loaded(folder)
    monkeypatch.setattr(offload, "free_memory", lambda device: sizes.ROOM + 50 * 128 * 256)
    assert quantized(model, "rtn").qtensors
    with pytest.raises(InputError, match="full after 1 of 42 layers"):
        quantized(model, "gptq")


def test_the_estimates_follow_the_published_sizes() -> None:
    """A 70B (Llama 3.1: 8,192 wide, 28,672 inside, 128,256 tokens) fits a GPU of 80 GB at 4 bits, not whole; an 8B one of 16 GB."""
    large = sizes.Weight({"BF16": 70_553_706_496}, 8192 * 28672, 2 * 128256 * 8192 + 8192)
    small = sizes.Weight({"BF16": 8_030_261_248}, 4096 * 14336, 2 * 128256 * 4096 + 4096)
    assert sizes.offloaded(large, True) < 80e9 < sizes.whole(large, True) and sizes.offloaded(large, True, 8) > 80e9
    assert sizes.offloaded(small, True) < 16e9 < sizes.whole(small, True)
