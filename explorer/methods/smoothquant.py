"""SmoothQuant: int8 weights and inputs after moving the size of the input outliers into the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explorer.input_statistics import InputStatistics
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

    scales: str = choice(
        "folded", "folded", "own", title="Input scales",
        help="Folded: one for all layers that read the same inputs, where the operator before can take it, as a checkpoint needs. Own: one for each layer.",
    )  # fmt: skip

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        peaks = self._peaks(inputs)
        return self._rounded(weight, peaks, self._scale([weight], peaks, torch.arange(len(peaks), device=weight.device)))

    def quantize_together(self, weights: dict[str, Tensor], inputs: InputStatistics | None, rows: Tensor | None) -> Iterator[tuple[str, QuantizedTensor]]:
        """One scale for all, from their largest weights, as in the authors' code; none where no operator before could take it."""
        if self.scales == "own":
            yield from super().quantize_together(weights, inputs, rows)
            return
        peaks = self._peaks(inputs)
        scale = None if rows is None else self._scale(list(weights.values()), peaks, rows)
        for layer, weight in weights.items():
            yield layer, dataclasses.replace(self._rounded(weight.float(), peaks, scale), channel_bits=0)

    def _peaks(self, inputs: InputStatistics | None) -> Tensor:
        if inputs is None:
            raise ValueError("SmoothQuant needs calibration inputs of the layer")
        return inputs.absmax.clamp(min=1e-5)

    def _scale(self, weights: list[Tensor], peaks: Tensor, rows: Tensor) -> Tensor:
        """[K], equal in channels of one row."""
        largest = torch.stack([weight.abs().amax(0).float() for weight in weights]).amax(0).clamp(min=1e-5)
        peaks, largest = (torch.zeros_like(each).scatter_reduce(0, rows, each, "amax")[rows] for each in (peaks, largest))
        scale = (peaks.pow(self.alpha) / largest.pow(1 - self.alpha)).clamp(min=1e-5)
        return 1 / (1 / scale).bfloat16().float()  # what the layer multiplies by is kept in bfloat16

    def _rounded(self, weight: Tensor, peaks: Tensor, scale: Tensor | None) -> QuantizedTensor:
        scaled, reach = (weight, peaks) if scale is None else (weight * scale, peaks / scale)
        static = reach.max().item() / LIMIT["int8"] if self.activation == "static" else None
        activation = Activation("int8", "tensor", static) if self.activation == "static" else Activation("int8", self.activation)
        return dataclasses.replace(quantize_affine(scaled, 8, self.granularity, 0, symmetric=True), channel_scale=scale, activation=activation)
