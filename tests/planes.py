"""The codes of the planar layout read back, for tests of what writes it."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.packing import PLANES


def _split(words: Tensor, count: int, bits: int) -> Tensor:
    """[..., W] bytes to [..., P, W]: plane p lies in the bits from p * bits on."""
    shifts = torch.arange(count, device=words.device) * bits
    return ((words.unsqueeze(-2).int() >> shifts.unsqueeze(-1)) & (2**bits - 1)).to(torch.uint8)


def unpack_planar(packed: dict[str, Tensor], block: int, bits: int) -> Tensor:
    """The inverse of `pack_planar`: [N, K] uint8."""
    words = packed["codes"]
    if bits == 8:
        return words
    width = block // PLANES[bits]
    if bits == 3:
        low = _split(words.unflatten(1, (-1, 2, width)), 4, 2).flatten(2, 3)
        return (low | _split(packed["high"].unflatten(1, (-1, width)), 8, 1) << 2).flatten(1)
    return _split(words.unflatten(1, (-1, width)), PLANES[bits], bits).flatten(1)
