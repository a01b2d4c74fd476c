"""NVFP4: blocks of 16 four-bit floats with an 8-bit float scale, and one scale for the tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explorer.floats import quantize_float
from explorer.input_statistics import InputStatistics
from explorer.methods import Method, choice
from explorer.qtensor import QuantizedTensor, group_view
from kernels.op import Activation

BLOCK = 16


@dataclass(frozen=True)
class Nvfp4(Method):
    """Like MXFP4, but blocks are half as long and their scale is an E4M3 float, which follows the largest weight to within 6% instead of a
    factor of two. E4M3 has little range, so a float32 scale for the whole tensor brings the block scales into it; layers that read the same input share
    it, because programs that run them as one product keep one. Blackwell multiplies it with inputs in the same format: their block scales are found
    for each token, the scale for the tensor on calibration text.
    """

    name: ClassVar[str] = "nvfp4"
    title: ClassVar[str] = "NVFP4"
    short: ClassVar[str] = "NVFP4"
    paper: ClassVar[str] = "Alvarez et al. 2025, Introducing NVFP4 for Efficient and Accurate Low-Precision Inference"
    needs_inputs: ClassVar[bool] = True

    activation: str = choice("none", "none", "block", title="Inputs", help="16 bits, or NVFP4 too (W4A4): blocks of 16 under one scale that calibration finds.")

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        return _rounded(weight, _unit(weight), self._activation(inputs))

    def quantize_together(self, weights: dict[str, Tensor], inputs: InputStatistics | None, rows: Tensor | None) -> Iterator[tuple[str, QuantizedTensor]]:
        unit = torch.stack([_unit(weight) for weight in weights.values()]).amax()
        activation = self._activation(inputs)
        for layer, weight in weights.items():
            yield layer, _rounded(weight.float(), unit, activation)

    def _activation(self, inputs: InputStatistics | None) -> Activation | None:
        return None if self.activation == "none" else Activation("e2m1", "nvfp4", max(_unit(inputs.absmax).item(), 1e-12))

    def reads_inputs(self) -> bool:
        return self.activation == "block"

    def refuses(self, shape: tuple[int, int], layer: str = "") -> str:
        return f"blocks of {BLOCK} do not divide its {shape[1]} inputs" if shape[1] % BLOCK else ""


def _unit(weight: Tensor) -> Tensor:
    """The scale of all scales [] float32 of weights [N, K], or of the largest inputs [K]: with it the largest block scale is the largest E4M3 number."""
    return (weight.abs().amax().float() / (448 * 6)).clamp(min=torch.finfo(torch.float32).tiny)


def _rounded(weight: Tensor, unit: Tensor, activation: Activation | None) -> QuantizedTensor:
    absmax = group_view(weight, "group", BLOCK).abs().amax(-1)
    block = (absmax / 6 / unit).clamp(max=448).to(torch.float8_e4m3fn).float()
    return quantize_float(weight, block * unit, "e2m1", scale_bits=8, extra_bits=32, scale_unit=unit, activation=activation)
