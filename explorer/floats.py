"""Small floats of 4 to 8 bits: their values by bit pattern, and rounding a weight to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from explorer.qtensor import QuantizedTensor
from kernels.op import per_group


def _float_table(exponent_bits: int, mantissa_bits: int, count: int) -> Tensor:
    """The first `count` non-negative values of a small float with subnormals, ascending, float32; the index is the bit pattern."""
    pattern = torch.arange(count)
    exponent, mantissa = pattern >> mantissa_bits, (pattern & (2**mantissa_bits - 1)) / 2**mantissa_bits
    bias = 2 ** (exponent_bits - 1) - 1
    return torch.where(exponent > 0, (1 + mantissa) * 2.0 ** (exponent - bias), mantissa * 2.0 ** (1 - bias)).float()


# Non-negative values by bit pattern. The 8-bit ones end before their infinities and NaN.
FLOATS = {"e2m1": _float_table(2, 1, 8), "e2m3": _float_table(2, 3, 32), "e3m2": _float_table(3, 2, 32), "e4m3": _float_table(4, 3, 127),
          "e5m2": _float_table(5, 2, 124)}  # fmt: skip


def quantize_float(weight: Tensor, scale: Tensor, element: str, **stored: Any) -> QuantizedTensor:
    """Rounds weight [N, K] float32 / scale [R, K/G] to a small float, half to even, saturating. Codes are bit patterns, sign first.

    stored: further fields of the QuantizedTensor.
    """
    n, k = weight.shape
    table = FLOATS[element].to(weight.device)
    bits = {8: 4, 32: 6}.get(len(table), 8)
    size = (weight / per_group(torch.where(scale > 0, scale, 1.0), n, k)).abs()
    middles = (table[1:] + table[:-1]) / 2
    index = torch.bucketize(size, middles)  # a tie goes down
    tie = size == middles[index.clamp(max=len(middles) - 1)]
    index += (tie & (index % 2 == 1)).long()
    codes = index + (weight < 0) * 2 ** (bits - 1)
    return QuantizedTensor(codes.to(torch.uint8), scale, bits, codebook=codebook(element).to(weight.device), **stored)


def codebook(element: str) -> Tensor:
    """The values of all bit patterns, sign first, [2**bits] float32; zero for those that are infinities or NaN."""
    table = FLOATS[element]
    bits = {8: 4, 32: 6}.get(len(table), 8)
    book = torch.zeros(2**bits)
    book[: len(table)], book[2 ** (bits - 1) : 2 ** (bits - 1) + len(table)] = table, -table
    return book


def element_of(q: QuantizedTensor) -> str | None:
    """Which small float the codes of a tensor are the bit patterns of; None for integers and other tables."""
    book = None if q.codebook is None else q.codebook.cpu()
    return next((name for name in FLOATS if book is not None and torch.equal(book, codebook(name))), None)
