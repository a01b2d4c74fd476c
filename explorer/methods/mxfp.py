"""MX block floats: 32 weights, or 32 inputs, share a power of two, each is a tiny float (OCP Microscaling Formats 1.0)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explorer.floats import quantize_float
from explorer.input_statistics import InputStatistics
from explorer.methods import Method, choice
from explorer.qtensor import QuantizedTensor, group_view
from kernels.op import Activation, power_of_two

BLOCK = 32


@dataclass(frozen=True)
class Mxfp(Method):
    """Each block of 32 shares one scale that is a power of two and costs 8 bits; elements are floats of 4 to 8 bits. The scale cannot follow
    the largest weight closely (it may be off by almost a factor of two), which is the price for hardware that multiplies by shifting. Units for these
    floats, as Blackwell and MI355 have them, take rounded inputs as well: in blocks by the same rule, found for each token as it comes.
    """

    name: ClassVar[str] = "mxfp"
    title: ClassVar[str] = "MX block float (MXFP4, 6, 8)"
    short: ClassVar[str] = "MX"
    paper: ClassVar[str] = "OCP Microscaling Formats (MX) 1.0, sections 5 and 6.3; Rouhani et al. 2023, arXiv 2310.10537"

    element: str = choice("e2m1", "e2m1", "e2m3", "e3m2", "e4m3", "e5m2", title="Element", help="Exponent and mantissa bits: e2m1 is MXFP4, e4m3 MXFP8.")
    activation: str = choice(
        "none", "none", "block", "e4m3", title="Inputs",
        help="16 bits; blocks of 32 in the weights' element (with e2m1 W4A4, with e4m3 W8A8); or blocks of 32 in e4m3 (with e2m1 W4A8).",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.activation == self.element:
            object.__setattr__(self, "activation", "block")

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        absmax = group_view(weight, "group", BLOCK).abs().amax(-1)
        scale = torch.where(absmax > 0, power_of_two(absmax, self.element), 1.0)
        return quantize_float(weight, scale, self.element, scale_bits=8, activation=self._activation())

    def _activation(self) -> Activation | None:
        return None if self.activation == "none" else Activation(self.element if self.activation == "block" else self.activation, "mx")

    def refuses(self, shape: tuple[int, int], layer: str = "") -> str:
        return f"blocks of {BLOCK} do not divide its {shape[1]} inputs" if shape[1] % BLOCK else ""
