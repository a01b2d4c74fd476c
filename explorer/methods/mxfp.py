"""MX block floats: 32 weights share a power of two, each is a tiny float (OCP Microscaling Formats 1.0)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explorer.floats import FLOATS, quantize_float
from explorer.methods import Method, choice
from explorer.qtensor import QuantizedTensor, group_view

BLOCK = 32


@dataclass(frozen=True)
class Mxfp(Method):
    """Each block of 32 shares one scale that is a power of two and costs 8 bits; elements are floats of 4 to 8 bits. The scale cannot follow
    the largest weight closely (it may be off by almost a factor of two), which is the price for hardware that multiplies by shifting. Weights
    only: inputs stay in 16 bits.
    """

    name: ClassVar[str] = "mxfp"
    title: ClassVar[str] = "MX block float (MXFP4, 6, 8), weights only"
    short: ClassVar[str] = "MX"
    paper: ClassVar[str] = "OCP Microscaling Formats (MX) 1.0, section 5; Rouhani et al. 2023, arXiv 2310.10537"

    element: str = choice("e2m1", "e2m1", "e2m3", "e3m2", "e4m3", "e5m2", title="Element", help="Exponent and mantissa bits: e2m1 is MXFP4, e4m3 MXFP8.")

    def quantize(self, weight: Tensor, inputs: Tensor | None, layer: str = "") -> QuantizedTensor:
        table = FLOATS[self.element]
        absmax = group_view(weight, "group", BLOCK).abs().amax(-1)
        largest = int(torch.log2(table[-1]))  # exponent of the largest element
        exponent = torch.where(absmax > 0, absmax.log2().floor() - largest, 0.0).clamp(-127, 127)
        return quantize_float(weight, torch.exp2(exponent), self.element, scale_bits=8)

    def refuses(self, shape: tuple[int, int], layer: str = "") -> str:
        return f"blocks of {BLOCK} do not divide its {shape[1]} inputs" if shape[1] % BLOCK else ""
