"""Round to nearest: the simplest quantizer, and the yardstick for the others."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from explorer.input_statistics import InputStatistics
from explorer.methods import Method, choice
from explorer.qtensor import QuantizedTensor, quantize_affine
from explorer.rotation import Rotation


@dataclass(frozen=True)
class Rtn(Method):
    """Each weight goes to the nearest point of a uniform grid; a scale (and, when asymmetric, a zero-point) places the grid over the
    values that share it. The fewer weights share a scale, the less one large value stretches the grid of all others, and the more bits
    the scales cost. No data is needed and nothing is corrected afterwards.
    """

    name: ClassVar[str] = "rtn"
    title: ClassVar[str] = "Round to nearest (RTN)"
    short: ClassVar[str] = "RTN"
    paper: ClassVar[str] = "Jacob et al. 2018, arXiv 1712.05877, section 2.1"

    bits: int = choice(4, 2, 3, 4, 5, 6, 7, 8, title="Bits", help="A code of b bits names 2^b grid points.")
    granularity: str = choice("group", "tensor", "channel", "group", title="Granularity", help="How many weights share one scale.")
    group_size: int = choice(64, 32, 64, 128, title="Group size", help="Weights along the inputs that share a scale.", when=("granularity", ("group",)))
    symmetric: bool = choice(True, title="Symmetric", help="Symmetric: zero is the middle code. Asymmetric: the grid spans min to max.", off="asymmetric")
    full_range: bool = choice(
        False, title="Full range", when=("symmetric", (True,)),
        help="Scale = largest weight / (2^b - 1) * 2, as GPTQ's authors' code has it: every code has a use. Off: / (2^(b-1) - 1), the lowest code has none.",
    )  # fmt: skip
    clip: bool = choice(False, title="MSE clip", help="Search the range with the least |error|^2.4 instead of min to max.")
    rotate: bool = choice(False, title="Rotated", help="Turn inputs and weights by a Hadamard matrix first, so that no channel stands out.")

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        rotation = Rotation.of(weight.shape[1], weight.device) if self.rotate else None
        weight = rotation.apply(weight) if rotation else weight
        q = quantize_affine(weight, self.bits, self.granularity, self.group_size, self.symmetric, self.clip, self.full_range)
        return dataclasses.replace(q, rotation=rotation)
