"""Checkpoints that load elsewhere: transformers, with compressed-tensors or bitsandbytes, must find the weights that the codes mean."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from safetensors import safe_open
from torch import nn

from explorer import saving
from explorer.__main__ import main
from explorer.experiment import LocalRunner
from explorer.families import architecture
from explorer.hub import Hub
from explorer.loader import Loader
from explorer.planner import Plan, need
from explorer.records import Answer, InputError
from explorer.request import Request
from explorer.saving.beforehand import check_asked
from explorer.saving.compressed_tensors import pairs, words
from explorer.store import Store
from explorer.subjects import subject_of
from explorer.version import written_by
from kernels.op import multiply
from tests.architectures import CONFIGS, make

ROUNDED = (1 + 2**-8) ** 2 - 1  # the scale and its product with the code, each rounded to bfloat16
COMPRESSED = [
    ("rtn", {"bits": 4}), ("rtn", {"bits": 4, "symmetric": False, "group_size": 32}), ("rtn", {"bits": 8, "granularity": "channel"}),
    ("rtn", {"bits": 8, "symmetric": False, "granularity": "tensor"}), ("gptq", {"bits": 4}), ("absmax", {}), ("zeropoint", {}),
    ("dynamic_int8", {}), ("fp8", {}), ("fp8", {"granularity": "block"}), ("mxfp", {"element": "e2m1"}), ("nvfp4", {}),
    ("mxfp", {"element": "e4m3"}), ("mxfp", {"activation": "block"}), ("mxfp", {"activation": "e4m3"}), ("mxfp", {"element": "e4m3", "activation": "block"}),
    ("nvfp4", {"activation": "block"}),
    ("awq", {}), ("awq", {"symmetric": True, "group_size": 32}), ("smoothquant", {}), ("smoothquant", {"granularity": "tensor", "activation": "static"}),
    ("mixed", {"rules": "*v_proj: rtn bits=8 granularity=channel; *o_proj: none; *: rtn bits=4"}),
]  # fmt: skip
BLOCKWISE = [("nf4", {}), ("nf4", {"double_quant": True}), ("fp4", {}), ("fp4", {"double_quant": True})]
WIDE = [
    ("awq", {"scales": "own"}), ("hqq", {}), ("gptq", {"bits": 4, "rotate": True}), ("smoothquant", {"scales": "own"}),
    ("quip", {}), ("llm_int8", {}), ("mxfp", {"element": "e3m2"}), ("binary", {}),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose widths all groups divide, of random weights."""
    return make("llama", tmp_path_factory.mktemp("models") / "even", hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_key_value_heads=1)


@pytest.fixture(scope="module")
def load() -> Loader:
    return Loader()


def prepared(load: Loader, folder: Path, method: str, params: dict[str, Any]) -> saving.Prepared:
    experiment, made, texts = Request(str(folder), method, params, sequences=1).prepare(Hub())
    steps = subject_of(load, experiment, made, texts)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return saving.Prepared.of(done.value)


def written(made: saving.Prepared, wanted: str, to: Path) -> tuple[nn.Module, dict[str, Any]]:
    """(the model as transformers loads it from a checkpoint, what `save` returned)."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    asymmetric = any(q.zero is not None for q in made.layers.values())  # transformers' default way loses packed zero-points
    told = saving.save(made, saving.choose(made, wanted), to, "card", {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the other packages, at their import and load
        config = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if asymmetric and told["format"] == "compressed-tensors" else {}
        model = AutoModelForCausalLM.from_pretrained(to, dtype=torch.bfloat16, **config)
    return model.eval(), told


def dense(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of the linear layers after a forward pass, by which compressed-tensors has decompressed them."""
    with torch.no_grad():
        model(torch.zeros(1, 4, dtype=torch.long))
    return {name: part.weight.float() for name, part in model.named_modules() if isinstance(part, nn.Linear)}


def beyond_the_plan(folder: Path) -> int:
    """Bytes of a checkpoint's tensors, less those that the Planner counts from its configuration alone."""
    with safe_open(folder / "model.safetensors", "pt") as opened:
        stored = sum(opened.get_tensor(name).nbytes for name in opened.keys())  # noqa: SIM118 - the file is no dict
    return stored - need(architecture(json.loads((folder / "config.json").read_text())), Plan(format="published")).weight_bytes


def same_logits(model: nn.Module, made: saving.Prepared, tolerance: float) -> None:
    """The loaded model and ours, with its own kernels, say the same."""
    tokens = torch.arange(3, 60).unsqueeze(0)
    with torch.no_grad(), made.subject.quantized():
        ours = made.subject.loaded.model(tokens).logits.float()
    theirs = model(tokens).logits.float()
    assert (ours - theirs).norm() / ours.norm() < tolerance


def same_layers(model: nn.Module, made: saving.Prepared, tolerance: float) -> None:
    """Each layer of the loaded model says in float32 what ours means of the same inputs, which it rounds too: in bfloat16 it rounds their scales as well."""
    for name, q in made.layers.items():
        x = torch.randn(40, q.codes.shape[1], generator=torch.Generator().manual_seed(0)) * 400 * q.activation.scale
        x[:2] = 0
        theirs = model.get_submodule(f"model.{name}").float()(x)
        assert (theirs - multiply(x, q.weight())).norm() / theirs.norm() < tolerance, name


@pytest.mark.parametrize(("method", "params"), COMPRESSED, ids=[f"{m}-{i}" for i, (m, _) in enumerate(COMPRESSED)])
def test_compressed_tensors_reads_what_was_written(
    load: Loader, folder: Path, tmp_path: Path, method: str, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers", reason="needs the package compressed-tensors")
    offsets = {4: 2, 8: 8}  # its own rule for blocks of inputs rounds their largest first, see MX_INPUTS; by the specification's all is the same
    monkeypatch.setattr(helpers, "generate_mx_scales", lambda x, num_bits: 127 + x.float().log2().floor() - offsets[num_bits])
    made = prepared(load, folder, method, params)
    model, told = written(made, "auto", tmp_path / "out")
    assert told["format"] == "compressed-tensors" and told["layers"] == len(made.layers) and "lm_head" in told["kept"]
    if method != "mixed":  # whose layers differ
        scales = sum(q.scale.numel() for q in made.layers.values()) if method == "fp8" else len(made.layers)  # ours are float32 there, others' 16 bits
        assert 0 <= beyond_the_plan(tmp_path / "out") <= 2 * scales
    found = dense(model)
    for name, q in made.layers.items():
        ours = q.dequantize()
        assert ((found[f"model.{name}"] - ours).abs() <= ROUNDED * ours.abs()).all(), name
    if (method, params) == ("nvfp4", {"activation": "block"}):
        same_layers(model, made, 0.005)
    else:
        same_logits(model, made, 0.03)


@pytest.mark.parametrize("kind", sorted(set(CONFIGS) - set(saving.TRANSPOSED)))
def test_every_architecture_loads_again(load: Loader, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("compressed_tensors", reason="needs the package compressed-tensors")
    made = prepared(load, make(kind, tmp_path / kind), "absmax", {})
    model, told = written(made, "compressed-tensors", tmp_path / "out")
    assert told["layers"] == len(made.layers) and "quantization_config" in (tmp_path / "out" / "config.json").read_text()
    same_logits(model, made, 0.03)


def test_transposed_layers_are_refused(load: Loader, tmp_path: Path) -> None:
    made = prepared(load, make("gpt2", tmp_path / "gpt2"), "absmax", {})
    with pytest.raises(InputError, match="Models of type gpt2 keep their linear layers transposed"):
        written(made, "auto", tmp_path / "out")


@pytest.mark.parametrize(("method", "params"), BLOCKWISE, ids=[f"{m}-{i}" for i, (m, _) in enumerate(BLOCKWISE)])
def test_bitsandbytes_reads_what_was_written(load: Loader, folder: Path, tmp_path: Path, method: str, params: dict[str, Any]) -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="needs the package bitsandbytes")
    made = prepared(load, folder, method, params)
    model, told = written(made, "auto", tmp_path / "out")
    assert told["format"] == "bitsandbytes" and told["kept"] == ["lm_head"]
    for name, q in made.layers.items():
        layer = model.get_submodule(f"model.{name}")
        assert isinstance(layer, bnb.nn.Linear4bit)
        theirs = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        assert ((theirs - q.dequantize()).abs() <= ROUNDED * q.dequantize().abs()).all(), name
    same_logits(model, made, 0.03)


@pytest.mark.parametrize(("method", "params"), WIDE, ids=[m for m, _ in WIDE])
def test_what_no_codes_hold_is_saved_in_16_bits_and_says_why(load: Loader, folder: Path, tmp_path: Path, method: str, params: dict[str, Any]) -> None:
    made = prepared(load, folder, method, params)
    reasons = saving.why_not_exact(made)
    assert set(reasons) == {"compressed-tensors", "bitsandbytes", "GGUF"} and all(reasons.values())
    said = saving.note(saving.choose(made), made)
    assert "No format of codes holds it exactly, so its files have 16-bit weights: the quality of the quantized model and the size of the original" in said
    assert all(f"{title} cannot hold it, {why}" in said for title, why in reasons.items())
    model, told = written(made, "auto", tmp_path / "out")
    assert told["format"] == "bfloat16" and not (tmp_path / "out" / "config.json").read_text().count("quantization_config")
    for name, q in made.layers.items():
        assert torch.equal(model.get_submodule(f"model.{name}").weight, q.dequantize().bfloat16()), name
    with pytest.raises(InputError, match=r"cannot hold this model: .* What can: bfloat16"):
        saving.choose(made, "compressed-tensors")


def test_packing_is_that_of_the_library() -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers", reason="needs the package compressed-tensors")
    for bits, columns in ((4, 64), (8, 64), (4, 36), (8, 6)):
        codes = torch.randint(0, 2**bits, (5, columns), dtype=torch.uint8)
        theirs = helpers.pack_to_int32((codes.int() - 2 ** (bits - 1)).to(torch.int8), bits)
        assert torch.equal(words(codes, bits)[:, : theirs.shape[1]], theirs)
    assert pairs(torch.tensor([[1, 2, 3, 15]], dtype=torch.uint8)).tolist() == [[0x21, 0xF3]]


def test_the_model_is_left_as_it_was_and_nothing_is_overwritten(load: Loader, folder: Path, tmp_path: Path) -> None:
    made = prepared(load, folder, "rtn", {"bits": 4})
    form = saving.choose(made)
    saving.save(made, form, tmp_path / "out", "card", {"a": 1})
    assert not hasattr(made.subject.loaded.model.config, "quantization_config")
    assert json.loads((tmp_path / "out" / "quantization_explorer.json").read_text()) == {"a": 1, "written_by": written_by()}
    with pytest.raises(InputError, match="not an empty folder"):
        saving.save(made, form, tmp_path / "out", "card", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not an empty folder"):
        saving.save(made, form, tmp_path / "file", "card", {})
    with pytest.raises(InputError, match=r"file/x cannot be written \(Not a directory\); name another place"):
        saving.check(tmp_path / "file" / "x")
    with pytest.raises(InputError, match="There is no format 'pickle'"):
        saving.check(tmp_path / "new", "pickle")


def test_the_command_writes_a_card_with_measured_numbers(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--model", str(folder), "--store", str(tmp_path / "r.db"), "--to", str(tmp_path / "out")]
    assert main(["save", "--method", "rtn", "--bits", "4", *where]) == 0
    told = json.loads(capsys.readouterr().out)
    card = (tmp_path / "out" / "README.md").read_text()
    assert told["format"] == "compressed-tensors" and "| perplexity |" in card and "RTN 4-bit g64" in card
    record = json.loads((tmp_path / "out" / "quantization_explorer.json").read_text())
    assert record["measurements"] and record["provenance"]["device"] and f"Made by the {record['written_by']}: `" in card
    assert main(["save", "--method", "rtn", "--bits", "4", *where]) == 2 and "nothing is overwritten" in capsys.readouterr().err
    assert main(["save", "--method", "rtn", "--kv-bits", "4", *where]) == 2
    assert main(["save", "--method", "none", "--no-measure", *where[:-1], str(tmp_path / "none")]) == 2
    assert "No layer is quantized" in capsys.readouterr().err and not (tmp_path / "none").exists()
    assert main(["save", "--method", "awq", "--as", "bitsandbytes", "--no-measure", *where[:-1], str(tmp_path / "b")]) == 2
    assert "What can: compressed-tensors, gguf, bfloat16" in capsys.readouterr().err and not (tmp_path / "b").exists()


def test_the_task_zips_the_same_and_refuses_what_is_too_large(load: Loader, folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = LocalRunner(store, load)
    asked = {"model": str(folder), "method": "rtn", "params": {"bits": 4}, "command": "python -m explorer save"}
    [answer] = [event for event in runner.do("checkpoint", asked) if isinstance(event, Answer)]
    path = Path(answer.data["path"])
    with ZipFile(path) as archive:
        assert "| perplexity |" in archive.read("README.md").decode() and "python -m explorer save" in archive.read("README.md").decode()
    assert answer.data["format"] == "compressed-tensors" and answer.data["bytes"] == path.stat().st_size
    assert [found.name for found in path.parent.iterdir()] == ["checkpoint.zip"]
    shutil.rmtree(path.parent)
    [answer] = [event for event in runner.do("checkpoint", asked | {"form": "gguf"}) if isinstance(event, Answer)]
    with ZipFile(answer.data["path"]) as archive:
        assert answer.data["format"] == "GGUF" and archive.read("model.gguf")[:4] == b"GGUF"
    shutil.rmtree(Path(answer.data["path"]).parent)
    with pytest.raises(InputError, match="There is no format 'pickle'"):
        list(runner.do("checkpoint", asked | {"form": "pickle"}))
    with pytest.raises(InputError, match="No layer is quantized"):
        list(runner.do("checkpoint", asked | {"method": "none", "params": {}}))
    monkeypatch.setattr("explorer.tasks.checkpoint.MOST", 1000)
    with pytest.raises(InputError, match="too large for a page; in a checkout of the project run: python -m explorer save"):
        list(runner.do("checkpoint", asked))


def test_what_follows_from_the_request_is_refused_before_a_weight_is_read(folder: Path, tmp_path: Path) -> None:
    """By the method's parameters or the model's type alone; and no format that did hold a method above is refused for it."""
    config = {"model_type": "llama"}

    def asked(method: str, params: dict[str, Any], form: str, kind: str = "llama") -> None:
        experiment, made, _ = Request(str(folder), method, params, sequences=1).prepare(Hub())
        check_asked(experiment, made, config | {"model_type": kind}, form)

    for method, params in COMPRESSED:
        asked(method, params, "compressed-tensors")
    for method, params in BLOCKWISE:
        asked(method, params, "bitsandbytes")
    for method, params in WIDE:
        asked(method, params, "bfloat16")
        with pytest.raises(InputError, match=r"compressed-tensors cannot hold .*: .* What can: .*bfloat16"):
            asked(method, params, "compressed-tensors")
    for method, params, form, kind, said in (
        ("none", {}, "auto", "llama", "No layer is quantized"), ("rtn", {"bits": 4}, "gguf", "gemma", "models of type gemma"),
        ("rtn", {"bits": 4}, "auto", "gpt2", "transposed"), ("nf4", {}, "gguf", "llama", "no table"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            asked(method, params, form, kind)
