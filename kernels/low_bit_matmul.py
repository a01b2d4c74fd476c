"""The Triton kernel behind int4_matmul and int8_matmul: y = x W^T, W in codes of 2, 3, 4 or 8 bits, scale a group, optional zero or codebook.

The weights are the left operand of the dot product (swap-AB): for a few rows of x the tile is wide in N, where the work is. Codes become
floats without a conversion instruction (codes.py). Products are summed in float32 over one group, then multiplied by the group's scale, so a
scale costs one multiplication a group and not one a weight. K is split over several programs when N and M alone are too few for the GPU; the
partial sums go to a workspace that needs no zeroing and a second, small kernel adds them in a fixed order. Many rows pay for a dequantized copy.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.codes import plane_code, planes_by_assembly, to_float
from kernels.op import LowBitWeight, Packed
from kernels.packing import PLANES, pack_planar, pad_columns, swizzle

MANY_ROWS = 96  # from here on a dequantized copy and a 16-bit matmul are faster (estimate: KERNELS.md, section 7.1)


@triton.jit
def _values(
    word, second, high, book_ptr,
    PLANE: tl.constexpr, BITS: tl.constexpr, CODEBOOK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """One plane of a tile as DTYPE, in plain Triton: code - 2**(BITS-1), or the codebook's value."""
    code = plane_code(second if BITS == 3 and PLANE >= 4 else word, high, PLANE, BITS)
    if CODEBOOK:
        return tl.load(book_ptr + code.to(tl.int32)).to(DTYPE)
    return to_float(code, 2 ** (BITS - 1)).to(DTYPE)


@triton.jit
def low_bit_matmul_kernel(
    x_ptr, codes_ptr, high_ptr, scale_ptr, zero_ptr, book_ptr, y_ptr,  # [M, K] act, [N, .] u8, [N, .] u8, [N, groups], [N, groups], [2**b] f32, out
    m_size, n_size, k_size, steps, stride_x, stride_codes, stride_high, groups, scale_stride,  # scale_stride: 0 when one scale serves all rows
    BITS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, GROUP: tl.constexpr, SPLITS: tl.constexpr,
    ZERO: tl.constexpr, CODEBOOK: tl.constexpr, EVEN: tl.constexpr, DTYPE: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_N, BLOCK_M] tile of y^T over every SPLITS-th run of steps; BLOCK_K codes a step. GROUP: codes that share a scale, 0 for all of a
    row. EVEN: K is a multiple of BLOCK_K. out: y [M, N], or with SPLITS > 1 float32 partial sums [SPLITS, M, N].
    """
    split = tl.program_id(2)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    row, line = tl.minimum(n, n_size - 1), tl.minimum(m, m_size - 1)  # beyond the end the last one is read again and not stored: no masks
    PLANE_COUNT: tl.constexpr = 1 if BITS == 8 else 2 if BITS == 4 else 4 if BITS == 2 else 8
    WIDTH: tl.constexpr = BLOCK_K // PLANE_COUNT
    TOGETHER: tl.constexpr = PLANE_COUNT if GROUP == 0 or GROUP >= BLOCK_K else GROUP // WIDTH  # planes that share a scale
    inside = tl.arange(0, WIDTH)
    order = inside if CODEBOOK or ASSEMBLY else (inside // 4) * 4 + (inside % 2) * 2 + (inside % 4) // 2  # which input meets a stored byte
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    first = split * tl.cdiv(steps, SPLITS)
    for step in range(first, tl.minimum(first + tl.cdiv(steps, SPLITS), steps)):
        words = row[:, None] * stride_codes + step * (2 * WIDTH if BITS == 3 else WIDTH) + inside[None, :]
        word = tl.load(codes_ptr + words)
        second = tl.load(codes_ptr + words + WIDTH) if BITS == 3 else word
        high = tl.load(high_ptr + row[:, None] * stride_high + step * WIDTH + inside[None, :]) if BITS == 3 else word
        if ASSEMBLY:
            tiles = planes_by_assembly(word, second, high, BITS, tl.bfloat16 == DTYPE)
        part = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for plane in tl.static_range(PLANE_COUNT):
            w = tiles[plane] if ASSEMBLY else _values(word, second, high, book_ptr, plane, BITS, CODEBOOK, DTYPE)
            # The last block may reach beyond the last group: its codes meet no inputs, but its scale must be a number.
            where = row * scale_stride + (tl.minimum((step * BLOCK_K + plane * WIDTH) // GROUP, groups - 1) if GROUP else 0)
            if ZERO:  # zeros are kept less the middle code: small numbers, exact when they are integers
                w = (w - tl.load(zero_ptr + where)[:, None].to(DTYPE)).to(DTYPE)
            k = step * BLOCK_K + plane * WIDTH + order
            inputs = x_ptr + line[None, :] * stride_x + k[:, None]
            x = tl.load(inputs) if EVEN else tl.load(inputs, mask=(k < k_size)[:, None], other=0.0)
            part = tl.dot(w, x.to(DTYPE), part, input_precision="ieee")
            if (plane + 1) % TOGETHER == 0:
                if GROUP:
                    acc += part * tl.load(scale_ptr + where).to(tl.float32)[:, None]
                else:
                    acc += part
                part = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    if not GROUP:
        acc *= tl.load(scale_ptr + row * scale_stride).to(tl.float32)[:, None]
    out = y_ptr + (split * m_size + m[None, :]).to(tl.int64) * n_size + n[:, None]
    tl.store(out, acc.to(y_ptr.dtype.element_ty), mask=(n < n_size)[:, None] & (m < m_size)[None, :])


@triton.jit
def add_splits_kernel(work_ptr, y_ptr, size, SPLITS: tl.constexpr, BLOCK: tl.constexpr):  # [SPLITS, size] f32, [size] act
    """y = the sum of the partial sums, always in the same order."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(work_ptr + split * size + i, mask=i < size, other=0.0)
    tl.store(y_ptr + i, total.to(y_ptr.dtype.element_ty), mask=i < size)


@triton.jit
def dequantize_kernel(
    codes_ptr, high_ptr, scale_ptr, zero_ptr, book_ptr, w_ptr,  # as above; [N, K] act
    n_size, k_size, stride_codes, stride_high, groups, scale_stride,
    BITS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr, CODEBOOK: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_N, BLOCK_K] tile of the weight in 16 bits a program."""
    n, step = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.program_id(1)
    PLANE_COUNT: tl.constexpr = 1 if BITS == 8 else 2 if BITS == 4 else 4 if BITS == 2 else 8
    WIDTH: tl.constexpr = BLOCK_K // PLANE_COUNT
    inside, mask_n = tl.arange(0, WIDTH), n < n_size
    order = inside if CODEBOOK else (inside // 4) * 4 + (inside % 2) * 2 + (inside % 4) // 2
    words = n[:, None] * stride_codes + step * (2 * WIDTH if BITS == 3 else WIDTH) + inside[None, :]
    word = tl.load(codes_ptr + words, mask=mask_n[:, None], other=0)
    second = tl.load(codes_ptr + words + WIDTH, mask=mask_n[:, None], other=0) if BITS == 3 else word
    high = tl.load(high_ptr + n[:, None] * stride_high + step * WIDTH + inside[None, :], mask=mask_n[:, None], other=0) if BITS == 3 else word
    for plane in tl.static_range(PLANE_COUNT):
        w = _values(word, second, high, book_ptr, plane, BITS, CODEBOOK, tl.float32)
        where = n * scale_stride + (tl.minimum((step * BLOCK_K + plane * WIDTH) // GROUP, groups - 1) if GROUP else 0)
        if ZERO:
            w -= tl.load(zero_ptr + where, mask=mask_n, other=0.0)[:, None].to(tl.float32)
        w *= tl.load(scale_ptr + where, mask=mask_n, other=0.0).to(tl.float32)[:, None]
        k = step * BLOCK_K + plane * WIDTH + order
        tl.store(w_ptr + n[:, None].to(tl.int64) * k_size + k[None, :], w.to(w_ptr.dtype.element_ty), mask=mask_n[:, None] & (k < k_size)[None, :])


def block_of(bits: int, group: int) -> int:
    """Codes a step along K: 128 (256 for 3 bits), fewer where the group, 0 for none, is smaller than a plane of that; 0 when no block fits it."""
    planes = PLANES[bits]
    for block in (256, 128, 64, 32) if bits == 3 else (128, 64, 32):
        width = block // planes
        if width >= 16 and (group == 0 or group % block == 0 or (block % group == 0 and group % width == 0)):
            return block
    return 0


def refuses(w: LowBitWeight, bits: int) -> str:
    """Whether the Triton form serves a weight stored in `bits`: groups must be made of whole planes of at least 16 codes."""
    groups = w.scale.shape[1]
    group = 0 if groups == 1 else w.codes.shape[1] // groups
    return "" if block_of(bits, group) else f"groups of {group} do not fit the planes of {bits}-bit codes"


def pack(w: LowBitWeight, bits: int) -> Packed:
    """Packs for `run`: codes, for 3 bits their high bits, scale, and zero (less the middle code, fp16) or codebook where there is one.

    bits: of the storage, at least those of the codes. meta = (bits, block, group or 0, N, K).
    """
    n, k = w.codes.shape
    group = 0 if w.scale.shape[1] == 1 else k // w.scale.shape[1]
    block = block_of(bits, group)
    lift = 2 ** (bits - 1) - 2 ** (w.bits - 1) if w.codebook is None else 0  # narrower codes move up, so that the middle code means 0 again
    middle = 0 if w.codebook is not None else 2 ** (bits - 1)
    codes = pad_columns(w.codes + lift, block, middle)
    tensors = pack_planar(codes if w.codebook is not None else swizzle(codes), block, bits)
    tensors["scale"] = w.scale.contiguous()
    if w.codebook is not None:
        tensors["codebook"] = torch.nn.functional.pad(w.codebook, (0, 2**bits - len(w.codebook)))
    elif w.zero is not None:
        tensors["zero"] = (w.zero - 2 ** (w.bits - 1)).to(torch.float16).contiguous()
    return Packed(tensors, (bits, block, group, n, k))


def tiles(m: int, n: int, steps: int, processors: int = 132) -> tuple[int, int, int, int]:
    """(BLOCK_M, BLOCK_N, splits of K, warps) by arithmetic: a tile as narrow as the rows allow, and K split until every multiprocessor has two
    programs, but no program fewer than four steps.
    """
    rows = max(8, 1 << (m - 1).bit_length()) if m <= 64 else 64
    columns = 64 if m <= 64 else 128
    programs = -(-n // columns) * -(-m // rows)
    return rows, columns, max(1, min(2 * processors // programs, steps // 4, 16)), 4 if m <= 64 else 8


@torch.library.custom_op("quantization_explorer::low_bit_matmul", mutates_args=())
def low_bit_matmul(
    x: Tensor, codes: Tensor, high: Tensor | None, scale: Tensor, zero: Tensor | None, codebook: Tensor | None, meta: list[int]
) -> Tensor:  # fmt: skip
    """x [M, K] bf16, fp16 or fp32 -> y [M, N] in the same dtype. The other arguments are those of `pack`."""
    bits, block, group, n, k = meta
    m, x = x.shape[0], x.contiguous()
    # The interpreter computes bf16 dot products wrongly, so on a CPU bf16 activations are multiplied in float32.
    interpreted = x.device.type == "cpu"
    wide = interpreted and x.dtype == torch.bfloat16
    dtype = {torch.float16: tl.float16, torch.bfloat16: tl.float32 if wide else tl.bfloat16, torch.float32: tl.float32}[x.dtype]
    upper, offset, book = (scale if t is None else t for t in (high, zero, codebook))
    shared = {"BITS": bits, "BLOCK_K": block, "GROUP": group, "ZERO": zero is not None, "CODEBOOK": codebook is not None}
    scale_stride, steps = scale.shape[1] if scale.shape[0] > 1 else 0, triton.cdiv(k, block)
    if m >= MANY_ROWS:
        weight = torch.empty(n, k, dtype=x.dtype, device=x.device)
        dequantize_kernel[(triton.cdiv(n, 64), steps)](
            codes, upper, scale, offset, book, weight, n, k, codes.stride(0), upper.stride(0), scale.shape[1], scale_stride, BLOCK_N=64, **shared
        )
        return torch.nn.functional.linear(x, weight)
    rows, columns, splits, warps = tiles(m, n, steps, _processors(x.device))
    out = torch.empty((splits, m, n) if splits > 1 else (m, n), dtype=torch.float32 if splits > 1 or wide else x.dtype, device=x.device)
    low_bit_matmul_kernel[(triton.cdiv(n, columns), triton.cdiv(m, rows), splits)](
        x.float() if wide else x, codes, upper, scale, offset, book, out,
        m, n, k, steps, x.stride(0), codes.stride(0), upper.stride(0), scale.shape[1], scale_stride,
        BLOCK_N=columns, BLOCK_M=rows, SPLITS=splits, EVEN=k % block == 0, DTYPE=dtype,
        ASSEMBLY=not interpreted and codebook is None and x.dtype != torch.float32, num_warps=warps, **shared,
    )  # fmt: skip
    if splits == 1:
        return out.to(x.dtype)
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)
    add_splits_kernel[(triton.cdiv(m * n, 1024),)](out, y, m * n, SPLITS=splits, BLOCK=1024)
    return y


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


@low_bit_matmul.register_fake
def _(x: Tensor, codes: Tensor, high: Tensor | None, scale: Tensor, zero: Tensor | None, codebook: Tensor | None, meta: list[int]) -> Tensor:
    return x.new_empty(x.shape[0], meta[3])


def run(x: Tensor, packed: Packed) -> Tensor:
    """Form.run on what `pack` made."""
    t = packed.tensors
    return low_bit_matmul(x, t["codes"], t.get("high"), t["scale"], t.get("zero"), t.get("codebook"), list(packed.meta))
