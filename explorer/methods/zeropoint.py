"""Zero-point int8: the textbook form of asymmetric 8-bit quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from explorer.input_statistics import InputStatistics
from explorer.methods import Method, choice
from explorer.qtensor import QuantizedTensor, quantize_affine


@dataclass(frozen=True)
class Zeropoint(Method):
    """The 256 codes span exactly min to max, and an integer zero-point says which of them means 0. Nothing is wasted on a side that holds
    no values, which matters for lopsided data such as activations after a ReLU; weights are nearly symmetric and gain little.
    """

    name: ClassVar[str] = "zeropoint"
    title: ClassVar[str] = "Zero-point int8"
    short: ClassVar[str] = "zero-point int8"
    paper: ClassVar[str] = "Dettmers et al. 2022, arXiv 2208.07339, section 2.1"

    granularity: str = choice("channel", "tensor", "channel", title="Granularity", help="How many weights share one scale and one zero-point.")

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        return quantize_affine(weight, 8, self.granularity, 0, symmetric=False)
