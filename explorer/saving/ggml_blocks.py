"""Codes and scales in the block layouts of llama.cpp (GGML): Q4_0, Q5_0, Q8_0 for integers, Q4_K and Q6_K for the K-quants; each to the bit."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from explorer.qtensor import QuantizedTensor

BLOCK, SUPER = 32, 256  # weights of a block and of a K-quant's super-block
RANGES = {"Q4_0": (-8, 7), "Q5_0": (-16, 15), "Q8_0": (-128, 127)}  # of an integer times a scale, by how much they store
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
    if q.zero is not None and not torch.equal(q.zero, q.zero.round()):
        return "its zero-points are no integers"
    if (q.scale.float().half().float() - q.scale.float()).abs().max() > SUBNORMAL:
        return "a scale does not fit a 16-bit float"
    signed = integers(q)
    return "" if signed.min() >= -128 and signed.max() <= 127 else "its codes reach beyond 8 bits from zero"


def super_blocks(q: QuantizedTensor) -> str:
    """ "Q4_K" or "Q6_K" for what was quantized as one, else ""."""
    return {6: "Q4_K", 8: "Q6_K"}.get(q.scale_bits or 0, "") if q.extra_bits else ""


def integers(q: QuantizedTensor) -> Tensor:
    """Codes less their zero, [N, K] int16."""
    n, k = q.codes.shape
    if q.zero is None:
        return q.codes.to(torch.int16) - 2 ** (q.bits - 1)
    return q.codes.to(torch.int16) - _spread(q.zero, n, k, k // q.zero.shape[1]).repeat_interleave(k // q.zero.shape[1], 1).to(torch.int16)


def layout(q: QuantizedTensor) -> str:
    """The name of the layout that holds a tensor that none `refuses`: for integers the narrowest that reaches all codes."""
    signed = integers(q)
    return super_blocks(q) or next(name for name, (low, high) in RANGES.items() if low <= signed.min() and signed.max() <= high)


def packed(q: QuantizedTensor) -> tuple[str, numpy.ndarray]:
    """(the layout's name, [N, bytes a row] uint8)."""
    name = layout(q)
    if name not in RANGES:
        return name, {"Q4_K": _q4_k, "Q6_K": _q6_k}[name](q)
    n, k = q.codes.shape
    signed = integers(q)
    scale = _half(_spread(q.scale.float(), n, k, BLOCK))
    codes = (signed - (0 if name == "Q8_0" else RANGES[name][0])).cpu().numpy().astype(numpy.uint8).reshape(n, -1, BLOCK)
    low = codes[..., :16] & 15 | (codes[..., 16:] & 15) << 4
    parts = {"Q8_0": [codes], "Q4_0": [low], "Q5_0": [numpy.packbits(codes >> 4 & 1, axis=-1, bitorder="little"), low]}[name]
    return name, numpy.concatenate([scale, *parts], -1).reshape(n, -1)


def _spread(values: Tensor, n: int, k: int, members: int) -> Tensor:
    """Values [R, G] of a weight [n, k] as one for each run of `members` of a row, [n, k / members]."""
    rows = values.repeat_interleave(n // values.shape[0], 0)
    return rows.repeat_interleave(k // members // values.shape[1], 1)


def _half(values: Tensor) -> numpy.ndarray:
    """[...] float -> [..., 2] uint8, as 16-bit floats."""
    return numpy.ascontiguousarray(values.cpu().numpy().astype(numpy.float16)[..., None]).view(numpy.uint8)


def _wholes(small: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """(whole [..., 1], integers [...]) with small = whole * integer and the largest magnitude at `most`."""
    peak = small.gather(-1, small.abs().argmax(-1, keepdim=True))
    whole = (peak / most).half().double()
    return whole, (small / torch.where(whole != 0, whole, 1.0)).round()


def _q4_k(q: QuantizedTensor) -> numpy.ndarray:
    """Two 16-bit floats d and dmin, twelve bytes of 6-bit scales and minima, 128 bytes of codes, low and high half 32 weights apart."""
    n = len(q.codes)
    codes = q.codes.reshape(n, -1, 8, BLOCK)
    constant = (codes == 0).all(-1)  # such a block is its minimum alone, whatever its scale
    scale, zero = (values.double().reshape(n, -1, 8) for values in (q.scale, q.zero))
    d, scales = _wholes(torch.where(constant, 0.0, scale), 63)
    dmin, minima = _wholes(zero * scale, 63)
    small, least = (values.cpu().numpy().astype(numpy.uint8) for values in (scales, minima))
    first, second = (x[..., :4] | (x[..., 4:] >> 4) << 6 for x in (small, least))
    third = small[..., 4:] & 15 | (least[..., 4:] & 15) << 4
    pairs = codes.cpu().numpy().reshape(n, -1, 4, 2, BLOCK)
    nibbles = (pairs[..., 0, :] | pairs[..., 1, :] << 4).reshape(n, -1, 128)
    return numpy.concatenate([_half(d.squeeze(-1)), _half(dmin.squeeze(-1)), first, second, third, nibbles], -1).reshape(n, -1)


def _q6_k(q: QuantizedTensor) -> numpy.ndarray:
    """128 bytes of low halves, 64 of the two high bits, 16 int8 scales, one 16-bit float."""
    n = len(q.codes)
    d, scales = _wholes(q.scale.double().reshape(n, -1, SUPER // 16), -128)
    halves = q.codes.cpu().numpy().reshape(n, -1, 2, 4, BLOCK)
    low = numpy.concatenate([halves[..., i, :] & 15 | (halves[..., i + 2, :] & 15) << 4 for i in (0, 1)], -1).reshape(n, -1, 128)
    high = (halves[..., 0, :] >> 4 | halves[..., 1, :] >> 4 << 2 | halves[..., 2, :] >> 4 << 4 | halves[..., 3, :] >> 4 << 6).reshape(n, -1, 64)
    small = scales.cpu().numpy().astype(numpy.int8).view(numpy.uint8)
    return numpy.concatenate([low, high, small, _half(d.squeeze(-1))], -1).reshape(n, -1)
