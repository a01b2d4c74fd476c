"""Input scales folded into what comes before: nothing may change in what a model computes, in any architecture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from explorer import models
from explorer.calibration import flowing
from explorer.flow import Before, scaled, stores
from explorer.folding import folded
from explorer.hub import Hub
from explorer.loader import Loader
from explorer.methods import build
from explorer.metrics import Subject
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
    loaded = Loader()(models.resolve(str(make(kind, tmp_path / kind)), Hub()))
    model, draw = loaded.model.float(), torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # as they are made, all alike, they would hide a mistake
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
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
    loaded = Loader()(models.resolve(str(make("opt", tmp_path / "opt", do_layer_norm_before=False, num_hidden_layers=1)), Hub()))
    found = next(flowing(loaded, torch.arange(8).unsqueeze(0)))[1]
    assert [None if group.before is None else isinstance(group.before.module, torch.nn.Linear) for group in found] == [None, True, None, True]


class LlamaRMSNorm(torch.nn.Module):
    def __init__(self, multiplier: Tensor, one: float = 0.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter((multiplier - one).bfloat16())


class GemmaRMSNorm(LlamaRMSNorm):
    """As its name says, it multiplies by 1 + weight."""


@pytest.mark.parametrize(("size", "gemma"), [(4, True), (16, False), (64, False)])
def test_a_norm_takes_only_a_scale_that_it_can_store(size: int, gemma: bool) -> None:
    multiplier, scale, rows = 1 + torch.rand(4096, generator=torch.Generator().manual_seed(0)), torch.full((4096,), float(size)), torch.arange(4096)
    for norm, one, holds in ((LlamaRMSNorm(multiplier), 0.0, True), (GemmaRMSNorm(multiplier, 1.0), 1.0, gemma)):
        before = Before(norm, rows)
        wanted, found = norm.weight.float() + one, (scaled(before, scale)["weight"].float() + one) * size
        assert stores(before, scale) == holds == bool(((found / wanted - 1).abs() <= 2**-7).all())


def test_a_scale_that_no_norm_stores_stays_with_its_layers(tmp_path: Path) -> None:
    loaded = Loader()(models.resolve(str(make("gemma", tmp_path / "gemma", num_hidden_layers=1)), Hub()))
    linears, draw = models.linears(loaded.model), torch.Generator().manual_seed(0)
    plain = {name: build("absmax", {}).quantize(layer.weight.detach().float(), None) for name, layer in linears.items()}
    for size, held in ((2.0, True), (64.0, False)):
        sizes = size * (0.5 + 0.5 * torch.rand(linears["layers.0.mlp.up_proj"].in_features, generator=draw))
        made = {name: dataclasses.replace(q, channel_scale=sizes) if name.endswith(("gate_proj", "up_proj")) else q for name, q in plain.items()}
        layers, changed = folded(Subject(loaded, {}, made, linears, torch.empty(0, 8, dtype=torch.long), 0.0))
        assert (layers["layers.0.mlp.up_proj"].channel_scale is None) == held == bool(changed)
