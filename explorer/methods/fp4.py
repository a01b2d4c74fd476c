"""FP4: bitsandbytes' 4-bit float with block scales, NF4's sibling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explorer.input_statistics import InputStatistics
from explorer.methods import Method, choice
from explorer.qtensor import NestedScale, QuantizedTensor, quantize_codebook

# Sign, two exponent bits, one mantissa bit, scaled so that the largest value is 1.
MAGNITUDES = (0.0, 0.0052083333, 0.1666666667, 0.25, 0.3333333333, 0.5, 0.6666666667, 1.0)
FP4 = (*(-m for m in reversed(MAGNITUDES[1:])), *MAGNITUDES)


@dataclass(frozen=True)
class Fp4(Method):
    """A 4-bit float: values lie densely near zero and ever wider apart above, a fixed ratio of step to size. That fits data that spans orders
    of magnitude; trained weights do not, so NF4, whose values follow the normal distribution, usually wins at the same cost.
    """

    name: ClassVar[str] = "fp4"
    title: ClassVar[str] = "FP4 (bitsandbytes)"
    short: ClassVar[str] = "FP4"
    paper: ClassVar[str] = "Dettmers et al. 2023, arXiv 2305.14314, section 4"

    group_size: int = choice(64, 32, 64, 128, title="Block size", help="Weights that share one scale.")
    double_quant: bool = choice(False, title="Double quantization", help="Store the block scales in 8 bits too.")

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        absmax = weight.reshape(weight.shape[0], -1, self.group_size).abs().amax(-1)
        nested = NestedScale.of(absmax) if self.double_quant else None
        book = torch.tensor([FP4[0], *FP4], device=weight.device)  # 15 different values; the 16th code is minus zero and stays unused
        book[0] = -torch.inf
        q = quantize_codebook(weight, absmax, book, 4)
        book[0] = FP4[0]
        scale = nested.scales().reshape(absmax.shape) if nested else torch.where(absmax > 0, absmax, 1.0)
        return QuantizedTensor(q.codes, scale, 4, codebook=book, nested=nested)
