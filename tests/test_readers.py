"""What others make of a checkpoint: where vLLM or a card would tell of another model than the one that was measured."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from explorer import saving
from explorer.loader import Loader
from explorer.qlinear import siblings
from explorer.saving.compressed_tensors import MX_INPUTS, MX_WEIGHTS, RAN, READ, vllm_said
from kernels.op import Activation
from tests.architectures import make
from tests.test_saving import prepared


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one block; its keys and values are too few for blocks of 128."""
    return make("llama", tmp_path_factory.mktemp("models") / "even", hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_key_value_heads=1)


@pytest.fixture(scope="module")
def load() -> Loader:
    return Loader()


@pytest.mark.parametrize(("method", "params"), [("nvfp4", {}), ("mixed", {"rules": "*o_proj: gptq bits=4; *: nvfp4"})], ids=["alone", "calibrated"])
def test_layers_that_run_as_one_share_nvfp4s_scale_of_scales(load: Loader, folder: Path, tmp_path: Path, method: str, params: dict[str, Any]) -> None:
    """vLLM keeps one for q/k/v and one for gate/up: the smallest, so that other weights would shrink."""
    made = prepared(load, folder, method, params)
    saving.save(made, saving.choose(made, "compressed-tensors"), tmp_path / "out", "card", {})
    state = load_file(tmp_path / "out" / "model.safetensors")
    for names in siblings(name for name, q in made.layers.items() if q.scale_unit is not None):
        largest = max(made.subject.originals[name].weight.abs().max().item() for name in names)
        assert [made.layers[name].scale_unit.item() for name in names] == pytest.approx([largest / (448 * 6)] * len(names))
        assert len({state[f"model.{name}.weight_global_scale"].item() for name in names}) == 1


def test_a_card_names_vllm_only_for_what_it_runs_as_measured(load: Loader, folder: Path) -> None:
    """It joins q/k/v and gate/up, which must then be stored alike, and rounds dynamic inputs per token or in blocks."""
    form = saving.formats()["compressed-tensors"]
    for method, params, said in (
        ("mixed", {"rules": "*v_proj: rtn bits=8; *: rtn bits=4"}, "it runs q_proj, k_proj, v_proj as one layer, and in layers.0.self_attn they are not"),
        ("mixed", {"rules": "*up_proj: none; *: rtn bits=4"}, "it runs gate_proj, up_proj as one layer, and in layers.0.mlp they are not stored alike"),
        ("dynamic_int8", {"activation": "tensor"}, "have no product there"), ("fp8", {"activation": "tensor"}, "get one for each token there"),
        ("mixed", {"rules": "*down_proj: none; *o_proj: rtn bits=8; *: rtn bits=4"}, ""), ("fp8", {"granularity": "block"}, "q_proj, k_proj, v_proj as one"),
        ("smoothquant", {"activation": "static"}, ""), ("dynamic_int8", {}, ""),
    ):  # fmt: skip
        made = prepared(load, folder, method, params)
        assert saving.choose(made) is form
        reads = saving.loads(form, made)
        assert reads in saving.card(form, made, "", "", None) and "transformers with the package compressed-tensors" in reads
        assert reads.startswith("transformers") and ((said in reads and "but not with vLLM: " in reads) if said else reads.endswith((RAN, READ)))


def test_a_card_says_what_was_tried_in_vllm_and_which_inputs_it_rounds(load: Loader, folder: Path) -> None:
    """Its own products ran on a CPU, or it read the weights; MX layers get rounded inputs there although they were measured without."""
    form = saving.formats()["compressed-tensors"]
    for method, params, tried, said in (
        ("rtn", {"bits": 4}, RAN, ""), ("rtn", {"bits": 8}, READ, ""), ("dynamic_int8", {}, RAN, ""), ("fp8", {}, RAN, ""),
        ("fp8", {"activation": "none"}, READ, ""), ("fp8", {"activation": "static"}, READ, ""), ("nvfp4", {}, READ, ""), ("mxfp", {}, READ, MX_WEIGHTS),
        ("mxfp", {"element": "e4m3"}, READ, MX_WEIGHTS), ("mxfp", {"activation": "block"}, READ, MX_INPUTS),
        ("mixed", {"rules": "*o_proj: rtn bits=8; *: rtn bits=4"}, READ, ""),
    ):  # fmt: skip
        made = prepared(load, folder, method, params)
        reads = saving.loads(form, made)
        assert vllm_said(made.layers.values()) == tried
        assert reads.endswith(said or tried) and [MX_WEIGHTS in reads, MX_INPUTS in reads] == [said == MX_WEIGHTS, said == MX_INPUTS], (method, params)
    assert "vLLM with the package vllm-bnb-plugin" in saving.loads(saving.formats()["bitsandbytes"], prepared(load, folder, "nf4", {}))


def test_a_card_says_how_transformers_reads_layers_that_are_stored_differently(load: Loader, folder: Path, tmp_path: Path) -> None:
    """When it decompresses them at once it takes all for stored like the first, without an error; and zero-points it only reads that way."""
    pytest.importorskip("compressed_tensors", reason="needs the package compressed-tensors")
    form = saving.formats()["compressed-tensors"]

    def error(made: saving.Prepared, to: Path, dequantize: bool) -> float:
        """The relative error of the logits that transformers gets."""
        ids = torch.arange(3, 60).unsqueeze(0)
        config = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
        with torch.no_grad(), made.subject.quantized(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the other packages, at their import and load
            ours = made.subject.loaded.model(ids).logits.float()
            theirs = AutoModelForCausalLM.from_pretrained(to, dtype=torch.bfloat16, **config).eval()(ids).logits.float()
        return float((ours - theirs).norm() / ours.norm())

    made = prepared(load, folder, "mixed", {"rules": "*o_proj: rtn bits=8; *: rtn bits=4"})
    saving.save(made, saving.choose(made), tmp_path / "one", "card", {})
    assert error(made, tmp_path / "one", False) < 0.03 and error(made, tmp_path / "one", True) > 0.3
    assert "never with `dequantize=True`" in saving.loads(form, made) and "wants" not in saving.loads(form, made)
    made = prepared(load, folder, "mixed", {"rules": "*o_proj: rtn bits=8; *: rtn bits=4 symmetric=false"})
    saving.save(made, saving.choose(made), tmp_path / "two", "card", {})
    for dequantize in (False, True):
        with pytest.raises(RuntimeError):
            error(made, tmp_path / "two", dequantize)
    assert saving.loads(form, made).startswith("vLLM") and "but not with transformers" in saving.loads(form, made)
    made = prepared(load, folder, "mixed", {"rules": "*v_proj: rtn bits=8; *: rtn bits=4 symmetric=false"})
    assert saving.loads(form, made).startswith("nothing known here: not with transformers")
    assert "wants" in saving.loads(form, prepared(load, folder, "rtn", {"symmetric": False})), "alike in all layers"


def test_inputs_that_blocks_would_not_round_so_are_refused(load: Loader, folder: Path) -> None:
    blocks, rows = (prepared(load, folder, "fp8", params).layers for params in ({"granularity": "block"}, {"activation": "block"}))
    refuses = saving.formats()["compressed-tensors"].refuses
    q = blocks["layers.0.mlp.up_proj"]
    assert not refuses(q) and refuses(rows["layers.0.mlp.up_proj"]).endswith("its inputs have a scale per block")
    static = dataclasses.replace(q, activation=Activation("e4m3", "tensor", 0.1))
    assert refuses(static) == "weights in blocks take inputs in blocks there and no others do: its inputs have a scale per tensor"


def test_a_16_bit_card_says_that_inputs_are_no_longer_rounded(load: Loader, folder: Path) -> None:
    wide = saving.formats()["bfloat16"]
    for method, params, rounded in (("llm_int8", {}, True), ("smoothquant", {"scales": "own"}, True), ("hqq", {}, False)):
        said = saving.note(wide, prepared(load, folder, method, params))
        assert ("inputs are no longer rounded, so it is better than the measured numbers" in said) == rounded and "size of the original" in said
