"""E8P: a codebook of 2^16 points of the lattice E8 shifted by a quarter, for eight weights at two bits each (QuIP#, arXiv 2402.04396, section 4).

A point is a pattern of eight magnitudes out of 256, eight signs of which seven are free, and a shift of all coordinates by +1/4 or -1/4:
8 + 7 + 1 bits. Every coordinate is an odd multiple of 1/4 up to 11/4, so that a point can also be written as eight 4-bit codes.
"""

from __future__ import annotations

import itertools
from functools import cache

import torch
from torch import Tensor

WIDTH = 8  # weights a point
SHIFT = 0.25
ROWS = 2**14  # runs of weights looked up at once: each takes several rows of 256 numbers, and smaller parts keep several threads waiting for each other
MIDDLE, CODE_STEP = 7.5, 0.5  # a coordinate as a 4-bit code: (code - MIDDLE) * CODE_STEP


@cache
def patterns() -> Tensor:
    """[256, 8] float32: magnitudes 1/2, 3/2 or 5/2. All 227 of squared norm up to 10, and 29 of the 56 of squared norm 12 with five 3/2, evenly
    spread in lexicographic order (the paper leaves their choice free; they are the outermost points).
    """
    inner, outer = [], []
    for magnitudes in itertools.product((0.5, 1.5, 2.5), repeat=WIDTH):
        norm = sum(m * m for m in magnitudes)
        if norm <= 10:
            inner.append(magnitudes)
        elif norm == 12 and 2.5 not in magnitudes:
            outer.append(magnitudes)
    chosen = [outer[i * len(outer) // (256 - len(inner))] for i in range(256 - len(inner))]
    return torch.tensor(inner + chosen)


@cache
def parities() -> Tensor:
    """[256] bool: whether a pattern takes an odd number of minus signs, for its coordinates to have an even sum, as points of E8 do."""
    return patterns().sum(-1) % 2 == 1


def nearest_point(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest points to x [R, 8] float32: (index of the pattern [R], minus signs [R, 8] bool, whether shifted up [R] bool)."""
    if len(x) <= ROWS:
        return _nearest(x)
    parts = [_nearest(rows) for rows in x.split(ROWS)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _nearest(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    table, odd = patterns().to(x.device), parities().to(x.device)
    norms = (table * table).sum(-1)
    best: list[tuple[Tensor, ...]] = []
    for shift in (SHIFT, -SHIFT):
        y = x - shift
        minus, size = y < 0, y.abs()
        wrong = (minus.sum(-1) % 2 == 1).unsqueeze(-1) != odd  # [R, 256]: these signs need one flip, the cheapest
        cost = torch.full((len(x), len(table)), torch.inf, device=x.device)
        for i in range(WIDTH):
            cost = torch.minimum(cost, size[:, i : i + 1] * table[:, i])
        score, index = (2 * (size @ table.T) - 4 * cost * wrong - norms).max(-1)
        flip = torch.nn.functional.one_hot((size * table[index]).argmin(-1), WIDTH).bool()
        best.append((score - (y * y).sum(-1), index, minus ^ (flip & wrong.gather(1, index.unsqueeze(-1)))))
    (up, index_up, minus_up), (down, index_down, minus_down) = best
    higher = up >= down
    return torch.where(higher, index_up, index_down), torch.where(higher.unsqueeze(-1), minus_up, minus_down), higher


def coordinates(index: Tensor, minus: Tensor, higher: Tensor) -> Tensor:
    """The points themselves, [R, 8] float32, from what `nearest_point` gives."""
    signs = 1 - 2 * minus.float()
    return patterns().to(index.device)[index] * signs + (SHIFT * (2 * higher.float() - 1)).unsqueeze(-1)


def to_codes(points: Tensor) -> Tensor:
    """Coordinates, odd multiples of 1/4 up to 11/4, to uint8 codes 2 to 13."""
    return (points / CODE_STEP + MIDDLE).round().to(torch.uint8)


def pack(index: Tensor, minus: Tensor, higher: Tensor) -> Tensor:
    """Points as they are stored, [R] int32 below 2^16: pattern in bits 0 to 7, the first seven signs in 8 to 14, the shift in 15."""
    bits = (minus[:, :7].int() << torch.arange(8, 15, device=index.device)).sum(-1)
    return index.int() + bits.int() + (higher.int() << 15)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `pack`: the eighth sign follows from the pattern's parity."""
    index = (packed & 255).long()
    seven = (packed.unsqueeze(-1) >> torch.arange(8, 15, device=packed.device)) & 1
    eighth = (seven.sum(-1) % 2 == 1) != parities().to(packed.device)[index]
    return index, torch.cat([seven.bool(), eighth.unsqueeze(-1)], -1), (packed >> 15) == 1
