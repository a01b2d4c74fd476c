"""Rounding a weight to small floats of 4 to 8 bits, which are in kernels/floats.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from explorer.qtensor import QuantizedTensor
from kernels.floats import FORMATS, float_values, nearest
from kernels.op import per_group


def quantize_float(weight: Tensor, scale: Tensor, element: str, **stored: Any) -> QuantizedTensor:
    """Rounds weight [N, K] float32 / scale [R, K/G] to a small float, half to even, saturating. Codes are bit patterns, sign first.

    stored: further fields of the QuantizedTensor.
    """
    bits, book = FORMATS[element][0], float_values(element).to(weight.device)
    sizes = book[: int(book.argmax()) + 1]  # the numbers that are not negative, ascending: the index is the bit pattern
    values = nearest(weight / per_group(torch.where(scale > 0, scale, 1.0), *weight.shape), element)
    codes = torch.bucketize(values.abs(), sizes) + (weight < 0) * 2 ** (bits - 1)
    return QuantizedTensor(codes.to(torch.uint8), scale, bits, codebook=book, **stored)
