"""Codes to bytes: the planar layout that the matmul kernel reads, for codes of 2, 3, 4 and 8 bits.

One row of the weight, a block of B codes along K, P planes of W = B / P codes:

    4 bits, P = 2     byte i holds code i in bits 0-3 and code W + i in bits 4-7                               B/2 bytes
    2 bits, P = 4     byte i holds codes i, W + i, 2W + i, 3W + i in bits 0-1, 2-3, 4-5, 6-7                     B/4 bytes
    8 bits, P = 1     byte i holds code i                                                                      B bytes
    3 bits, P = 8     the lower two bits of planes 0-3 and of planes 4-7 as two runs of W bytes, as for 2 bits;
                      in a tensor of its own the upper bits, byte i holds those of code pW + i in bit p        B/4 + B/8 bytes

A plane of a loaded tile is W consecutive inputs and feeds its own dot product: nothing has to be interleaved in registers. Inside every four
bytes the order is 0, 2, 1, 3 ("swizzled"), so that one mask on a 32-bit word gives two neighbouring codes as two halves.

4-bit codes that are looked up in a table keep two neighbours of one plane in a byte instead, so that 16 bits of codes select four table entries:

    inputs 4i .. 4i+3     byte 4i holds p0[0], p0[1], byte 4i+1 p1[0], p1[1], byte 4i+2 p0[2], p0[3], byte 4i+3 p1[2], p1[3], the first in bits 0-3
"""

from __future__ import annotations

import torch
from torch import Tensor

PLANES = {2: 4, 3: 8, 4: 2, 8: 1}


def pad_columns(codes: Tensor, block: int, fill: int) -> Tensor:
    """codes [N, K] uint8 padded with `fill` to a multiple of `block` columns."""
    return torch.nn.functional.pad(codes, (0, -codes.shape[1] % block), value=fill)


def swizzle(values: Tensor) -> Tensor:
    """[N, K] with the middle two of every four columns exchanged, K a multiple of 4; its own inverse."""
    return values.unflatten(1, (-1, 4))[..., [0, 2, 1, 3]].flatten(1)


def pack_planar(codes: Tensor, block: int, bits: int) -> dict[str, Tensor]:
    """codes [N, K] uint8 below 2**bits, K a multiple of block -> {"codes": [N, K * bits / 8] uint8}; for 3 bits "codes" [N, K/4] and "high" [N, K/8]."""
    if bits == 8:
        return {"codes": codes.contiguous()}
    planes = codes.unflatten(1, (-1, PLANES[bits], block // PLANES[bits]))  # [N, blocks, P, W]
    if bits == 3:
        low = _merge((planes & 3).unflatten(2, (2, 4)), 2).flatten(1)
        return {"codes": low.contiguous(), "high": _merge(planes >> 2, 1).flatten(1).contiguous()}
    return {"codes": _merge(planes, bits).flatten(1).contiguous()}


def pack_table(codes: Tensor, block: int) -> dict[str, Tensor]:
    """codes [N, K] uint8 below 16 -> {"codes": [N, K/2] uint8} in the layout of tables."""
    quads = codes.unflatten(1, (-1, 2, block // 8, 2, 2))  # [N, blocks, planes, quads, pairs, 2]
    pairs = quads.transpose(2, 3).transpose(3, 4)  # [N, blocks, quads, pairs, planes, 2]
    return {"codes": (pairs[..., 0] | pairs[..., 1] << 4).flatten(1).contiguous()}


def _merge(planes: Tensor, bits: int) -> Tensor:
    """[..., P, W] uint8 to [..., W]: plane p moves up by p * bits."""
    shifts = torch.arange(planes.shape[-2], device=planes.device) * bits
    return (planes.int() << shifts.unsqueeze(-1)).sum(-2).to(torch.uint8)
