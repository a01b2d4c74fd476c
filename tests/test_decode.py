"""The token loop: our own forward pass against transformers', every family, fixed and growing caches, joined layers, what each loop refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from explorer import llama, products
from explorer.cache_sizes import packed_tokens
from explorer.decode import Decoder, TransformersLoop
from explorer.input_statistics import InputStatistics
from explorer.llama import LlamaLoop
from explorer.methods import build
from explorer.metrics.speed import read_per_token
from explorer.models import LoadedModel, linears
from explorer.products import product
from explorer.qlinear import QuantizedLinear, join, siblings, swapped
from explorer.qtensor import QuantizedTensor, concatenate, quantize_affine
from explorer.records import ModelRef
from kernels import native
from kernels.kv_attention import TORCH
from kernels.native_attention import NATIVE
from kernels.op import Form, ops

CPU = torch.device("cpu")
KV_FORMS = (TORCH,) if native.library()[0] is None else (TORCH, NATIVE)
SHAPE = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
FAMILIES = {
    "llama": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "llama3 rope": {"kind": "llama", "rope_parameters": LLAMA3},
    "mistral": {"sliding_window": None, "head_dim": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 64},
}


def model_of(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """A tiny model of random weights, biases and norms included, large enough in scale that a wrong position or head shows."""
    options = {**SHAPE, **FAMILIES.get(name, {}), **changes}
    kind = options.pop("kind", name)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options)).to(dtype).eval().requires_grad_(False)
    for index, parameter in enumerate(model.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
        parameter.copy_(parameter + noise * (0.3 if parameter.dim() == 1 else 0.1))
    return model


def loaded_of(model: nn.Module) -> LoadedModel:
    return LoadedModel(ModelRef("tiny", "0"), model, None, CPU, 256)


def prompt_of(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, SHAPE["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_own_loop_gives_the_logits_of_transformers(name: str, batch: int, static: bool) -> None:
    """Every step against the whole model over the whole text, without any cache."""
    model, ids = model_of(name), prompt_of(batch, 20)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        loop = LlamaLoop(model, 24, batch=batch, static=static)
        for _ in range(2):  # the second round must not see the first one's cache
            found = [loop.prefill(ids[:, :9])] + [loop.step(ids[:, i : i + 1]) for i in range(9, 20)]
            worst = (torch.stack(found, 1) - expected[:, 8:]).norm() / expected[:, 8:].norm()
            assert worst < 1e-5, f"{name}: relative error {worst}"
    assert loop.static == static and loop.length == 20 == int(loop.position)


@pytest.mark.parametrize(("bits", "name", "batch", "static"), [(8, "llama", 1, False), (4, "qwen3", 2, True), (2, "qwen3", 1, True), (2, "qwen3", 3, False)])
@pytest.mark.parametrize("start", [1, 40, 95])
@pytest.mark.parametrize("form", KV_FORMS, ids=lambda form: form.name)
def test_packed_cache_means_what_the_dequantized_one_does(
    form: Form, bits: int, name: str, batch: int, static: bool, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every logit of both loops, where the cache fills its window, packs a group and ends full; the second text must not see the first one's cache."""
    monkeypatch.setitem(ops(), "kv_attention", dataclasses.replace(ops()["kv_attention"], cpu=(form,)))
    model, ids, end = model_of(name), prompt_of(batch, 132), min(start + 60, 132)
    own, theirs = LlamaLoop(model, end, bits, batch, static), TransformersLoop(model, end, bits)
    with torch.no_grad():
        for tokens in (ids.flip(0), ids):
            pairs = [(own.prefill(tokens[:, :start]), theirs.prefill(tokens[:, :start]))]
            pairs += [(own.step(tokens[:, i : i + 1]), theirs.step(tokens[:, i : i + 1])) for i in range(start, end)]
            assert all((a - b).norm() / b.norm() < 1e-3 for a, b in pairs)
    assert own.packed.older == packed_tokens(end) and own.attention == f"kv_attention ({form.name})" and own.static == static


def test_the_triton_kernel_reads_a_cache_that_fills_as_counts_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel and the fixed shapes of a GPU, in Triton's interpreter; a head that no tile holds takes torch's form and shapes that grow."""
    model, ids, op = model_of("llama"), prompt_of(1, 70), ops()["kv_attention"]
    plain = LlamaLoop(model, 70, 4)
    monkeypatch.setitem(ops(), "kv_attention", dataclasses.replace(op, cpu=op.gpu))
    tiled = LlamaLoop(model, 70, 4, static=True)
    with torch.no_grad():
        for loop in (plain, tiled):
            loop.prefill(ids[:, :62])
        for i in range(62, 66):
            a, b = (loop.step(ids[:, i : i + 1]) for loop in (tiled, plain))
            assert (a - b).norm() / b.norm() < 1e-3
    assert tiled.attention == "kv_attention (triton)" and LlamaLoop(model_of("llama", head_dim=96), 70, 4).attention == "kv_attention (torch)"


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_bfloat16_stays_within_its_rounding(name: str) -> None:
    """Both loops against float32: ours may not be further away than transformers' by more than a little."""
    exact, model, ids = model_of(name), model_of(name, torch.bfloat16), prompt_of(1, 32)
    exact.load_state_dict(model.state_dict())
    with torch.no_grad():
        reference, theirs = exact(ids).logits[:, -1], model(ids).logits[:, -1].float()
        loop = LlamaLoop(model, 32)
        loop.prefill(ids[:, :31])
        ours = loop.step(ids[:, 31:]).float()
    error, allowed = (ours - reference).norm() / reference.norm(), (theirs - reference).norm() / reference.norm()
    assert error < 1.25 * allowed + 1e-3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "gemma", "head_dim": 32}, "own forward pass"),
        ({"kind": "llama", "hidden_act": "gelu"}, "activation is gelu"),
        ({"kind": "llama", "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "depends on the length"),
        ({"kind": "mistral", "sliding_window": 8}, "slides over 8 of 64"),
        ({"kind": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "slides over 8 of 64"),
    ],
)
def test_what_the_own_loop_does_not_serve_runs_in_transformers(changes: dict, reason: str) -> None:
    model, ids = model_of("", **changes), prompt_of(1, 12)
    decoder = Decoder(loaded_of(model), 64)
    assert decoder.loop == "transformers" and reason in decoder.why and decoder.copies == 0
    found = list(decoder.generate(ids, 6))
    with torch.no_grad():
        for token in found:
            assert token == int(model(ids, use_cache=False).logits[0, -1].argmax())
            ids = torch.cat([ids, torch.tensor([[token]])], 1)


def quantized(model: nn.Module, method: str = "rtn", **params: Any) -> dict[str, QuantizedLinear]:
    made = build(method, params)
    return {name: QuantizedLinear(made.quantize(layer.weight.float(), None, name), layer.bias, CPU) for name, layer in linears(model).items()}


@pytest.mark.parametrize(
    ("method", "params"),
    [("rtn", {"bits": 4}), ("rtn", {"bits": 3, "symmetric": False}), ("rtn", {"bits": 8, "granularity": "tensor"}), ("rtn", {"bits": 4, "rotate": True}),
     ("nf4", {}), ("dynamic_int8", {}), ("llm_int8", {})],
)  # fmt: skip
def test_quantized_layers_run_joined_with_the_same_result(method: str, params: dict) -> None:
    model, ids = model_of("qwen2", torch.bfloat16), prompt_of(1, 24)
    layers = quantized(model, method, **params)
    names = [f"layers.0.self_attn.{part}_proj" for part in "qkv"]
    joined = join([layers[name] for name in names])
    assert joined is not None and joined.source is None and joined.kernel == layers[names[0]].kernel
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    apart = torch.cat([layers[name](x) for name in names], -1)
    assert (joined.rows(x).float() - apart.float()).norm() <= 1e-3 * apart.float().norm()
    with swapped(model, layers, linears(model)), torch.no_grad():
        own, theirs = LlamaLoop(model, 32), TransformersLoop(model, 32)
        a, b = own.prefill(ids).float(), theirs.prefill(ids).float()
        assert own.blocks[0].qkv.shape == joined.shape and own.blocks[0].qkv.name == joined.kernel
        assert (a - b).norm() / b.norm() < (0.06 if "int8" in method else 0.02)  # rounded inputs flip by a step


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_a_shared_input_scale_goes_into_the_norm_before(method: str) -> None:
    model, ids = model_of("llama", torch.bfloat16, hidden_size=128, intermediate_size=192), prompt_of(1, 24)
    whole, draw, layers = linears(model), torch.Generator().manual_seed(0), {}
    for place, parts in (("self_attn", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj"))):
        for block in range(2):
            names = [f"layers.{block}.{place}.{part}" for part in parts]
            inputs = torch.randn(64, 128, generator=draw) * torch.rand(128, generator=draw).mul(3).exp()
            made = build(method, {}).quantize_together({name: whole[name].weight.detach() for name in names}, InputStatistics.of(inputs), torch.arange(128))
            layers |= {name: QuantizedLinear(q, None, CPU) for name, q in made}
    with swapped(model, layers, whole), torch.no_grad():
        own, theirs = LlamaLoop(model, 32), TransformersLoop(model, 32)
        assert all(block.qkv.inverse is not None and block.gate_up.inverse is not None and block.down.inverse is None for block in own.blocks)
        a, b = own.prefill(ids).float(), theirs.prefill(ids).float()
        assert (a - b).norm() / b.norm() < (0.06 if method == "smoothquant" else 0.02)


def test_layers_of_different_formats_are_not_joined_but_run() -> None:
    model, ids = model_of("llama"), prompt_of(1, 8)
    four, eight = quantized(model, bits=4, group_size=32), quantized(model, bits=8, granularity="channel")
    mixed = {name: (eight if "v_proj" in name or "up_proj" in name else four)[name] for name in four}
    assert join([mixed["layers.0.mlp.gate_proj"], mixed["layers.0.mlp.up_proj"]]) is None
    with swapped(model, mixed, linears(model)), torch.no_grad():
        found, expected = LlamaLoop(model, 16).prefill(ids), model(ids).logits[:, -1]
    assert (found - expected).norm() / expected.norm() < 1e-2


class Wrapped(nn.Module):
    """A layer that changes what another computes, as the planted faults do."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.kernel, self.packed_bytes = layer, layer.kernel, layer.packed_bytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.layer(x)


def test_a_wrapped_layer_runs_as_it_is() -> None:
    model, ids = model_of("llama"), prompt_of(1, 8)
    layers = quantized(model, bits=4, group_size=32)
    changed = layers | {name: Wrapped(layers[name]) for name in ("layers.1.mlp.down_proj", "layers.0.self_attn.k_proj")}
    with swapped(model, changed, linears(model)), torch.no_grad():
        loop, expected = LlamaLoop(model, 16), model(ids).logits[:, -1]
        found = loop.prefill(ids)
    assert (found - expected).norm() / expected.norm() < 1e-2 and loop.blocks[1].down.shape == (128, 192)


def test_concatenation_means_the_parts() -> None:
    weights = [torch.randn(n, 64, generator=torch.Generator().manual_seed(n)) for n in (48, 16, 32)]
    for granularity, symmetric in (("tensor", True), ("channel", False), ("group", True)):
        parts = [quantize_affine(w, 4, granularity, 32, symmetric) for w in weights]
        assert torch.equal(concatenate(parts).dequantize(), torch.cat([p.dequantize() for p in parts]))
    scaled = dataclasses.replace(parts[1], channel_scale=torch.ones(64))
    other = dataclasses.replace(parts[1], bits=3)
    assert concatenate([parts[0], scaled]) is None and concatenate([parts[0], other]) is None
    shared = [QuantizedTensor(p.codes[:16], p.scale[:8], 4) for p in parts[::2]]  # two rows a scale, as blocks of FP8 have
    assert torch.equal(concatenate(shared).dequantize(), torch.cat([p.dequantize() for p in shared]))


def test_joined_nested_scales_are_counted_as_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU keeps them: 8 bits a block apart, float32 joined, because each part has an offset of its own. 4.14 and 4.5 bits a weight."""
    monkeypatch.setattr("explorer.qlinear.choose", lambda weight, device: ("int4_matmul", ops()["int4_matmul"].gpu[0], ""))
    model = model_of("llama", hidden_size=512, intermediate_size=512)
    layers = quantized(model, "nf4", double_quant=True)
    with swapped(model, layers, linears(model)):
        loop, apart = LlamaLoop(model, 16), read_per_token(model)
    joined = [part for block in loop.blocks for part in (block.qkv, block.gate_up)]
    for part, group in zip(joined, [g for g in siblings(layers) if len(g) > 1], strict=True):
        weights, own = part.shape[0] * part.shape[1], sum(sum(layers[name].packed_bytes().values()) for name in group)
        assert 8 * part.read / weights == pytest.approx(4.5, abs=0.01) and 8 * own / weights < 4.3 and part.beyond == part.read - own
    assert loop.beyond == sum(part.beyond for part in joined) > 0 and Decoder(loaded_of(model), 16).beyond == 0
    every = [loop.head, *(part for block in loop.blocks for part in (block.qkv, block.gate_up, block.out, block.down))]
    assert 0 <= apart + loop.beyond - sum(part.read for part in every) < 0.02 * apart, "norms and biases are the rest"


def test_16_bit_layers_become_views_of_one_weight_without_a_copy() -> None:
    layers = [nn.Linear(32, n, bias=n > 8).requires_grad_(False) for n in (8, 16, 24)]
    before = [layer.weight.clone() for layer in layers]
    first, again = product(layers), product(layers)
    assert first.copied == 0 and all(torch.equal(layer.weight, w) for layer, w in zip(layers, before, strict=True))
    assert first.run.keywords["weight"].data_ptr() == again.run.keywords["weight"].data_ptr() == layers[0].weight.data_ptr()
    x = torch.randn(3, 32)
    assert torch.allclose(first.run(x), torch.cat([layer(x) for layer in layers], -1), atol=1e-5)
    layers[1].weight.mul_(2)  # what is done to a layer is done to the product
    assert torch.allclose(first.run(x), torch.cat([layer(x) for layer in layers], -1), atol=1e-5)


def test_16_bit_copies_are_made_only_where_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [nn.Linear(32, n, bias=n > 8, dtype=torch.bfloat16).requires_grad_(False) for n in (8, 16)]
    x, roomy = torch.randn(3, 32).bfloat16(), product(layers)
    places = [layer.weight.data_ptr() for layer in layers]
    monkeypatch.setattr(products, "spare_memory", lambda device: 0)
    tight = product(layers)
    assert tight.copied == 0 and places == [layer.weight.data_ptr() for layer in layers]
    assert torch.allclose(roomy.run(x), tight.run(x), rtol=1e-2, atol=1e-2)


def test_a_full_cache_is_refused() -> None:
    decoder = Decoder(loaded_of(model_of("llama")), 12)
    assert len(list(decoder.generate(prompt_of(1, 8), 5))) == 5
    with pytest.raises(ValueError, match="12 tokens and is full"):
        decoder.step()


def test_timing_counts_every_token_after_the_first() -> None:
    decoder = Decoder(loaded_of(model_of("llama")), 24, batch=2)
    first, rest = decoder.timed(prompt_of(2, 8), 7)
    assert first > 0 and len(rest) == 6 and min(rest) > 0 and decoder.token.shape == (2, 1) and decoder.logits.shape == (2, 512)
    assert llama.refuses(model_of("llama"), 24) == ""


@pytest.mark.parametrize("static", [False, True])
def test_a_large_rotary_table_is_not_kept_for_every_head(static: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = model_of("qwen3"), prompt_of(2, 12)
    kept = LlamaLoop(model, 16, batch=2, static=static)
    monkeypatch.setattr(llama, "TABLE", 0)
    made = LlamaLoop(model, 16, batch=2, static=static)
    assert kept.whole is not None and made.whole is None
    with torch.no_grad():
        for loop in (kept, made):
            loop.prefill(ids[:, :10])
        assert torch.equal(kept.step(ids[:, 10:11]), made.step(ids[:, 10:11]))
