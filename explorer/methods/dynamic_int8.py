"""Dynamic int8: int8 weights, and inputs rounded to int8 on the fly; what CPUs with integer dot products run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from explorer.input_statistics import InputStatistics
from explorer.methods import Method, choice
from explorer.qtensor import QuantizedTensor, quantize_affine
from explorer.rotation import Rotation
from kernels.op import Activation


@dataclass(frozen=True)
class DynamicInt8(Method):
    """Inputs get their scale from the values at hand, token by token, so nothing is calibrated and nothing is clipped. The naive W8A8: it is
    what LLM.int8() and SmoothQuant repair when some channels hold outliers. Rotated, no channel does (QuaRot, arXiv 2404.00456, section 4).
    """

    name: ClassVar[str] = "dynamic_int8"
    title: ClassVar[str] = "Dynamic int8 (naive W8A8)"
    short: ClassVar[str] = "dynamic int8"
    paper: ClassVar[str] = "Yao et al. 2022, ZeroQuant, arXiv 2206.01861, section 4.1"

    granularity: str = choice("channel", "tensor", "channel", title="Weight scales", help="How many weights share one scale.")
    activation: str = choice("token", "token", "tensor", title="Inputs", help="Scale per token or per tensor.")
    rotate: bool = choice(False, title="Rotated", help="Turn inputs and weights by a Hadamard matrix first, so that no channel stands out.")

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        rotation = Rotation.of(weight.shape[1], weight.device) if self.rotate else None
        rounded = quantize_affine(weight if rotation is None else rotation.apply(weight), 8, self.granularity, 0, symmetric=True)
        return dataclasses.replace(rounded, rotation=rotation, activation=Activation("int8", self.activation))
