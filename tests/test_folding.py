"""Input scales folded into what comes before: nothing may change in what a model computes, in any architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from explorer import models
from explorer.calibration import flowing
from explorer.experiment import Loader
from explorer.flow import scaled
from explorer.hub import Hub
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
    assert [None if group.before is None else type(group.before.module).__name__ for group in found] == [None, "Linear", None, "Linear"]
