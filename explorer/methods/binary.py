"""Binary: only the sign of every weight is kept, after training; the floor of what post-training rounding can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explorer.input_statistics import InputStatistics
from explorer.methods import Method, choice
from explorer.qtensor import QuantizedTensor, group_view


@dataclass(frozen=True)
class Binary(Method):
    """w becomes sign(w) times the mean magnitude, the scale of least squared error for one bit. Nothing in between survives, not even zero."""

    name: ClassVar[str] = "binary"
    title: ClassVar[str] = "Binary (sign and mean magnitude)"
    short: ClassVar[str] = "binary"
    paper: ClassVar[str] = "Rastegari et al. 2016, XNOR-Net, arXiv 1603.05279, section 3.1"

    granularity: str = choice("channel", "tensor", "channel", "group", title="Granularity", help="How many weights share one scale.")
    group_size: int = choice(64, 32, 64, 128, title="Group size", help="Weights along the inputs that share a scale.", when=("granularity", ("group",)))

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        scale = group_view(weight, self.granularity, self.group_size).abs().mean(-1).bfloat16()
        book = torch.tensor([-1.0, 1.0], device=weight.device)
        return QuantizedTensor((weight >= 0).to(torch.uint8), scale, 1, codebook=book)
