"""GGUF files: transformers reads them with its own decoder into its own models, and must find the weights, the logits and the tokens."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from explorer import saving
from explorer.loader import Loader
from explorer.methods.kquant import KQuant
from explorer.records import InputError
from explorer.saving.ggml_blocks import packed, refuses
from explorer.saving.gguf import _file_type
from tests.architectures import make
from tests.test_saving import prepared, same_logits

EVEN = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "num_key_value_heads": 2}
KINDS = {"llama": {}, "mistral": {"head_dim": 64}, "qwen2": {}, "qwen3": {"head_dim": 128}}  # transformers takes Qwen3's size of a head for granted
METHODS = [
    ("rtn", {"bits": 4}, "Q4_0"), ("rtn", {"bits": 3, "symmetric": False}, "Q4_0"), ("rtn", {"symmetric": False}, "Q5_0"),
    ("rtn", {"bits": 8, "granularity": "tensor"}, "Q8_0"), ("gptq", {"bits": 4, "group_size": 32}, "Q4_0"), ("awq", {"symmetric": True}, "Q4_0"),
    ("kquant", {}, "Q4_K"), ("kquant", {"format": "q6_k"}, "Q6_K"), ("kquant", {"format": "q5_0"}, "Q5_0"), ("kquant", {"format": "q2_k"}, "Q2_K"),
    ("kquant", {"format": "q3_k", "importance": True}, "Q3_K"), ("kquant", {"format": "q5_k", "importance": True}, "Q5_K"),
    ("kquant", {"format": "q3_k_m"}, "Q5_K"), ("kquant", {"format": "q4_k_m", "importance": True}, "Q6_K"), ("kquant", {"format": "q8_0"}, "Q8_0"),
]  # fmt: skip
TEXT = "def f(x):\n    return x**2  # naïve, 12345 of them\n\n  Who'd say that?"


@pytest.fixture(scope="module")
def load() -> Loader:
    return Loader()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("llama", tmp_path_factory.mktemp("models") / "even", **EVEN)


def written(made: saving.Prepared, to: Path) -> tuple[nn.Module, Any]:
    """(model, tokenizer) as transformers makes them from the file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    told = saving.save(made, saving.choose(made, "gguf"), to, "card", {})
    assert sorted(told["files"]) == ["README.md", "model.gguf", "quantization_explorer.json"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the other packages, at their import and load
        model = AutoModelForCausalLM.from_pretrained(to, gguf_file="model.gguf", dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(to, gguf_file="model.gguf")


def same(made: saving.Prepared, to: Path) -> Any:
    model, tokenizer = written(made, to)
    for name, q in made.layers.items():
        ours = q.dequantize()
        assert (model.get_submodule(f"model.{name}").weight - ours).abs().max() <= 2e-7 * ours.abs().max(), name
    same_logits(model, made, 0.01)
    return tokenizer


@pytest.mark.parametrize(("method", "params", "kind"), METHODS, ids=[f"{m}-{i}" for i, (m, *_) in enumerate(METHODS)])
def test_every_layout_means_what_the_codes_mean(load: Loader, folder: Path, tmp_path: Path, method: str, params: dict[str, Any], kind: str) -> None:
    made = prepared(load, folder, method, params)
    same(made, tmp_path / "out")
    read = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    tensors = [tensor for tensor in read.tensors if tensor.name.startswith("blk") and len(tensor.shape) == 2]
    assert kind in {tensor.tensor_type.name for tensor in tensors}
    small = f"{kind}_S" if kind in ("Q3_K", "Q5_K") else kind
    mixture = params.get("format", "").upper() if params.get("format", "").endswith("_m") else small
    named = read.fields.get("general.file_type")
    assert (named and gguf.LlamaFileType(named.contents()).name) == (None if mixture in ("Q2_K", "Q4_K") else f"MOSTLY_{mixture}")
    form = saving.formats()["gguf"]
    assert saving.written_bits(form, made) == 8 * sum(tensor.n_bytes for tensor in tensors) / sum(tensor.n_elements for tensor in tensors)
    assert f"codes as {kind} (" in saving.note(form, made) and saving.written_bits(saving.formats()["bfloat16"], made) == 16


def test_a_mixture_has_a_name_only_where_it_follows_the_recipe() -> None:
    """Twelve blocks: which values and down-projections are wider differs between them."""
    config = LlamaConfig(num_hidden_layers=12, num_attention_heads=4, num_key_value_heads=2)
    parts = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
    recipe = KQuant("q4_k_m").for_model(config.to_dict())
    kinds = {name: recipe.of(name).format.upper() for i in range(12) for part in parts if (name := f"layers.{i}.{part}")}
    assert set(kinds.values()) == {"Q4_K", "Q6_K"} and _file_type(kinds, config).name == "MOSTLY_Q4_K_M"
    assert _file_type(kinds | {"layers.0.self_attn.q_proj": "Q6_K"}, config) is None, "of a rule for each layer"
    assert _file_type(dict.fromkeys(kinds, "Q8_0") | {"layers.0.mlp.up_proj": "Q4_0"}, config) is None
    assert _file_type(dict.fromkeys(kinds, "Q8_0"), config).name == "MOSTLY_Q8_0"


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_loads_with_its_tokenizer(load: Loader, tmp_path: Path, kind: str) -> None:
    made = prepared(load, make(kind, tmp_path / kind, **EVEN | KINDS[kind]), "rtn", {"bits": 4})
    tokenizer = same(made, tmp_path / "out")
    assert tokenizer(TEXT, add_special_tokens=False).input_ids == made.subject.loaded.tokenizer(TEXT, add_special_tokens=False).input_ids


def test_slower_rotations_of_long_contexts_are_written_and_transformers_which_drops_them_is_not_named(load: Loader, tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    made = prepared(load, make("llama", tmp_path / "llama", **EVEN, rope_parameters=rope), "rtn", {"bits": 4})
    model, _ = written(made, tmp_path / "out")
    assert not torch.allclose(model.model.rotary_emb.inv_freq, made.subject.loaded.model.model.rotary_emb.inv_freq.float())
    assert "not with transformers, which drops the scaling" in saving.loads(saving.formats()["gguf"], made)
    slower = next(t for t in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors if t.name == "rope_freqs.weight").data
    assert slower[0] == 1 and abs(slower[-1] - 8) < 1e-3 and (slower[1:] >= slower[:-1] - 1e-4).all()


@pytest.mark.parametrize("head", [64, 128])
def test_qwen3s_heads_are_as_wide_as_transformers_takes_for_granted_or_it_is_not_named(load: Loader, tmp_path: Path, head: int) -> None:
    made = prepared(load, make("qwen3", tmp_path / "qwen3", **EVEN | {"head_dim": head}), "rtn", {"bits": 4})
    reads = saving.loads(saving.formats()["gguf"], made)
    assert reads.startswith("llama.cpp") and ("not with transformers" in reads) == (head != 128)
    if head != 128:
        with pytest.raises(RuntimeError):
            written(made, tmp_path / "out")


def test_a_window_that_spans_the_context_is_none(load: Loader, tmp_path: Path) -> None:
    for kind, changes in (("mistral", {"sliding_window": 512}), ("qwen2", {"sliding_window": 64})):
        made = prepared(load, make(kind, tmp_path / kind, num_hidden_layers=1, **changes), "rtn", {"group_size": 32})
        assert saving.choose(made, "gguf").name == "gguf"


def test_what_a_file_cannot_hold_is_refused_with_the_reason(load: Loader, folder: Path, tmp_path: Path) -> None:
    for method, params, words in (
        ("hqq", {}, "no integers"), ("nf4", {}, "no table"), ("dynamic_int8", {}, "rounded too"),
        ("rtn", {"bits": 8, "symmetric": False, "granularity": "channel"}, "beyond 8 bits"), ("awq", {"scales": "own"}, "scaled while it runs"),
    ):  # fmt: skip
        made = prepared(load, folder, method, params)
        assert words in saving.refusal(saving.formats()["gguf"], made)
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
    for kind, changes, words in (
        ("gemma", {}, "models of type gemma"), ("qwen2", {"rope_parameters": rope}, "rotary embedding of type 'yarn'"),
        ("llama", {"hidden_act": "relu"}, "its gate is 'relu'"), ("qwen3", {"hidden_act": "gelu"}, "its gate is 'gelu'"),
        ("llama", {"mlp_bias": True}, r"its biases \(mlp_bias\) are dropped"),
        ("llama", {"attention_bias": True}, r"its biases \(attention_bias\) are dropped"),
        ("mistral", {"sliding_window": 64}, "its attention looks back 64 tokens"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}, "its attention looks back 64 tokens"),
        ("qwen3", {"attention_bias": True}, r"its biases \(attention_bias\) are dropped"),
    ):  # fmt: skip
        made = prepared(load, make(kind, tmp_path / kind, num_hidden_layers=1, **changes), "rtn", {"group_size": 32})
        with pytest.raises(InputError, match=f"GGUF cannot hold this model: .*{words}.* What can: compressed-tensors"):
            saving.choose(made, "gguf")


def test_constant_and_empty_blocks_survive(load: Loader, folder: Path) -> None:
    """Blocks without a scale: all zero, all the same negative value, and a row of each."""
    from explorer.methods import build

    weight = 0.02 * torch.randn(8, 512, generator=torch.Generator().manual_seed(0))
    weight[1], weight[2], weight[3, :32], weight[4, 32:64] = 0.0, -0.25, 0.0, -0.5
    for name, params in (("kquant", {}), ("kquant", {"format": "q6_k"}), ("rtn", {"bits": 4})):
        q = build(name, params).quantize(weight, None)
        assert not refuses(q)
        kind, rows = packed(q)
        theirs = torch.from_numpy(gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind]))
        assert torch.allclose(theirs, q.dequantize(), rtol=1e-6, atol=1e-7), kind
