"""The searches of llama.cpp for the scales and minima of small blocks: tensors in, tensors out; which blocks and which errors is a method's.

Each is the least-squares search of ggml-quants.c (make_qx_quants, make_q3_quants, make_qkx2_quants and make_qkx3_quants there) for all blocks at once;
sums in another order move a few codes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def widths(first: float, step: float, count: int) -> Tensor:
    """By how much the code ranges are widened that a search tries, [count] float32."""
    return first + step * torch.arange(count)


def search_scale(groups: Tensor, errors: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """(scale [N, groups, 1], codes of groups' shape, `half` for zero) of least sum errors * (scale * (code - half) - w)^2: for 19 widths of the code
    range, round, then solve for the scale.
    """
    peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    safe = torch.where(peak != 0, peak, 1.0)
    best, most, kept = torch.zeros_like(peak), torch.full_like(peak, -torch.inf), torch.zeros_like(groups)
    for wide in half + 0.1 * torch.tensor(sorted(range(-9, 10), key=bool)):  # the plain width first: another has to be better
        codes = (groups * (-wide / safe)).round().clamp(-half, half - 1)
        product, square = (errors * groups * codes).sum(-1, keepdim=True), (errors * codes.square()).sum(-1, keepdim=True)
        scale = torch.where(square > 0, product / square.clamp(min=1e-38), 0.0)
        gain = scale * product  # how much of the weighted square the codes explain
        better = gain > most
        best, most, kept = torch.where(better, scale, best), torch.where(better, gain, most), torch.where(better, codes, kept)
    return best, kept + half


def settled(x: Tensor, errors: Tensor, codes: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """(scale [..., 1], codes) of less sum errors * (scale * code - x)^2, all [..., members]: one code at a time goes to where the rest would have it,
    for five rounds. Only where codes and x agree in sign, as in llama.cpp: not in a block of Q3_K whose largest magnitude is positive.
    """
    x, w, codes = (part.movedim(-1, 0).contiguous() for part in (x, errors, codes))
    product, square = (w * x * codes).sum(0), (w * codes.square()).sum(0)
    for i in list(range(len(x))) * 5:
        rest, squares = product - w[i] * x[i] * codes[i], square - w[i] * codes[i].square()
        able = (rest > 0) & (squares > 0)
        new = (x[i] * squares / torch.where(able, rest, 1.0)).round().clamp(low, high)
        rest, squares = rest + w[i] * x[i] * new, squares + w[i] * new.square()
        better = able & (new != codes[i]) & (rest.square() * square > product.square() * squares)
        codes[i] = torch.where(better, new, codes[i])
        product, square = torch.where(better, rest, product), torch.where(better, squares, square)
    scale = torch.where(square > 0, product / square.clamp(min=1e-38), 0.0)
    return scale.unsqueeze(-1), codes.movedim(0, -1)


def search_scale_and_minimum(groups: Tensor, errors: Tensor, most: int, wider: Tensor, absolute: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(scale, minimum <= 0, both [N, groups], codes up to `most` of groups' shape) of least sum errors * (scale * code + minimum - w)^2, or of
    magnitudes instead of squares: for each code range of most + `wider` above the least weight, round, then solve the weighted least squares for both.
    """
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True)
    scale = (high - low) / most
    codes = ((groups - low) / torch.where(scale > 0, scale, 1.0)).round().clamp(0, most)
    size = torch.abs if absolute else torch.square
    least = (errors * size(scale * codes + low - groups)).sum(-1, keepdim=True)
    total, linear = errors.sum(-1, keepdim=True), (errors * groups).sum(-1, keepdim=True)
    kept = codes
    for wide in most + wider:  # as tensors: torch divides a number by multiplying, and at half steps the largest weight is on a tie
        width = torch.where(high > low, high - low, 1.0)
        codes = ((groups - low) * (wide / width)).round().clamp(0, most)
        first, second = (errors * codes).sum(-1, keepdim=True), (errors * codes.square()).sum(-1, keepdim=True)
        cross = (errors * groups * codes).sum(-1, keepdim=True)
        determinant = total * second - first.square()
        solvable = determinant > 0
        divisor = torch.where(solvable, determinant, 1.0)
        slope, shift = (total * cross - linear * first) / divisor, (second * linear - first * cross) / divisor
        positive = shift > 0  # no minimum above zero can be stored
        slope = torch.where(positive, torch.where(second > 0, cross / second.clamp(min=1e-38), 0.0), slope)
        shift = shift.clamp(max=0)
        loss = (errors * size(slope * codes + shift - groups)).sum(-1, keepdim=True)
        better = solvable & (loss < least) & (high > low)
        scale, low, least = torch.where(better, slope, scale), torch.where(better, shift, low), torch.where(better, loss, least)
        kept = torch.where(better, codes, kept)
    return scale.clamp(min=0).squeeze(-1), low.squeeze(-1), kept
