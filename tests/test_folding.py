"""Input scales folded into what comes before: nothing may change in what a model computes, in any architecture."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from explorer import models
from explorer.calibration import first_inputs, flowing, sequential_inputs
from explorer.experiment import Loader
from explorer.flow import scaled
from explorer.methods import build
from explorer.models import blocks, linears
from explorer.qtensor import quantize_affine
from tests.architectures import CONFIGS, make

LLAMA = "qkv o gate_up down"
TAKE = {  # the sets of layers whose inputs' scales something before can take, of the four in a block
    "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA, "gemma": LLAMA, "gemma2": LLAMA, "gemma3_text": LLAMA, "smollm3": LLAMA, "granite": LLAMA,
    "stablelm": LLAMA, "olmo": "o down", "olmo2": "o down", "phi": "qkv o", "phi3": "qkv gate_up", "opt": "qkv o gate_up down", "gpt_neox": "qkv gate_up",
    "starcoder2": "qkv o gate_up",
}  # fmt: skip


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(40, 72).unsqueeze(0), use_cache=False).logits


@pytest.mark.parametrize("kind", sorted(set(CONFIGS) - {"gpt2"}))
def test_a_folded_scale_changes_nothing(tmp_path: Path, kind: str) -> None:
    loaded = Loader()(models.resolve(str(make(kind, tmp_path / kind))))
    model, draw = loaded.model.float(), torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # as they are made, all alike, they would hide a mistake
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    for inputs, _, outputs in sequential_inputs(loaded, torch.arange(40, 72).unsqueeze(0)):
        weights = {name: linears(model)[name].weight for name in inputs}
        assert torch.equal(outputs(weights), outputs({})) and not torch.equal(outputs({name: 2 * w for name, w in weights.items()}), outputs({}))
    before, taken = logits(model), 0
    for _, found in flowing(loaded, torch.arange(40, 72).unsqueeze(0)):
        for group in found:
            if group.before is not None:
                scale = (0.5 + 2 * torch.rand(group.layers[0].in_features, generator=draw))[group.before.rows]
                for name, value in scaled(group.before, scale).items():
                    getattr(group.before.module, name).data.copy_(value)
                for layer in group.layers:
                    layer.weight.data.mul_(scale)
                taken += 1
    assert taken == 2 * len(TAKE[kind].split())
    assert (logits(model) - before).norm() / before.norm() < 1e-5


def test_norms_that_the_residual_stream_reads_too_take_nothing(tmp_path: Path) -> None:
    loaded = Loader()(models.resolve(str(make("opt", tmp_path / "opt", do_layer_norm_before=False, num_hidden_layers=1))))
    found = next(flowing(loaded, torch.arange(8).unsqueeze(0)))[1]
    assert [None if group.before is None else type(group.before.module).__name__ for group in found] == [None, "Linear", None, "Linear"]


@pytest.mark.parametrize("kind", ["llama", "phi3", "opt"])
def test_a_shared_scale_is_the_one_that_moves_the_attention_least(tmp_path: Path, kind: str) -> None:
    """Among the ratios of AWQ's grid, against a float32 copy of the attention, or of the one layer where only one reads the inputs."""
    loaded = Loader()(models.resolve(str(make(kind, tmp_path / kind))))
    ids = torch.randint(0, 4096, (2, 32), generator=torch.Generator().manual_seed(0)) % loaded.model.config.vocab_size
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    inputs, source, outputs = next(sequential_inputs(loaded, ids))
    weights, x = {name: linears(loaded.model)[name].weight for name in inputs}, next(iter(inputs.values())).float()
    method = build("awq", {"bits": 2, "group_size": 32, "clip": False})
    found = dict(method.quantize_together(weights, x, source.rows, outputs))
    hidden, arguments = first_inputs(loaded, ids)
    part = copy.deepcopy(blocks(loaded.model)[0].self_attn).float()
    arguments |= {"position_embeddings": tuple(part.float() for part in arguments["position_embeddings"])} if "position_embeddings" in arguments else {}
    norm = source.module(hidden[0]).float()
    layers = {name: part.get_submodule(name.rsplit(".", 1)[1]) for name in weights}

    def given(scale: Tensor) -> Tensor:
        for name, layer in layers.items():
            layer.weight.data = quantize_affine(weights[name].float() * scale, 2, "group", 32, False).dequantize() / scale
        return part(norm, **arguments)[0] if len(layers) > 1 else next(iter(layers.values()))(norm)

    with torch.no_grad():
        scales = [x.abs().mean(0).pow(step / 20).clamp(min=1e-4) for step in range(20)]
        scales = [1 / (1 / (s / (s.max() * s.min()).sqrt())).bfloat16().float() for s in scales]
        exact = part(norm, **arguments)[0] if len(layers) > 1 else next(iter(layers.values()))(norm)
        errors = [(given(scale) - exact).square().sum().item() for scale in scales]
    best = scales[errors.index(min(errors))]
    assert all(torch.equal(q.channel_scale, best) for q in found.values()) and errors.index(min(errors)) > 0
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items()), "the search changes nothing in the model"
