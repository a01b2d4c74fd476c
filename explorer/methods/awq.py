"""AWQ: scales up the input channels that matter before rounding, and searches the clipping range, both by the layer's output error."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explorer.methods import Method, choice
from explorer.qtensor import QuantizedTensor, group_view, quantize_affine

RATIOS, CLIPS, SHRINK, CLIP_TOKENS = 20, 20, 0.5, 512


@dataclass(frozen=True)
class Awq(Method):
    """A weight matters as much as the inputs it meets, and few input channels are large. AWQ multiplies the weights of channel j by s_j and
    divides its inputs by it: the product is the same, but the rounding error of the important channels shrinks. s_j = mean|x_j|^r, and r is
    found by trying 20 values on calibration text. Unlike GPTQ no weight is moved to make up for another, so it overfits the text less.
    """

    name: ClassVar[str] = "awq"
    title: ClassVar[str] = "AWQ"
    short: ClassVar[str] = "AWQ"
    paper: ClassVar[str] = "Lin et al. 2023, arXiv 2306.00978, section 3.2"
    needs_inputs: ClassVar[bool] = True

    bits: int = choice(4, 2, 3, 4, 5, 6, 7, 8, title="Bits", help="A code of b bits names 2^b grid points.")
    group_size: int = choice(64, 32, 64, 128, title="Group size", help="Weights along the inputs that share a scale.")
    symmetric: bool = choice(False, title="Symmetric", help="The authors use asymmetric grids.")
    clip: bool = choice(True, title="Clip search", help="Also search how far to shrink each group's range (not for queries and keys).", off="no clip")

    def quantize(self, weight: Tensor, inputs: Tensor | None, layer: str = "") -> QuantizedTensor:
        if inputs is None or inputs.shape[0] == 0:
            raise ValueError("AWQ needs calibration inputs of the layer, [M, K]")
        x = inputs.float()
        scale = self._search_scale(weight, x)
        scaled = weight * scale
        if self.clip and not layer.endswith(("q_proj", "k_proj")):
            scaled = self._search_clip(scaled, x[:: max(1, len(x) // CLIP_TOKENS)] / scale)
        return dataclasses.replace(self._round(scaled), channel_scale=scale)

    def _round(self, weight: Tensor) -> QuantizedTensor:
        return quantize_affine(weight, self.bits, "group", self.group_size, self.symmetric)

    def _search_scale(self, weight: Tensor, x: Tensor) -> Tensor:
        """[K]: the channel scale of least ||(W' - W) X^T||. The squared norm is tr(D G D^T) with the inputs' Gram matrix G."""
        gram, magnitude = x.T @ x, x.abs().mean(0)
        best, least = torch.ones_like(magnitude), torch.inf
        for step in range(RATIOS):
            scale = magnitude.pow(step / RATIOS).clamp(min=1e-4)
            scale = scale / (scale.max() * scale.min()).sqrt()
            scale = 1 / (1 / scale).bfloat16().float()  # what the layer multiplies by is kept in bfloat16
            difference = self._round(weight * scale).dequantize() / scale - weight
            loss = ((difference @ gram) * difference).sum().item()
            if loss < least:
                best, least = scale, loss
        return best

    def _search_clip(self, weight: Tensor, x: Tensor) -> Tensor:
        """The weight [N, K] clamped group by group to the share of its range that gives the least output error of that group."""
        groups = group_view(weight, "group", self.group_size)
        inputs = x.reshape(len(x), -1, self.group_size)
        gram = torch.einsum("tgi,tgj->gij", inputs, inputs)
        limit = groups.abs().amax(-1, keepdim=True)
        best, least = limit, torch.full_like(limit, torch.inf)
        for step in range(int(SHRINK * CLIPS)):
            bound = limit * (1 - step / CLIPS)
            clamped = groups.clamp(-bound, bound).reshape(weight.shape)
            difference = group_view(self._round(clamped).dequantize(), "group", self.group_size) - groups
            loss = torch.einsum("ngi,gij,ngj->ng", difference, gram, difference).unsqueeze(-1)
            best, least = torch.where(loss < least, bound, best), torch.minimum(loss, least)
        return groups.clamp(-best, best).reshape(weight.shape)
