"""Small floats of 4 to 8 bits: their values by bit pattern, rounding to them, and which of them a codebook is."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

FORMATS = {"e2m1": (4, 1), "e2m3": (6, 3), "e3m2": (6, 2), "e4m3": (8, 3), "e5m2": (8, 2)}  # stored bits, mantissa bits; the first bit is the sign
LARGEST = {"e2m1": 6.0, "e2m3": 7.5, "e3m2": 28.0, "e4m3": 448.0, "e5m2": 57344.0}


@cache
def float_values(name: str) -> Tensor:
    """The value of every bit pattern, [2**bits] float32; patterns that are no number are 0."""
    bits, mantissa = FORMATS[name]
    if bits == 8:
        kind = torch.float8_e4m3fn if name == "e4m3" else torch.float8_e5m2
        return torch.arange(256, dtype=torch.uint8).view(kind).float().nan_to_num(0.0, 0.0, 0.0)
    pattern = torch.arange(2 ** (bits - 1))
    exponent, fraction = pattern >> mantissa, (pattern & (2**mantissa - 1)) / 2**mantissa
    one = 1 - bias(name)
    size = torch.where(exponent > 0, (1 + fraction) * 2.0 ** (exponent - 1 + one), fraction * 2.0**one).float()
    return torch.cat([size, -size])


def bias(name: str) -> int:
    """What is added to an exponent to store it."""
    bits, mantissa = FORMATS[name]
    return 2 ** (bits - 2 - mantissa) - 1


def float_format(codebook: Tensor | None) -> str:
    """The name of the float that a codebook [2**bits] is the table of, "" for any other codebook and for none."""
    book = None if codebook is None else codebook.cpu()
    return next((name for name in FORMATS if book is not None and torch.equal(book, float_values(name))), "")


def nearest(x: Tensor, name: str) -> Tensor:
    """x float32 rounded to a float's numbers, half to even, float32; what is larger than the largest becomes that one, NaN stays."""
    x = x.clamp(-LARGEST[name], LARGEST[name])
    step = (x.view(torch.int32) & 0x7F800000).view(torch.float32).clamp_(min=2.0 ** (1 - bias(name))).mul_(2.0 ** -FORMATS[name][1])
    return x.div_(step).round_().mul_(step)
