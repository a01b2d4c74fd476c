"""NF4: a 16-entry codebook with equal probability mass under a normal distribution, and optionally double-quantized scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explorer.input_statistics import InputStatistics
from explorer.methods import Method, choice
from explorer.qtensor import NestedScale, QuantizedTensor, group_view, quantize_codebook

# QLoRA, appendix E: the data type's exact values.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Nf4(Method):
    """Trained weights look normal, so the 16 codes sit where a normal distribution has equal mass: dense near zero, sparse in the tails.
    Every block of 64 weights is divided by its largest magnitude and each value goes to the nearest code. Double quantization stores
    those block scales in 8 bits as well and saves 0.37 bits a weight.
    """

    name: ClassVar[str] = "nf4"
    title: ClassVar[str] = "NF4 (QLoRA's 4-bit NormalFloat)"
    short: ClassVar[str] = "NF4"
    paper: ClassVar[str] = "Dettmers et al. 2023, arXiv 2305.14314, section 3"

    group_size: int = choice(64, 32, 64, 128, title="Block size", help="Weights that share one scale; the paper's value is 64.")
    double_quant: bool = choice(False, title="Double quantization", help="Store the block scales in 8 bits too.")

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        code = torch.tensor(NF4, device=weight.device)
        absmax = group_view(weight, "group", self.group_size).abs().amax(-1)
        safe = torch.where(absmax > 0, absmax, 1.0)
        nested = NestedScale.of(absmax) if self.double_quant else None
        scale = nested.scales().reshape(absmax.shape) if nested else safe
        return QuantizedTensor(quantize_codebook(weight, safe, code, 4).codes, scale, 4, codebook=code, nested=nested)
