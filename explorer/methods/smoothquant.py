"""SmoothQuant: int8 weights and inputs after moving the size of the input outliers into the weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from explorer.methods import Method, amount, choice
from explorer.qtensor import QuantizedTensor, quantize_affine
from kernels.op import LIMIT, Activation


@dataclass(frozen=True)
class SmoothQuant(Method):
    """Inputs are hard to round because a few channels are huge; weights are easy. Dividing channel j of the inputs by s_j and multiplying the
    weights by it changes nothing in the product but moves the difficulty: s_j = max|x_j|^alpha / max|w_j|^(1 - alpha). Then both are
    int8 and the product runs on integer units.
    """

    name: ClassVar[str] = "smoothquant"
    title: ClassVar[str] = "SmoothQuant W8A8"
    short: ClassVar[str] = "SmoothQuant"
    paper: ClassVar[str] = "Xiao et al. 2022, arXiv 2211.10438, section 4"
    needs_inputs: ClassVar[bool] = True

    alpha: float = amount(0.5, 0.0, 1.0, title="Alpha", help="How much of the difficulty moves into the weights; 0.5, or 0.75 to 0.85 for harder models.")
    granularity: str = choice("channel", "tensor", "channel", title="Weight scales", help="How many weights share one scale.")
    activation: str = choice("token", "token", "tensor", "static", title="Inputs", help="Scale per token, per tensor, or fixed from the calibration text.")

    def quantize(self, weight: Tensor, inputs: Tensor | None, layer: str = "") -> QuantizedTensor:
        if inputs is None or inputs.shape[0] == 0:
            raise ValueError("SmoothQuant needs calibration inputs of the layer, [M, K]")
        peaks = inputs.float().abs().amax(0).clamp(min=1e-5)
        scale = (peaks.pow(self.alpha) / weight.abs().amax(0).clamp(min=1e-5).pow(1 - self.alpha)).clamp(min=1e-5)
        scale = 1 / (1 / scale).bfloat16().float()  # what the layer multiplies by is kept in bfloat16
        static = (peaks / scale).max().item() / LIMIT["int8"]
        activation = Activation("int8", "tensor", static) if self.activation == "static" else Activation("int8", self.activation)
        return dataclasses.replace(quantize_affine(weight * scale, 8, self.granularity, 0, symmetric=True), channel_scale=scale, activation=activation)
