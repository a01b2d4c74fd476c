"""Ternary: every weight becomes -1, 0 or +1 times a scale, after training; shown failing, because it was not trained for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explorer.input_statistics import InputStatistics
from explorer.methods import Method, choice
from explorer.qtensor import QuantizedTensor, group_view


@dataclass(frozen=True)
class Ternary(Method):
    """BitNet b1.58 rounds w / mean|w| to -1, 0 or +1. A model trained with that in its forward pass works well; one that is rounded
    afterwards breaks. Running it here shows the difference between a format and a training method.
    """

    name: ClassVar[str] = "ternary"
    title: ClassVar[str] = "Ternary (BitNet's rounding, without its training)"
    short: ClassVar[str] = "ternary"
    paper: ClassVar[str] = "Ma et al. 2024, arXiv 2402.17764, section 2"

    granularity: str = choice("tensor", "tensor", "channel", "group", title="Granularity", help="How many weights share one scale; BitNet has one a tensor.")
    group_size: int = choice(64, 32, 64, 128, title="Group size", help="Weights along the inputs that share a scale.", when=("granularity", ("group",)))

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        groups = group_view(weight, self.granularity, self.group_size)
        scale = groups.abs().mean(-1)
        scale = torch.where(scale > 0, scale, 1.0).bfloat16()
        codes = (groups / scale.float().unsqueeze(-1)).round().clamp(-1, 1) + 2  # codes 1, 2, 3 of two bits: 2 means 0
        return QuantizedTensor(codes.to(torch.uint8).reshape(weight.shape), scale, 2)
