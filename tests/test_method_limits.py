"""Methods at the ends of what their forms allow: combinations, rates and inputs that break what a default never meets."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch

from explorer import models
from explorer.data import bundled_text
from explorer.hub import Hub
from explorer.input_statistics import InputStatistics
from explorer.methods import build, label_of
from explorer.methods.qat import LearnedStepLinear
from explorer.qlinear import put
from kernels.op import Activation, multiply
from tests.measuring import drained


class OneLinear(torch.nn.Module):
    """Gives the logits that `weight` [N, K] makes of the inputs [W, T, K] with the numbers of a batch."""

    def __init__(self, weight: torch.Tensor, inputs: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.inputs = torch.nn.Linear(*weight.T.shape, bias=False), inputs
        self.layer.weight = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, batch: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.layer(self.inputs[batch]))

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.layer


def test_block_weights_round_inputs_in_blocks() -> None:
    draw = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(128, 256, generator=draw), torch.randn(64, 256, generator=draw)
    blocks, named = build("fp8", {"granularity": "block"}), build("fp8", {"granularity": "block", "activation": "block"})
    assert blocks == named and label_of(blocks) == "FP8 per-block e4m3 inputs block" and label_of(build("fp8", {})) == "FP8 per-channel e4m3"
    assert blocks.quantize(weight, None).activation == Activation("e4m3", "block")
    assert build("fp8", {"granularity": "block", "activation": "none"}).quantize(weight, None).activation is None
    finer, coarser = (build("fp8", {"activation": per}).quantize(weight, None) for per in ("block", "tensor"))
    one = torch.cat([inputs[:, :128], 1e-5 * inputs[:, 128:]], 1)  # below what E4M3 reaches under the scale of the other half
    exact = one @ weight.T
    assert (multiply(one, finer.weight()) - exact).norm() < (multiply(one, coarser.weight()) - exact).norm()
    assert "do not divide its 80 inputs" in build("fp8", {"activation": "block"}).refuses((64, 80))


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("rate", [1e-3, 1e-2])
def test_learned_steps_stay_positive_at_every_rate(bits: int, rate: float) -> None:
    """One linear model that QAT trains as it does a whole one. At the highest rate an update is as large as the steps themselves."""
    draw = torch.Generator().manual_seed(0)
    model = OneLinear(0.02 * torch.randn(96, 256, generator=draw), torch.randn(16, 8, 256, generator=draw))
    method = build("qat", {"bits": bits, "steps": 40, "rate": rate})
    training = method.train(model, {"layer": model.layer}, lambda name, student: setattr(model, name, student), torch.arange(16))
    lowest = torch.inf
    while True:
        try:
            next(training)
        except StopIteration as end:
            made, losses = end.value
            break
        if isinstance(model.layer, LearnedStepLinear):
            lowest = min(lowest, model.layer.step.min().item())
    assert lowest > 0 and made["layer"].scale.isfinite().all() and (made["layer"].scale > 0).all()
    assert rate > 1e-3 or losses[-1] < losses[0]


def test_the_default_rate_still_teaches_the_bundled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no step of it comes so near to zero that it is held."""
    loaded = models.load(models.resolve("demo", Hub()), torch.device("cpu"), Hub())
    layers, windows = models.linears(loaded.model), models.windows(loaded, bundled_text("calibration"), 128, 64)
    held, keep = [], LearnedStepLinear.keep_positive

    def watched(student: LearnedStepLinear) -> None:
        held.append((student.step < student.least).any().item())
        keep(student)

    monkeypatch.setattr(LearnedStepLinear, "keep_positive", watched)
    _, losses = drained(build("qat", {"steps": 4}).train(loaded.model, layers, functools.partial(put, loaded.model), windows))
    assert losses[-1] < 0.9 * losses[0] and len(held) == 4 * len(layers) and not any(held)


@pytest.mark.parametrize("rotate", [True, False])
def test_quip_on_inputs_of_zeros_rounds_to_the_nearest(rotate: bool) -> None:
    weight = 0.02 * torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    q = build("quip", {"rotate": rotate}).quantize(weight, InputStatistics.of(torch.zeros(20, 64)))
    plain = build("quip", {"rotate": rotate, "feedback": False}).quantize(weight, None)
    assert (q.dequantize() - weight).norm() < 1.05 * (plain.dequantize() - weight).norm()
    with pytest.raises(ValueError, match="NaN or infinities"):
        build("quip", {"rotate": rotate}).quantize(weight, InputStatistics.of(torch.full((20, 64), torch.nan)))


@pytest.mark.parametrize(
    ("layer", "clipped"),
    [
        ("q_proj", False),
        ("k_proj", False),
        ("qkv_proj", False),
        ("query_key_value", False),
        ("c_attn", False),
        ("v_proj", True),
        ("o_proj", True),
        ("c_fc", True),
    ],
)
def test_awq_clips_no_queries_and_keys_also_where_they_are_one_matrix_with_the_values(layer: str, clipped: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    weight, inputs = 0.02 * torch.randn(96, 128, generator=draw), torch.randn(200, 128, generator=draw)
    weight[:, 3] *= 4
    scales = [build("awq", {"clip": clip}).quantize(weight, InputStatistics.of(inputs), f"layers.0.self_attn.{layer}").scale for clip in (True, False)]
    assert torch.equal(*scales) == (not clipped)


def test_group_that_does_not_divide_is_refused_with_a_reason() -> None:
    assert "does not divide" in build("rtn", {"group_size": 128}).refuses((64, 80))
    assert build("rtn", {"granularity": "channel"}).refuses((64, 80)) == ""
