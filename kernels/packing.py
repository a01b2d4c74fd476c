"""Codes to bytes and back: the planar 4-bit layout that the matmul kernel reads.

Planar, blocks of B codes along K, one row of the weight:

    codes   k0 k1 ... k(B/2-1) | k(B/2) ... k(B-1)          low half | high half of the block
    bytes   [k(B/2)   << 4 | k0] [k(B/2+1) << 4 | k1] ...   B/2 bytes

so the low nibbles of a loaded tile are one plane of B/2 consecutive inputs and the high nibbles another: each plane feeds its own dot
product and nothing has to be interleaved in registers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pad_columns(codes: Tensor, block: int, fill: int) -> Tensor:
    """codes [N, K] uint8 padded with `fill` to a multiple of `block` columns."""
    return torch.nn.functional.pad(codes, (0, -codes.shape[1] % block), value=fill)


def pack_planar(codes: Tensor, block: int) -> Tensor:
    """codes [N, K] uint8 below 16, K a multiple of block -> bytes [N, K/2] uint8 in the layout above."""
    low, high = codes.unflatten(1, (-1, 2, block // 2)).unbind(2)
    return (low | (high << 4)).flatten(1).contiguous()


def unpack_planar(packed: Tensor, block: int) -> Tensor:
    """The inverse of pack_planar: [N, K/2] uint8 -> [N, K] uint8."""
    halves = packed.unflatten(1, (-1, block // 2))
    return torch.stack([halves & 15, halves >> 4], dim=2).flatten(1)
