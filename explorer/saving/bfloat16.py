"""bfloat16: the weights that the codes mean, in 16 bits. Any program reads it; it keeps the quality of the quantized model and none of its size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from explorer.qtensor import QuantizedTensor
from explorer.saving import Format


def _refuses(q: QuantizedTensor) -> str:
    return ""


def _tensors(q: QuantizedTensor) -> dict[str, Tensor]:
    return {"weight": q.dequantize().to(torch.bfloat16)}


def _config(layers: Any, rest: Any) -> None:
    return None


FORMAT = Format(
    "bfloat16", "16-bit weights", _refuses, _tensors, _config, "whatever loads the original model: transformers, vLLM, llama.cpp's converter", exact=False
)
