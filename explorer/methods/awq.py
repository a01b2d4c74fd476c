"""AWQ: scales up the input channels that matter before rounding, and searches the clipping range, both by the layer's output error."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explorer.input_statistics import InputStatistics
from explorer.methods import Method, choice
from explorer.qtensor import QuantizedTensor, affine_parameters, affine_values, group_view, quantize_affine

RATIOS, CLIPS, SHRINK = 20, 20, 0.5
STRIP = 512  # columns of D G that are held at once
UNCLIPPED = ("q_proj", "k_proj", "qkv_proj", "query_key_value", "Wqkv", "c_attn")  # layers of queries or keys, alone or in one matrix with the values


@dataclass(frozen=True)
class Awq(Method):
    """A weight matters as much as the inputs it meets, and few input channels are large. AWQ multiplies the weights of channel j by s_j and
    divides its inputs by it: the product is the same, but the rounding error of the important channels shrinks. s_j = mean|x_j|^r, and r is
    found by trying 20 values on calibration text. The division costs nothing where the operator before takes it: a normalisation's weight, or the
    rows of the layer before. Unlike GPTQ no weight is moved to make up for another, so it overfits the text less.
    """

    name: ClassVar[str] = "awq"
    title: ClassVar[str] = "AWQ"
    short: ClassVar[str] = "AWQ"
    paper: ClassVar[str] = "Lin et al. 2023, arXiv 2306.00978, section 3.2"
    needs_inputs: ClassVar[bool] = True

    bits: int = choice(4, 2, 3, 4, 5, 6, 7, 8, title="Bits", help="A code of b bits names 2^b grid points.")
    group_size: int = choice(64, 32, 64, 128, title="Group size", help="Weights along the inputs that share a scale.")
    symmetric: bool = choice(False, title="Symmetric", help="The authors use asymmetric grids.")
    clip: bool = choice(
        True,
        title="Clip search",
        help="Also search how far to shrink each group's range (not for queries and keys, nor for values in one matrix with them).",
        off="no clip",
    )

    scales: str = choice(
        "folded", "folded", "own", title="Input scales",
        help="Folded: one for all layers that read the same inputs, where the operator before can take it, as a checkpoint needs. Own: one for each layer.",
    )  # fmt: skip

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        known = self._checked(inputs)
        return self._rounded(weight, known, self._search_scale([(self, weight)], known, torch.arange(weight.shape[1], device=weight.device)), layer)

    def quantize_together(self, weights: dict[str, Tensor], inputs: InputStatistics | None, rows: Tensor | None) -> Iterator[tuple[str, QuantizedTensor]]:
        """One scale for all, least in the sum of their errors; none where no operator before could take it."""
        if self.scales == "own":
            yield from super().quantize_together(weights, inputs, rows)
            return
        yield from self._sharing(dict.fromkeys(weights, self), weights, inputs, rows)

    @classmethod
    def quantize_each(
        cls, own: Mapping[str, Awq], weights: dict[str, Tensor], inputs: InputStatistics | None, rows: Tensor | None
    ) -> Iterator[tuple[str, QuantizedTensor]]:
        """Layers of different widths share a scale, too."""
        shared = all(method.scales == "folded" for method in own.values())
        yield from (cls._sharing if shared else super().quantize_each)(own, weights, inputs, rows)

    @classmethod
    def _sharing(
        cls, own: Mapping[str, Awq], weights: dict[str, Tensor], inputs: InputStatistics | None, rows: Tensor | None
    ) -> Iterator[tuple[str, QuantizedTensor]]:
        known = cls._checked(inputs)
        scale = None if rows is None else cls._search_scale([(own[layer], weight) for layer, weight in weights.items()], known, rows)
        for layer, weight in weights.items():
            yield layer, dataclasses.replace(own[layer]._rounded(weight.float(), known, scale, layer), channel_bits=0)

    def reads_gram(self, layer: str) -> bool:
        return True

    @staticmethod
    def _checked(inputs: InputStatistics | None) -> InputStatistics:
        if inputs is None or inputs.gram is None:
            raise ValueError("AWQ needs the Gram matrix of the layer's calibration inputs")
        return inputs

    def _rounded(self, weight: Tensor, inputs: InputStatistics, scale: Tensor | None, layer: str) -> QuantizedTensor:
        scaled = weight if scale is None else weight * scale
        if self.clip and not layer.endswith(UNCLIPPED):
            scaled = self._search_clip(scaled, group_gram(inputs.gram, self.group_size, scale))
        return dataclasses.replace(self._round(scaled), channel_scale=scale)

    def _round(self, weight: Tensor) -> QuantizedTensor:
        return quantize_affine(weight, self.bits, "group", self.group_size, self.symmetric)

    @staticmethod
    def _search_scale(weights: list[tuple[Awq, Tensor]], inputs: InputStatistics, rows: Tensor) -> Tensor:
        """[K]: the channel scale of least sum of ||(W' - W) X^T||^2, each W' rounded by its own method, equal in channels of one row.

        The authors compare the outputs of what holds the layers, such as the whole attention. On the bundled model that was no better at 4, 3 and 2
        bits than the sum, within what another calibration text changes, and took twice as long.
        """
        magnitude = inputs.mean_abs
        magnitude = (torch.zeros_like(magnitude).index_add(0, rows, magnitude) / rows.bincount(minlength=len(rows)).clamp(min=1))[rows]
        best, least = torch.ones_like(magnitude), torch.inf
        for step in range(RATIOS):
            scale = magnitude.pow(step / RATIOS).clamp(min=1e-4)
            scale = scale / (scale.max() * scale.min()).sqrt()
            scale = 1 / (1 / scale).bfloat16().float()  # what the layer multiplies by is kept in bfloat16
            moved = (method._rescaled(weight.float(), scale).sub_(weight) for method, weight in weights)
            loss = sum(output_error(difference, inputs.gram) for difference in moved)
            if loss < least:
                best, least = scale, loss
        return best

    def _rescaled(self, weight: Tensor, scale: Tensor) -> Tensor:
        """The weight [N, K] that acts on the layer's own inputs after rounding under a channel scale."""
        return self._rounded_values(weight * scale).div_(scale)

    def _rounded_values(self, weight: Tensor) -> Tensor:
        groups = group_view(weight, "group", self.group_size)
        return affine_values(groups, *affine_parameters(groups, self.bits, self.symmetric), self.bits).view_as(weight)

    def _search_clip(self, weight: Tensor, gram: Tensor) -> Tensor:
        """The weight [N, K] clamped group by group to the share of its range that gives the least output error of that group; gram as `group_gram`."""
        groups = group_view(weight, "group", self.group_size)
        limit = groups.abs().amax(-1, keepdim=True)
        best, least = limit, torch.full_like(limit, torch.inf)
        for step in range(int(SHRINK * CLIPS)):
            bound = limit * (1 - step / CLIPS)
            clamped = groups.clamp(-bound, bound).reshape(weight.shape)
            difference = group_view(self._rounded_values(clamped), "group", self.group_size).sub_(groups)
            loss = torch.einsum("ngi,gij,ngj->ng", difference, gram, difference).unsqueeze(-1)
            best, least = torch.where(loss < least, bound, best), torch.minimum(loss, least)
        return groups.clamp(-best, best).reshape(weight.shape)


def output_error(difference: Tensor, gram: Tensor) -> float:
    """||D X^T||^2 = tr(D G D^T) for D [N, K] and G = X^T X [K, K]. G is symmetric, so what lies above its diagonal counts twice and what lies below is
    not multiplied: little more than half of the product, as quick as D X^T itself where K is twice the number of inputs.
    """
    total = difference.new_zeros(())
    for start in range(0, len(gram), STRIP):
        part = difference[:, start : start + STRIP]
        along = part @ gram[start : start + STRIP, start : start + STRIP]
        along.addmm_(difference[:, :start], gram[:start, start : start + STRIP], alpha=2)
        total += along.mul_(part).sum()
    return total.item()


def group_gram(gram: Tensor, size: int, scale: Tensor | None) -> Tensor:
    """[K/size, size, size]: the Gram matrix of each group's inputs, cut out of that of all [K, K]; of inputs divided by a channel scale [K]."""
    blocks = gram.unflatten(0, (-1, size)).unflatten(2, (-1, size)).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    inverse = torch.ones_like(gram[0]) if scale is None else 1 / scale
    return blocks * inverse.view(-1, size, 1) * inverse.view(-1, 1, size)
