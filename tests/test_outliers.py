"""Inputs of a layer, transforms that keep the product, and outliers planted in a whole model without changing what it computes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import transformers

from explorer import models
from explorer.experiment import LocalRunner
from explorer.figures import charts
from explorer.hub import Hub
from explorer.input_statistics import InputStatistics
from explorer.methods import build
from explorer.metrics.activations import kurtosis, outliers
from explorer.models import LoadedModel
from explorer.records import InputError, ModelRef
from explorer.store import Store
from explorer.tasks.activations import INT8, Pair
from explorer.tasks.inputs import unpacked
from explorer.tasks.outlier_dial import METHODS, distance, plant
from kernels.op import Activation, multiply

LAYER = "layers.1.mlp.gate_proj"


@pytest.fixture(scope="module")
def runner() -> LocalRunner:
    return LocalRunner(Store(":memory:"))


def done(runner: LocalRunner, task: str, **arguments: object) -> dict:
    return list(runner.do(task, arguments))[-1].data


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_inputs_are_what_the_layer_meets(runner: LocalRunner, tiny_folder: Path) -> None:
    data = done(runner, "inputs", model=str(tiny_folder), layer=LAYER)
    loaded = runner._load(models.resolve(str(tiny_folder), Hub()))
    ids = loaded.tokenizer("".join(data["words"]), return_tensors="pt", add_special_tokens=False).input_ids[:, : data["tokens"]]
    seen: list[torch.Tensor] = []
    handle = models.linears(loaded.model)[LAYER].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    loaded.model(ids, use_cache=False)
    handle.remove()
    assert data["tokens"] == 256 and relative(unpacked(data)[:100], seen[0][0, :100].float()) < 0.02
    with pytest.raises(InputError, match="has no layer"):
        done(runner, "inputs", model=str(tiny_folder), layer="layers.9.mlp.up_proj")


def test_transforms_keep_the_product() -> None:
    torch.manual_seed(0)
    pair = Pair.of(torch.randn(64, 96), torch.randn(32, 96) * 0.05)
    exact = pair.inputs @ pair.weight.T
    planted = pair.planted(100.0, 3)
    assert int((planted.peaks > 20 * planted.peaks.median()).sum()) == 3
    for other in (planted, planted.smoothed(0.5), planted.smoothed(0.8), pair.rotated(), planted.rotated()):
        assert relative(other.inputs @ other.weight.T, exact) < 1e-5
    assert kurtosis(planted.inputs) > 20 > 4 > kurtosis(planted.rotated().inputs)
    smooth, again = pair.smoothed(0.3), planted.smoothed(0.3)
    assert relative(again.inputs, smooth.inputs) < 0.01, "SmoothQuant undoes a scaling of channels"


def test_errors_are_those_of_plain_int8_arithmetic() -> None:
    torch.manual_seed(1)
    pair = Pair.of(torch.randn(32, 64), torch.randn(16, 64))
    scale = (pair.weight.abs().amax(1, keepdim=True) / 127).bfloat16().float()
    weight = (pair.weight / scale).round().clamp(-128, 127) * scale
    step = pair.inputs.abs().max() / 127
    exact = pair.inputs @ pair.weight.T
    assert pair.error(Activation("int8", "tensor")) == pytest.approx(relative((pair.inputs / step).round() * step @ weight.T, exact), rel=1e-4)
    assert pair.error(None) == pytest.approx(relative(pair.inputs @ weight.T, exact), rel=1e-4)


def test_live_answers_on_a_layer(runner: LocalRunner, tiny_folder: Path) -> None:
    where = {"model": str(tiny_folder), "layer": LAYER}
    calm, loud = (done(runner, "activations", **where, transform="smooth", strength=s) for s in (1.0, 64.0))
    assert set(calm["errors"]) == set(INT8) and loud["before"]["ratio"][0] > 20 * calm["before"]["ratio"][0]
    assert loud["errors"]["W8A8 per tensor"][0] > 5 * calm["errors"]["W8A8 per tensor"][0], "per-tensor int8 breaks"
    assert loud["smooth_error"] == pytest.approx(calm["smooth_error"], rel=0.02), "SmoothQuant does not notice"
    assert loud["errors"]["W8A8 per token"][1] == pytest.approx(loud["smooth_error"])
    events = list(runner.do("activations", where | {"alpha": 0.7}))
    assert len(events) == 1, "the inputs come from the store: a slider runs no model and waits for nobody"
    turned = done(runner, "activations", **where, transform="rotate", strength=64.0)
    assert turned["after"]["kurtosis"] < turned["before"]["kurtosis"]
    assert loud["before"]["zeros"] > calm["before"]["zeros"] and sum(calm["before"]["counts"]) == calm["shape"][0] * calm["shape"][1]
    assert calm["before"]["inputs"] == sorted(calm["before"]["inputs"], reverse=True) and len(calm["order"]) == calm["shape"][1], "by what is drawn, all"
    assert f"all {calm['shape'][1]} channels" in charts()["channels"].summary(calm)
    assert "the 1 largest of" in charts()["channels"].summary(calm | {"order": calm["order"][:1]})
    curve = done(runner, "alpha", **where, strength=16.0)
    assert len(curve["token"]) == len(curve["alphas"]) == 11 and min(curve["token"]) < curve["plain"]["token"]
    for wrong, sentence in (({"strength": 0.5}, "strength from 1"), ({"channels": 0}, "channels"), ({"transform": "magic"}, "transform is one of")):
        with pytest.raises(InputError, match=sentence):
            done(runner, "activations", **where, **wrong)


def small(kind: str) -> torch.nn.Module:
    """A model of random weights: norms with and without bias, before one layer or several."""
    shared = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    if kind == "opt":
        config = transformers.OPTConfig(**shared, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=32)
    elif kind == "phi":
        config = transformers.PhiConfig(**shared, intermediate_size=48, max_position_embeddings=32)
    elif kind == "gpt_neox":
        config = transformers.GPTNeoXConfig(**shared, intermediate_size=48, max_position_embeddings=32)
    else:
        make = {"gemma2": transformers.Gemma2Config, "qwen3": transformers.Qwen3Config, "llama": transformers.LlamaConfig, "olmo2": transformers.Olmo2Config}[
            kind
        ]
        config = make(**shared, intermediate_size=48, num_key_value_heads=1, head_dim=16, max_position_embeddings=32)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.mark.parametrize("kind", ["llama", "opt", "phi", "gpt_neox", "gemma2", "qwen3"])
def test_planting_keeps_the_function(kind: str) -> None:
    import copy

    before = LoadedModel(ModelRef(kind, ""), small(kind), None, torch.device("cpu"), 32)
    after = dataclasses.replace(before, model=copy.deepcopy(before.model))
    tokens = torch.randint(0, 64, (1, 16))
    channels = plant(after, 5.0, 3, tokens)
    assert len(channels) == 3 and distance(before.model, after.model, tokens)[1] <= 1e-5
    changed = sum(not torch.equal(a, b) for a, b in zip(before.model.parameters(), after.model.parameters(), strict=True))
    assert changed >= 2 * 3, "in every block a norm and what reads it"


def test_a_model_without_a_norm_before_its_layers_is_refused() -> None:
    loaded = LoadedModel(ModelRef("olmo2", ""), small("olmo2"), None, torch.device("cpu"), 32)
    with pytest.raises(InputError, match="no normalisation feeds"):
        plant(loaded, 4.0, 2, torch.randint(0, 64, (1, 16)))


def test_the_dial_breaks_int8_and_leaves_the_model_alone(runner: LocalRunner, tiny_folder: Path) -> None:
    ref = models.resolve(str(tiny_folder), Hub())
    before = {name: p.clone() for name, p in runner._load(ref).model.named_parameters()}
    calm, loud = (done(runner, "outlier_dial", model=str(tiny_folder), strength=s) for s in (1.0, 64.0))
    assert loud["gap"] == 0 and loud["gap_float32"] <= 1e-5 and set(loud["methods"]) == set(METHODS)
    divergence = {name: (calm["methods"][name]["kld_mean"][0], loud["methods"][name]["kld_mean"][0]) for name in METHODS}
    assert divergence["W8A8 per tensor"][1] > 10 * divergence["W8A8 per tensor"][0] and divergence["W8A8 per token"][1] > 10 * divergence["W8A8 per token"][0]
    assert divergence["SmoothQuant"][1] == pytest.approx(divergence["SmoothQuant"][0], rel=0.05)
    after = dict(runner._load(ref).model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_llm_int8_static_list_is_the_channels_that_reach_the_threshold() -> None:
    generator = torch.Generator().manual_seed(3)
    weight, inputs = torch.randn(32, 64, generator=generator), torch.randn(50, 64, generator=generator)
    inputs[7, [5, 40]] = torch.tensor([6.0, -30.0])
    assert outliers(inputs.abs().amax(0))["llm_int8"] == [5, 40], "the metric names the channels that the method takes out"
    static = build("llm_int8", {"outliers": "static"}).quantize(weight, InputStatistics.of(inputs))
    assert static.activation.columns == (5, 40) and not static.activation.threshold
    dynamic = build("llm_int8", {}).quantize(weight, None)
    assert torch.allclose(multiply(inputs, static.weight()), multiply(inputs, dynamic.weight()), rtol=1e-4, atol=1e-3)
