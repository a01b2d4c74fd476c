"""FP8: weights and inputs as 8-bit floats, with scales per tensor, per row or per block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explorer.floats import quantize_float
from explorer.input_statistics import InputStatistics
from explorer.methods import Method, choice
from explorer.qtensor import QuantizedTensor
from kernels.op import LIMIT, Activation

BLOCK = 128


@dataclass(frozen=True)
class Fp8(Method):
    """An 8-bit float keeps about the same relative precision over many orders of magnitude, so outliers cost little and one scale for a whole
    tensor is nearly enough. E4M3 has three mantissa bits and reaches 448, E5M2 has two and reaches 57344. Inputs are rounded too: then the
    product runs on float8 units at twice the speed of 16 bits. With a scale for every 128 x 128 weights, inputs have one for every token and 128 channels.
    """

    name: ClassVar[str] = "fp8"
    title: ClassVar[str] = "FP8 weights and inputs"
    short: ClassVar[str] = "FP8"
    paper: ClassVar[str] = "Micikevicius et al. 2022, arXiv 2209.05433; blocks: DeepSeek-AI 2024, arXiv 2412.19437, section 3.3.2"
    needs_inputs: ClassVar[bool] = True

    element: str = choice("e4m3", "e4m3", "e5m2", title="Element", help="Exponent and mantissa bits.")
    granularity: str = choice("channel", "tensor", "channel", "block", title="Granularity", help="One scale for the tensor, a row, or a 128 x 128 block.")
    activation: str = choice(
        "token", "none", "token", "block", "tensor", "static", title="Inputs",
        help="16 bits, or float8 with a scale per token, per token and 128 inputs (block; what block weights take for token), per tensor, or fixed.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if (self.granularity, self.activation) == ("block", "token"):
            object.__setattr__(self, "activation", "block")

    def check(self) -> str:
        if self.granularity == "block" and self.activation in ("tensor", "static"):
            return f"fp8: block weights take inputs in blocks or in 16 bits; choose block or none, not {self.activation}, or another granularity."
        return ""

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        absmax = weight.abs().amax(-1, keepdim=True)
        if self.granularity == "tensor":
            absmax = absmax.amax().view(1, 1)
        elif self.granularity == "block":
            absmax = weight.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).abs().amax((1, 3))
        scale = torch.where(absmax > 0, absmax / LIMIT[self.element], 1.0)
        return quantize_float(weight, scale, self.element, activation=self._activation(inputs))

    def _activation(self, inputs: InputStatistics | None) -> Activation | None:
        if self.activation == "none":
            return None
        if self.activation == "static":
            return Activation(self.element, "tensor", max(inputs.absmax.max().item() / LIMIT[self.element], 1e-12))
        return Activation(self.element, self.activation)

    def reads_inputs(self) -> bool:
        return self.activation == "static"

    def refuses(self, shape: tuple[int, int], layer: str = "") -> str:
        if self.granularity == "block" and (shape[0] % BLOCK or shape[1] % BLOCK):
            return f"blocks of {BLOCK} do not divide {shape[0]} x {shape[1]}"
        return f"blocks of {BLOCK} do not divide its {shape[1]} inputs" if self.activation == "block" and shape[1] % BLOCK else ""
