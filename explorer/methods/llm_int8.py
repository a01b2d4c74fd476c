"""LLM.int8(): int8 weights and inputs, except for the few input channels that hold outliers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from explorer.input_statistics import InputStatistics
from explorer.methods import Method, amount, choice
from explorer.qtensor import QuantizedTensor, quantize_affine
from kernels.op import Activation


@dataclass(frozen=True)
class LlmInt8(Method):
    """Beyond a few billion parameters some input channels grow 20 times larger than the rest, for every token. One int8 scale a token cannot
    serve both, so the channels in which any value reaches the threshold are multiplied in 16 bits and the other 99.9% in int8.
    """

    name: ClassVar[str] = "llm_int8"
    title: ClassVar[str] = "LLM.int8()"
    short: ClassVar[str] = "LLM.int8()"
    paper: ClassVar[str] = "Dettmers et al. 2022, arXiv 2208.07339, section 3"
    needs_inputs: ClassVar[bool] = True

    threshold: float = amount(6.0, 0.0, 1000.0, title="Threshold", help="Inputs of at least this magnitude make their channel an outlier; 0 keeps none.")

    outliers: str = choice(
        "dynamic", "dynamic", "static", title="Outlier channels",
        help="Dynamic: found anew in every input, as in the paper. Static: found once on the calibration text, so that a GPU never waits for the list.",
    )  # fmt: skip

    def reads_inputs(self) -> bool:
        return self.outliers == "static"

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        if inputs is None:
            activation = Activation("int8", threshold=self.threshold)
        else:
            found = (inputs.absmax >= self.threshold).nonzero().flatten().tolist() if self.threshold else []
            activation = Activation("int8", columns=tuple(found))
        return dataclasses.replace(quantize_affine(weight, 8, "channel", 0, symmetric=True), activation=activation)
