"""HQQ: half-quadratic quantization, a few seconds of optimisation on the weights alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explorer.input_statistics import InputStatistics
from explorer.methods import Method, choice
from explorer.qtensor import QuantizedTensor, group_view

NORM, BETA, KAPPA, ITERATIONS = 0.7, 10.0, 1.01, 20


@dataclass(frozen=True)
class Hqq(Method):
    """Least squares lets a few large weights decide the grid. HQQ minimises the p-norm of the error with p = 0.7, which forgives large errors
    on outliers and fits the many small weights well. It alternates between a shrinkage step that finds the outlier part of the error and
    a closed form for the zero-point. No calibration text, so there is nothing to overfit. Zeros keep their fraction at every width; the authors' own
    configuration rounds those of 4-bit codes to integers, for kernels that want them so.
    """

    name: ClassVar[str] = "hqq"
    title: ClassVar[str] = "HQQ"
    short: ClassVar[str] = "HQQ"
    paper: ClassVar[str] = "Badri and Shaji 2023, Half-Quadratic Quantization of Large Machine Learning Models"

    bits: int = choice(4, 2, 3, 4, 5, 6, 8, title="Bits", help="A code of b bits names 2^b grid points.")
    group_size: int = choice(64, 32, 64, 128, title="Group size", help="Weights along the inputs that share a scale and a zero.")

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        groups = group_view(weight, "group", self.group_size)
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        top = 2**self.bits - 1
        width = high - low
        scale = (torch.where(width > 1e-4, width, float(top)) / top).clamp(min=1 / 2e4).bfloat16().float()
        zero = self._search(groups, scale, -low / scale, top).half()
        codes = (groups / scale + zero.float()).round().clamp(0, top).to(torch.uint8).reshape(weight.shape)
        return QuantizedTensor(codes, scale.squeeze(-1).bfloat16(), self.bits, zero.squeeze(-1), zero_bits=16)

    @staticmethod
    def _search(groups: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
        """The zero [N, groups, 1] after at most ITERATIONS half-quadratic steps; stops when the mean error grows."""
        beta, least, steps = BETA, torch.inf, groups / scale
        for _ in range(ITERATIONS):
            away = (steps + zero).round_().clamp_(0, top).sub_(steps)  # of the codes, in steps
            error = (zero - away).mul_(scale)
            size = error.abs()
            if not (mean := size.mean().item()) < least:
                break
            least = mean
            outlier = size.pow(NORM - 1).div_(-beta).add_(size).clamp_(min=0).copysign_(error)
            zero = away.mean(-1, keepdim=True) + outlier.mean(-1, keepdim=True) / scale  # mean of code - (weight - outlier) / scale
            beta *= KAPPA
        return zero
