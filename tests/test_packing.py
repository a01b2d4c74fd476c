"""Packed codes: the layout of planes as it is documented, and that it holds every code in no more bits than it has."""

from __future__ import annotations

import pytest
import torch

from kernels.packing import pack_planar
from tests.planes import unpack_planar


@pytest.mark.parametrize(("bits", "block"), [(2, 128), (2, 64), (3, 256), (3, 128), (4, 128), (4, 32), (8, 64)])
def test_planar_packing_round_trips_without_a_wasted_bit(bits: int, block: int) -> None:
    codes = torch.randint(0, 2**bits, (5, 2 * block), dtype=torch.uint8)
    packed = pack_planar(codes, block, bits)
    assert sum(t.nbytes for t in packed.values()) * 8 == bits * codes.numel() and torch.equal(unpack_planar(packed, block, bits), codes)


def test_planar_packing_has_the_documented_layout() -> None:
    codes = torch.randint(0, 16, (5, 192), dtype=torch.uint8)
    assert pack_planar(codes, 64, 4)["codes"][0, 0] == codes[0, 0] | codes[0, 32] << 4
    codes = torch.randint(0, 8, (5, 256), dtype=torch.uint8)
    packed = pack_planar(codes, 256, 3)
    low, high = (codes[0, 5 + 32 * p] for p in (0, 1, 2, 3)), (codes[0, 5 + 32 * p] >> 2 for p in range(8))
    assert packed["codes"][0, 5] == sum((c & 3) << 2 * p for p, c in enumerate(low))
    assert packed["high"][0, 5] == sum(bit << p for p, bit in enumerate(high))
