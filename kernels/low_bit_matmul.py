"""The Triton kernel behind int4_matmul and int8_matmul: y = x W^T, W in 4- or 8-bit codes, scale a group, optional zero or codebook.

The weights are the left operand of the dot product (swap-AB): for a few rows of x the tile is wide in N, where the work is. Codes become
floats without a conversion instruction: a code OR-ed into the mantissa of the fp16 number 1024 is 1024 + code. Products are summed in
float32 over one group, then multiplied by the group's scale, so a scale costs one multiplication a group and not one a weight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.op import LowBitWeight, Packed
from kernels.packing import pack_planar, pad_columns


@triton.jit
def _codes_to_float(code, zero, MIDDLE: tl.constexpr, ZERO: tl.constexpr):
    """uint8 codes -> fp16 (code - zero), zero [rows, 1] fp16, or MIDDLE without ZERO; no int-to-float conversion. 1024 goes first, because
    1024 + zero would round a zero that is no integer.
    """
    number = (code.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True)
    if ZERO:
        return (number - 1024.0).to(tl.float16) - zero
    return (number - (1024.0 + MIDDLE)).to(tl.float16)


@triton.jit
def _dot(w, x_ptr, base, m, mask_m, k, stride_m, ACTIVATION: tl.constexpr, WIDTH: tl.constexpr):
    """w [BN, WIDTH] times x[m, base : base + WIDTH] -> [BN, BM] float32; inputs beyond k count as 0."""
    ks = base + tl.arange(0, WIDTH)
    x = tl.load(x_ptr + m[None, :] * stride_m + ks[:, None], mask=mask_m[None, :] & (ks < k)[:, None], other=0.0)
    return tl.dot(w.to(ACTIVATION), x.to(ACTIVATION), input_precision="ieee")


@triton.jit
def low_bit_matmul_kernel(
    x_ptr, codes_ptr, scale_ptr, zero_ptr, book_ptr, y_ptr,  # [M, K] act, [N, Kp/2 or Kp] u8, [N, groups], [N, groups], [2**b] f32, [M, N] act
    m_size, n_size, k_size, stride_x, stride_codes, groups, scale_stride,  # scale_stride: 0 when one scale serves all rows
    BITS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCKS_PER_GROUP: tl.constexpr,
    BLOCKS: tl.constexpr, ZERO: tl.constexpr, MIDDLE: tl.constexpr, CODEBOOK: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_N, BLOCK_M] tile of y^T a program; BLOCK_K codes a step."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_n, mask_m = n < n_size, m < m_size
    HALF: tl.constexpr = BLOCK_K // 2
    WIDTH: tl.constexpr = HALF if BITS == 4 else BLOCK_K
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(BLOCKS):
        columns = step * WIDTH + tl.arange(0, WIDTH)
        word = tl.load(codes_ptr + n[:, None] * stride_codes + columns[None, :], mask=mask_n[:, None], other=0)
        where = n * scale_stride + step // BLOCKS_PER_GROUP
        scale = tl.load(scale_ptr + where, mask=mask_n, other=0.0).to(tl.float32)
        zero = tl.load(zero_ptr + where, mask=mask_n, other=0.0)[:, None] if ZERO else 0.0
        low = word & 15 if BITS == 4 else word
        low_value = tl.load(book_ptr + low.to(tl.int32)) if CODEBOOK else _codes_to_float(low, zero, MIDDLE, ZERO)
        part = _dot(low_value, x_ptr, step * BLOCK_K, m, mask_m, k_size, stride_x, ACTIVATION, WIDTH)
        if BITS == 4:
            high = word >> 4
            high_value = tl.load(book_ptr + high.to(tl.int32)) if CODEBOOK else _codes_to_float(high, zero, MIDDLE, ZERO)
            part += _dot(high_value, x_ptr, step * BLOCK_K + HALF, m, mask_m, k_size, stride_x, ACTIVATION, WIDTH)
        acc += part * scale[:, None]
    out = y_ptr + m[None, :] * n_size + n[:, None]
    tl.store(out, acc.to(y_ptr.dtype.element_ty), mask=mask_n[:, None] & mask_m[None, :])


def block_of(w: LowBitWeight) -> int:
    """Codes a step along K: the group, at most 128; without groups the largest power of two up to 128 that K fills."""
    k, groups = w.codes.shape[1], w.scale.shape[1]
    size = k // groups
    return next((b for b in (128, 64, 32) if size % b == 0), 32)


def refuses(w: LowBitWeight) -> str:
    """The Triton form serves every weight whose groups are a multiple of 32, and weights without groups of any K."""
    groups = w.scale.shape[1]
    return "" if groups == 1 or (w.codes.shape[1] // groups) % 32 == 0 else "the group size is not a multiple of 32"


def pack(w: LowBitWeight, storage: int) -> Packed:
    """Packs for `run`: codes [N, Kp/2] (storage 4, planar) or [N, Kp] (storage 8) uint8, scale, and zero or codebook where there is one.

    meta = (storage, block, N, K, code that means 0).
    """
    block, (n, k) = block_of(w), w.codes.shape
    codes = pad_columns(w.codes, block, 0)
    tensors = {"codes": pack_planar(codes, block) if storage == 4 else codes.contiguous(), "scale": w.scale.contiguous()}
    if w.codebook is not None:
        tensors["codebook"] = w.codebook
    elif w.zero is not None:
        tensors["zero"] = w.zero.to(torch.float16).contiguous()
    return Packed(tensors, (storage, block, n, k, 2 ** (w.bits - 1)))


def tiles(m: int, n: int) -> tuple[int, int, int]:
    """(BLOCK_M, BLOCK_N, warps) by arithmetic: narrow N tiles while rows are few, so that every multiprocessor gets work."""
    if m <= 16:
        return 16, 32 if n < 8192 else 64, 4
    return (32, 64, 4) if m <= 32 else (64, 64, 4) if m <= 64 else (64, 128, 8)


@torch.library.custom_op("quantization_explorer::low_bit_matmul", mutates_args=())
def low_bit_matmul(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, codebook: Tensor | None, meta: list[int]) -> Tensor:
    """x [M, K] bf16, fp16 or fp32 -> y [M, N] in the same dtype. The other arguments are those of `pack`."""
    storage, block, n, k, middle = meta
    m = x.shape[0]
    x = x.contiguous()
    # The interpreter computes bf16 dot products wrongly, so on a CPU bf16 activations are multiplied in float32.
    wide = x.device.type == "cpu" and x.dtype == torch.bfloat16
    activation = {torch.float16: tl.float16, torch.bfloat16: tl.float32 if wide else tl.bfloat16, torch.float32: tl.float32}[x.dtype]
    y = torch.empty(m, n, dtype=torch.float32 if wide else x.dtype, device=x.device)
    rows, columns, warps = tiles(m, n)
    groups, blocks = scale.shape[1], triton.cdiv(k, block)
    low_bit_matmul_kernel[(triton.cdiv(n, columns), triton.cdiv(m, rows))](
        x.float() if wide else x, codes, scale, scale if zero is None else zero, scale if codebook is None else codebook, y,
        m, n, k, x.stride(0), codes.stride(0), groups, groups if scale.shape[0] > 1 else 0,
        BITS=storage, BLOCK_K=block, BLOCK_N=columns, BLOCK_M=rows, BLOCKS_PER_GROUP=max(1, blocks // groups),
        BLOCKS=blocks, ZERO=zero is not None, MIDDLE=middle, CODEBOOK=codebook is not None, ACTIVATION=activation, num_warps=warps,
    )  # fmt: skip
    return y.to(x.dtype)


@low_bit_matmul.register_fake
def _(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, codebook: Tensor | None, meta: list[int]) -> Tensor:
    return x.new_empty(x.shape[0], meta[2])


def run(x: Tensor, packed: Packed) -> Tensor:
    """Form.run on what `pack` made."""
    t = packed.tensors
    return low_bit_matmul(x, t["codes"], t["scale"], t.get("zero"), t.get("codebook"), list(packed.meta))
