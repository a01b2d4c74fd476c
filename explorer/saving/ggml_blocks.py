"""Codes and scales in the block layouts of llama.cpp (GGML): Q4_0, Q5_0, Q5_1, Q8_0 for blocks of 32, Q2_K to Q6_K for the K-quants; each to the bit."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from explorer.qtensor import QuantizedTensor

BLOCK, SUPER = 32, 256  # weights of a block and of a K-quant's super-block
RANGES = {"Q4_0": (-8, 7), "Q5_0": (-16, 15), "Q8_0": (-128, 127)}  # of an integer times a scale, by how much they store
EXACT = 1e-6  # relative: what float32 loses of products with 16-bit floats, such as a block's scale or minimum
SUBNORMAL = 3e-8  # what a scale below 6e-5 may lose as a 16-bit float


def refuses(q: QuantizedTensor) -> str:
    """Why no layout holds this tensor, "" when one does."""
    if q.rotation is not None or q.channel_scale is not None:
        return "its inputs are rotated or scaled while it runs"
    if q.activation is not None:
        return "its inputs are rounded too, which is left to whoever runs it there"
    if q.codebook is not None or q.code_bits is not None or q.nested is not None:
        return "it holds no table or float of this kind"
    if super_blocks(q):
        return ""
    if q.codes.shape[1] // q.scale.shape[1] % BLOCK:
        return f"blocks of {BLOCK} weights do not divide its groups"
    if _has_minima(q):
        return ""
    if q.zero is not None and not torch.equal(q.zero, q.zero.round()):
        return "its zero-points are no integers"
    if not _fits_half(q.scale.float()):
        return "a scale does not fit a 16-bit float"
    signed = integers(q)
    return "" if signed.min() >= -128 and signed.max() <= 127 else "its codes reach beyond 8 bits from zero"


def super_blocks(q: QuantizedTensor) -> str:
    """ "Q2_K" to "Q6_K" for what was quantized as one, else ""."""
    return f"Q{q.bits}_K" if q.extra_bits and q.scale_bits else ""


def _fits_half(values: Tensor) -> bool:
    return bool(((values.half().float() - values).abs() <= SUBNORMAL + EXACT * values.abs()).all())


def _has_minima(q: QuantizedTensor) -> bool:
    """Whether these are Q5_1's: 5-bit codes whose zeros stand for minima of 16 bits."""
    return q.bits == 5 and q.zero is not None and q.zero_bits == 16 and q.scale_bits == 16 and _fits_half(q.zero * q.scale)


def integers(q: QuantizedTensor) -> Tensor:
    """Codes less their zero, [N, K] int16."""
    n, k = q.codes.shape
    if q.zero is None:
        return q.codes.to(torch.int16) - 2 ** (q.bits - 1)
    return q.codes.to(torch.int16) - _spread(q.zero, n, k, k // q.zero.shape[1]).repeat_interleave(k // q.zero.shape[1], 1).to(torch.int16)


def layout(q: QuantizedTensor) -> str:
    """The name of the layout that holds a tensor that none `refuses`: for integers the narrowest that reaches all codes."""
    if name := super_blocks(q) or ("Q5_1" if _has_minima(q) else ""):
        return name
    signed = integers(q)
    return next(name for name, (low, high) in RANGES.items() if low <= signed.min() and signed.max() <= high)


def packed(q: QuantizedTensor) -> tuple[str, numpy.ndarray]:
    """(the layout's name, [N, bytes a row] uint8)."""
    name = layout(q)
    if name not in RANGES:
        return name, {"Q5_1": _q5_1, "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}[name](q)
    n, k = q.codes.shape
    signed = integers(q)
    scale = _half(_spread(q.scale.float(), n, k, BLOCK))
    codes = (signed - (0 if name == "Q8_0" else RANGES[name][0])).cpu().numpy().astype(numpy.uint8).reshape(n, -1, BLOCK)
    parts = {"Q8_0": [codes], "Q4_0": [_low_halves(codes)], "Q5_0": [_fifth_bits(codes), _low_halves(codes)]}[name]
    return name, numpy.concatenate([scale, *parts], -1).reshape(n, -1)


def _low_halves(codes: numpy.ndarray) -> numpy.ndarray:
    """The low four bits of blocks [..., 32] as [..., 16], first and second half side by side."""
    return codes[..., :16] & 15 | (codes[..., 16:] & 15) << 4


def _fifth_bits(codes: numpy.ndarray) -> numpy.ndarray:
    """Bit 4 of blocks [..., 32] as [..., 4], the first in the lowest bit."""
    return numpy.packbits(codes >> 4 & 1, axis=-1, bitorder="little")


def _spread(values: Tensor, n: int, k: int, members: int) -> Tensor:
    """Values [R, G] of a weight [n, k] as one for each run of `members` of a row, [n, k / members]."""
    rows = values.repeat_interleave(n // values.shape[0], 0)
    return rows.repeat_interleave(k // members // values.shape[1], 1)


def _half(values: Tensor) -> numpy.ndarray:
    """[...] float -> [..., 2] uint8, as 16-bit floats."""
    return numpy.ascontiguousarray(values.cpu().numpy().astype(numpy.float16)[..., None]).view(numpy.uint8)


def _wholes(small: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """(whole [..., 1], a 16-bit float, integers [...] from low to high) with small = whole * integer, [..., blocks] float64. Which integer the largest
    magnitude is was left to a search, so it is looked for from the far end on.
    """
    peak = small.gather(-1, small.abs().argmax(-1, keepdim=True))
    whole, integers, least = torch.zeros_like(peak), torch.zeros_like(small), peak.abs()
    for most in range(low, 0) if low else range(high, 0, -1):
        step = (peak / most).half().double()
        steps = (small / torch.where(step != 0, step, 1.0)).round().clamp(low, high)
        error = (step * steps - small).abs().amax(-1, keepdim=True)
        better = error < least
        whole, integers, least = torch.where(better, step, whole), torch.where(better, steps, integers), torch.where(better, error, least)
        if (least <= EXACT * peak.abs()).all():
            break
    return whole, integers


def _bytes(values: Tensor) -> numpy.ndarray:
    return values.cpu().numpy().astype(numpy.int16).astype(numpy.uint8)


def _q5_1(q: QuantizedTensor) -> numpy.ndarray:
    """Two 16-bit floats d and m, four bytes of fifth bits, sixteen of low halves."""
    n = len(q.codes)
    codes = q.codes.cpu().numpy().reshape(n, -1, BLOCK)
    return numpy.concatenate([_half(q.scale), _half(-q.zero * q.scale), _fifth_bits(codes), _low_halves(codes)], -1).reshape(n, -1)


def _scales_and_minima(q: QuantizedTensor, top: int) -> tuple[list[numpy.ndarray], Tensor, Tensor]:
    """([d, dmin] as 16-bit floats, block scales and minima as integers up to `top`, [N, super-blocks, blocks])."""
    n, k = q.codes.shape
    shape = n, k // SUPER, -1
    constant = (q.codes.view(n, q.scale.shape[1], -1) == 0).all(-1).view(shape)  # such a block is its minimum alone, whatever its scale
    scale, zero = (values.double().view(shape) for values in (q.scale, q.zero))
    d, scales = _wholes(torch.where(constant, 0.0, scale), 0, top)
    dmin, minima = _wholes(zero * scale, 0, top)
    return [_half(d.squeeze(-1)), _half(dmin.squeeze(-1))], scales, minima


def _six_bits(scales: Tensor, minima: Tensor) -> numpy.ndarray:
    """Eight 6-bit scales and eight 6-bit minima in twelve bytes."""
    small, least = _bytes(scales), _bytes(minima)
    first, second = (x[..., :4] | (x[..., 4:] >> 4) << 6 for x in (small, least))
    return numpy.concatenate([first, second, small[..., 4:] & 15 | (least[..., 4:] & 15) << 4], -1)


def _quarters(codes: numpy.ndarray) -> numpy.ndarray:
    """The low two bits of super-blocks [N, ., 256] in 64 bytes: four weights, 32 apart, in one."""
    parts = codes.reshape(*codes.shape[:2], 2, 4, BLOCK) & 3
    return (parts[..., 0, :] | parts[..., 1, :] << 2 | parts[..., 2, :] << 4 | parts[..., 3, :] << 6).reshape(*codes.shape[:2], 64)


def _nibbles(codes: numpy.ndarray) -> numpy.ndarray:
    """The low four bits of super-blocks [N, ., 256] in 128 bytes: two weights, 32 apart, in one."""
    pairs = codes.reshape(*codes.shape[:2], 4, 2, BLOCK) & 15
    return (pairs[..., 0, :] | pairs[..., 1, :] << 4).reshape(*codes.shape[:2], 128)


def _top_bits(codes: numpy.ndarray, bit: int) -> numpy.ndarray:
    """One bit of super-blocks [N, ., 256] in 32 bytes: that of eight weights, 32 apart, in one, the first lowest."""
    return numpy.packbits(codes.reshape(*codes.shape[:2], 8, BLOCK) >> bit & 1, axis=-2, bitorder="little").squeeze(-2)


def _super(q: QuantizedTensor) -> numpy.ndarray:
    """Codes by super-block, [N, K/256, 256] uint8."""
    return q.codes.cpu().numpy().reshape(len(q.codes), -1, SUPER)


def _q2_k(q: QuantizedTensor) -> numpy.ndarray:
    """Sixteen bytes of 4-bit scales and minima, 64 of codes, two 16-bit floats d and dmin."""
    floats, scales, minima = _scales_and_minima(q, 15)
    return numpy.concatenate([_bytes(scales) | _bytes(minima) << 4, _quarters(_super(q)), *floats], -1).reshape(len(q.codes), -1)


def _q3_k(q: QuantizedTensor) -> numpy.ndarray:
    """32 bytes of high bits, 64 of the low two, twelve of 6-bit scales plus 32, one 16-bit float: the scales' low halves, then their high two bits."""
    n, codes = len(q.codes), _super(q)
    d, scales = _wholes(q.scale.double().view(n, -1, SUPER // 16), -32, 31)
    small = _bytes(scales + 32)
    fours = (small >> 4).reshape(n, -1, 4, 4)
    twelve = [small[..., :8] & 15 | (small[..., 8:] & 15) << 4, fours[..., 0, :] | fours[..., 1, :] << 2 | fours[..., 2, :] << 4 | fours[..., 3, :] << 6]
    return numpy.concatenate([_top_bits(codes, 2), _quarters(codes), *twelve, _half(d.squeeze(-1))], -1).reshape(n, -1)


def _q4_k(q: QuantizedTensor) -> numpy.ndarray:
    """Two 16-bit floats d and dmin, twelve bytes of 6-bit scales and minima, 128 bytes of codes."""
    floats, scales, minima = _scales_and_minima(q, 63)
    return numpy.concatenate([*floats, _six_bits(scales, minima), _nibbles(_super(q))], -1).reshape(len(q.codes), -1)


def _q5_k(q: QuantizedTensor) -> numpy.ndarray:
    """As Q4_K, with 32 bytes of high bits before those of the low halves."""
    floats, scales, minima = _scales_and_minima(q, 63)
    return numpy.concatenate([*floats, _six_bits(scales, minima), _top_bits(_super(q), 4), _nibbles(_super(q))], -1).reshape(len(q.codes), -1)


def _q6_k(q: QuantizedTensor) -> numpy.ndarray:
    """128 bytes of low halves, 64 of the two high bits, 16 int8 scales, one 16-bit float."""
    n, codes = len(q.codes), _super(q)
    d, scales = _wholes(q.scale.double().view(n, -1, SUPER // 16), -128, 127)
    halves = codes.reshape(n, -1, 2, 4, BLOCK)
    low = numpy.concatenate([halves[..., i, :] & 15 | (halves[..., i + 2, :] & 15) << 4 for i in (0, 1)], -1).reshape(n, -1, 128)
    return numpy.concatenate([low, _quarters(codes >> 4), _bytes(scales), _half(d.squeeze(-1))], -1).reshape(n, -1)
