"""Absmax int8: the textbook form of symmetric 8-bit quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from explorer.input_statistics import InputStatistics
from explorer.methods import Method, choice
from explorer.qtensor import QuantizedTensor, quantize_affine


@dataclass(frozen=True)
class Absmax(Method):
    """The largest magnitude becomes 127 and everything else scales with it: q = round(127 w / max|w|). Zero stays zero and no code is spent
    on an offset, but one large weight makes the steps coarse for all that share its scale. That is why one scale a row beats one a tensor.
    """

    name: ClassVar[str] = "absmax"
    title: ClassVar[str] = "Absmax int8"
    short: ClassVar[str] = "absmax int8"
    paper: ClassVar[str] = "Dettmers et al. 2022, arXiv 2208.07339, section 2.1"

    granularity: str = choice("channel", "tensor", "channel", title="Granularity", help="How many weights share one scale.")

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        return quantize_affine(weight, 8, self.granularity, 0, symmetric=True)
