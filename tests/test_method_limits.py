"""Methods at the ends of what their forms allow: combinations, rates and inputs that break what a default never meets."""

from __future__ import annotations

import torch

from explorer.methods import build, label_of
from kernels.op import Activation, multiply


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
