"""The Triton kernel behind int4_matmul and int8_matmul: y = x W^T, W in codes of 1 to 8 bits, scale a group, optional zero or codebook.

The weights are the left operand of the dot product (swap-AB): for a few rows of x the tile is wide in N, where the work is. Codes become
floats without a conversion instruction (codes.py). Products are summed in float32 over one group, then multiplied by the group's scale, so a
scale costs one multiplication a group and not one a weight; where two scales share a block (NVFP4) they are multiplied into the codes, exactly.
K is split over several programs when N and M alone are too few for the GPU; the partial sums go to a workspace that needs no zeroing and a
second, small kernel adds them in a fixed order. Many rows pay for a dequantized copy. What the tensors hold is packed by formats.py.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import table
from kernels.codes import assembly, constraints, plane_code, planes_by_assembly, table_code, to_float, to_small_float
from kernels.floats import FORMATS, bias
from kernels.formats import Layout
from kernels.op import Packed
from kernels.table import Tile

MANY_ROWS = 96  # from here on a dequantized copy and a 16-bit matmul are faster (estimate: KERNELS.md, section 7.1)
COPY = Tile(0, 0, 0, 0, 0)  # no tile: a dequantized copy and a 16-bit matmul


@triton.jit
def _values(
    word, second, high, book_ptr,
    PLANE: tl.constexpr, BITS: tl.constexpr, KIND: tl.constexpr, MANTISSA: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """One plane of a tile [ROWS, WIDTH] as DTYPE, in plain Triton: what codes.assembly gives in fp16."""
    if KIND == "table":
        return tl.load(book_ptr + table_code(word, PLANE, ROWS, WIDTH).to(tl.int32)).to(DTYPE)
    code = plane_code(second if BITS == 3 and PLANE >= 4 else word, high, PLANE, BITS)
    if KIND == "gather":
        return tl.load(book_ptr + code.to(tl.int32)).to(DTYPE)
    if KIND == "float":
        return to_small_float(code, BITS, MANTISSA).to(DTYPE)
    return to_float(code, 2 ** (BITS - 1)).to(DTYPE)


@triton.jit
def _scale(scale_ptr, nest_ptr, where, SCALE: tl.constexpr, RUN: tl.constexpr):
    """Scales as float32. e8m0: a byte is the exponent; e4m3: the number over 256, the unit comes last; nested: codebook[code] * outer + offset."""
    stored = tl.load(scale_ptr + where)
    if SCALE == "e8m0":
        return (stored.to(tl.int32) << 23).to(tl.float32, bitcast=True)
    if SCALE == "e4m3":
        return to_small_float(stored, 8, 3).to(tl.float32)
    if SCALE == "nested":
        return tl.load(nest_ptr + stored.to(tl.int32)) * tl.load(nest_ptr + 257 + where // RUN) + tl.load(nest_ptr + 256)
    return stored.to(tl.float32)


@triton.jit
def _folded(w, scale_ptr, row, scale_stride, groups, step, PLANE: tl.constexpr, PARTS: tl.constexpr, PLANES: tl.constexpr, LIFT: tl.constexpr):
    """A plane [ROWS, PARTS * INSIDE] of E2M1 codes times the E4M3 scales of its PARTS groups: six significant bits, exact in 16-bit floats."""
    part = tl.minimum((step * PARTS + tl.arange(0, PARTS)) * PLANES + PLANE, groups - 1)
    stored = tl.load(scale_ptr + row[:, None] * scale_stride + part[None, :])
    scale = (to_small_float(stored, 8, 3) * LIFT).to(w.dtype)
    return tl.reshape(tl.reshape(w, (w.shape[0], PARTS, w.shape[1] // PARTS)) * scale[:, :, None], w.shape)


@triton.jit
def _unit(nest_ptr, SCALE: tl.constexpr, FACTOR: tl.constexpr):
    """What all of a weight is multiplied by besides its scales."""
    return tl.load(nest_ptr) * FACTOR if SCALE == "e4m3" else FACTOR


@triton.jit
def _words(codes_ptr, high_ptr, row, stride_codes, stride_high, step, BITS: tl.constexpr, WIDTH: tl.constexpr):
    """The bytes of one block of some rows, [rows, WIDTH], and for 3-bit codes the second run of them and the upper bits."""
    inside = tl.arange(0, WIDTH)[None, :]
    row = row.to(tl.int64)  # a head of 262,144 rows in 8 bits passes 2**31 bytes
    start = codes_ptr + row[:, None] * stride_codes + step * (2 * WIDTH if BITS == 3 else WIDTH) + inside
    word = tl.load(start)
    if BITS == 3:
        return word, tl.load(start + WIDTH), tl.load(high_ptr + row[:, None] * stride_high + step * WIDTH + inside)
    return word, word, word


@triton.jit
def low_bit_matmul_kernel(
    x_ptr, codes_ptr, high_ptr, scale_ptr, zero_ptr, book_ptr, nest_ptr, y_ptr,  # [M, K] act, [N, .] u8 twice, [N, groups] twice, [2**b] f32, f32, out
    m_size, n_size, k_size, steps, stride_x, stride_codes, stride_high, groups, scale_stride,  # scale_stride: 0 when one scale serves all rows
    BITS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, GROUP: tl.constexpr, SPLITS: tl.constexpr,
    ZERO: tl.constexpr, KIND: tl.constexpr, MANTISSA: tl.constexpr, SCALE: tl.constexpr, RUN: tl.constexpr, FACTOR: tl.constexpr,
    EVEN: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr, REGISTERS: tl.constexpr, ASM_BF16: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_N, BLOCK_M] tile of y^T over every SPLITS-th run of steps; BLOCK_K codes a step, packed in blocks of PACKED. GROUP: codes that share a
    scale, 0 for all of a row. EVEN: K is a multiple of BLOCK_K. FACTOR: what sums are multiplied by at the end. ASM: codes.assembly, "" for the
    plain form. out: y [M, N], or with SPLITS > 1 float32 partial sums [SPLITS, M, N]. nest: the unit of E4M3 scales, or codebook, offset and outer scales.
    """
    split = tl.program_id(2)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    row, line = tl.minimum(n, n_size - 1), tl.minimum(m, m_size - 1)  # beyond the end the last one is read again and not stored: no masks
    PLANE_COUNT: tl.constexpr = 1 if BITS == 8 else 2 if BITS == 4 else 4 if BITS == 2 else 8
    WIDTH: tl.constexpr = BLOCK_K // PLANE_COUNT
    TOGETHER: tl.constexpr = PLANE_COUNT if GROUP == 0 or GROUP >= BLOCK_K or PACKED < BLOCK_K else GROUP // WIDTH  # planes that share a scale
    inside = tl.arange(0, WIDTH)
    order = inside if KIND == "table" or ASM != "" else (inside // 4) * 4 + (inside % 2) * 2 + (inside % 4) // 2  # which input meets a stored byte
    order += inside // (PACKED // PLANE_COUNT) * (PACKED - PACKED // PLANE_COUNT)  # several blocks a step: each has its planes side by side
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    first = split * tl.cdiv(steps, SPLITS)
    for step in range(first, tl.minimum(first + tl.cdiv(steps, SPLITS), steps)):
        word, second, high = _words(codes_ptr, high_ptr, row, stride_codes, stride_high, step, BITS, WIDTH)
        if ASM != "":
            tiles = planes_by_assembly(word, second, high, ASM, REGISTERS, BITS, ASM_BF16)
        part = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for plane in tl.static_range(PLANE_COUNT):
            w = tiles[plane].to(DTYPE) if ASM != "" else _values(word, second, high, book_ptr, plane, BITS, KIND, MANTISSA, BLOCK_N, WIDTH, DTYPE)
            # The last block may reach beyond the last group: its codes meet no inputs, but its scale must be a number.
            where = row * scale_stride + (tl.minimum((step * BLOCK_K + plane * WIDTH) // GROUP, groups - 1) if GROUP else 0)
            if ZERO:  # zeros are kept less the middle code: small numbers, exact when they are integers
                w = (w - tl.load(zero_ptr + where)[:, None].to(DTYPE)).to(DTYPE)
            if PACKED < BLOCK_K:
                w = _folded(w, scale_ptr, row, scale_stride, groups, step, plane, BLOCK_K // PACKED, PLANE_COUNT, 1.0 if ASM_BF16 else 32768.0)
            k = step * BLOCK_K + plane * (PACKED // PLANE_COUNT) + order
            inputs = x_ptr + line[None, :] * stride_x + k[:, None]
            x = tl.load(inputs) if EVEN else tl.load(inputs, mask=(k < k_size)[:, None], other=0.0)
            part = tl.dot(w, x.to(DTYPE), part, input_precision="ieee")
            if (plane + 1) % TOGETHER == 0:
                acc += part * _scale(scale_ptr, nest_ptr, where, SCALE, RUN)[:, None] if GROUP and PACKED == BLOCK_K else part
                part = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    if not GROUP:
        acc *= _scale(scale_ptr, nest_ptr, row * scale_stride, SCALE, RUN)[:, None]
    if SCALE == "e4m3" or FACTOR != 1.0:
        acc *= _unit(nest_ptr, SCALE, FACTOR if PACKED == BLOCK_K or ASM_BF16 else FACTOR / 32768.0)
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
    codes_ptr, high_ptr, scale_ptr, zero_ptr, book_ptr, nest_ptr, w_ptr,  # as above; [N, K] act
    n_size, k_size, stride_codes, stride_high, groups, scale_stride,
    BITS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr, KIND: tl.constexpr, MANTISSA: tl.constexpr,
    SCALE: tl.constexpr, RUN: tl.constexpr, FACTOR: tl.constexpr, ASM: tl.constexpr, REGISTERS: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_N, BLOCK_K] tile of the weight in 16 bits a program. ASM gives fp16."""
    n, step = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.program_id(1)
    row = tl.minimum(n, n_size - 1)
    PLANE_COUNT: tl.constexpr = 1 if BITS == 8 else 2 if BITS == 4 else 4 if BITS == 2 else 8
    WIDTH: tl.constexpr = BLOCK_K // PLANE_COUNT
    inside, mask_n = tl.arange(0, WIDTH), n < n_size
    order = inside if KIND == "table" or ASM != "" else (inside // 4) * 4 + (inside % 2) * 2 + (inside % 4) // 2
    word, second, high = _words(codes_ptr, high_ptr, row, stride_codes, stride_high, step, BITS, WIDTH)
    if ASM != "":
        tiles = planes_by_assembly(word, second, high, ASM, REGISTERS, BITS, False)
    unit = _unit(nest_ptr, SCALE, FACTOR)
    for plane in tl.static_range(PLANE_COUNT):
        w = tiles[plane].to(tl.float32) if ASM != "" else _values(word, second, high, book_ptr, plane, BITS, KIND, MANTISSA, BLOCK_N, WIDTH, tl.float32)
        where = row * scale_stride + (tl.minimum((step * BLOCK_K + plane * WIDTH) // GROUP, groups - 1) if GROUP else 0)
        if ZERO:
            w -= tl.load(zero_ptr + where)[:, None].to(tl.float32)
        w *= _scale(scale_ptr, nest_ptr, where, SCALE, RUN)[:, None] * unit
        k = step * BLOCK_K + plane * WIDTH + order
        out = w_ptr + n[:, None].to(tl.int64) * k_size + k[None, :]
        tl.store(out, w.to(w_ptr.dtype.element_ty), mask=mask_n[:, None] & (k < k_size)[None, :])


def default_tile(m: int, n: int, steps: int, bits: int, kind: str, group: int = 128, zero: bool = False, processors: int = 132) -> Tile:
    """By arithmetic, for shapes that no table holds: a tile as narrow as the rows allow, and K split until every multiprocessor has four
    programs, but no program fewer than four steps.

    Two warps, not four: then Hopper's compiler takes the matrix instructions whose operands stay where they were unpacked, four neighbours of a row in
    a register pair, which codes.assembly relies on (see `warp_groups`), and an instruction count a weight of half (tests/test_machine_code.py).

    More than 32 rows of integers that take many registers to unpack are two tiles of 32: no fewer columns, because every column's program reads all of
    the inputs, and unpacking twice costs fewer instructions than 32 columns do.
    """
    fits = bits == 4 and not zero and (group == 0 or group >= 128)
    rows = min(64 if fits or kind != "integer" else 32, max(8, 1 << (m - 1).bit_length()))
    columns, warps = (32, 1) if kind == "table" and rows <= 16 else (64, 2)
    if rows == 32 and bits == 3 and zero and 0 < group <= 64:
        columns = 32
    programs = -(-n // columns) * -(-m // rows)
    stages = 2 if rows == 64 or (bits == 2 and zero and rows == 32) else 3  # with three they spill registers
    return Tile(rows, columns, max(1, min(4 * processors // programs, steps // 4, 16)), warps, stages)


def warp_groups(columns: int, warps: int) -> bool:
    """Whether Hopper's compiler would take its matrix instruction of four warps for a tile. That one's register operand holds two neighbours of a row and
    then two of another row, and what codes.assembly makes of four bytes would go to the wrong places.
    """
    return columns >= 64 and warps % 4 == 0


@torch.library.custom_op("quantization_explorer::low_bit_matmul", mutates_args=())
def low_bit_matmul(
    x: Tensor, codes: Tensor, high: Tensor | None, scale: Tensor, zero: Tensor | None, codebook: Tensor | None, nest: Tensor | None,
    layout: list[int], values: list[float],
) -> Tensor:  # fmt: skip
    """x [M, K] bf16, fp16 or fp32 -> y [M, N] in the same dtype. The other arguments are what `formats.pack` made."""
    at, x = Layout(*layout), x.contiguous()
    tensors = {"codes": codes, "high": high, "scale": scale, "zero": zero, "codebook": codebook, "nest": nest}
    default = partial(default_of, x, at, zero is not None)
    return table.launched(x.device, table_key(at, zero is not None, x.shape[0]), default, partial(launch, x, tensors, at, tuple(values)))


def table_key(at: Layout, zero: bool, m: int) -> str:
    """What the table knows a product of m rows by: beside sizes all that the main loop depends on."""
    form = f"{at.float_name or at.kind} {at.scale_kind}{' zero' if zero else ''}"
    return table.key("low_bit_matmul", at.bits, at.n, at.k, at.group, m, form)


def default_of(x: Tensor, at: Layout, zero: bool) -> Tile:
    """The default tile of a product on x's device."""
    m, processors = x.shape[0], table.processors(x.device)
    return COPY if m >= MANY_ROWS else default_tile(m, at.n, triton.cdiv(at.k, at.step), at.bits, at.kind, at.group, zero, processors)


def launch(x: Tensor, tensors: dict[str, Tensor | None], at: Layout, values: tuple[float, ...], tile: Tile) -> Tensor:
    """y of x [M, K] with one tile, or by a dequantized copy."""
    # The interpreter computes bf16 dot products wrongly and cuts bits off where it should round, so on a CPU bf16 is computed in float32.
    interpreted, bf16, m = x.device.type == "cpu", x.dtype == torch.bfloat16, x.shape[0]
    wide = interpreted and bf16
    dtype = torch.float32 if wide else x.dtype
    codes, scale = tensors["codes"], tensors["scale"]
    upper, offset, book, nest = (scale if tensors[name] is None else tensors[name] for name in ("high", "zero", "codebook", "nest"))
    in_asm = not interpreted and x.dtype != torch.float32 and at.kind != "gather"
    if in_asm and warp_groups(tile.columns, tile.warps):
        raise ValueError(f"a tile of {tile.columns} columns and {tile.warps} warps would be multiplied by warp groups, whose operands lie differently")
    asm_bf16 = in_asm and bf16 and tile != COPY
    shared = {
        "BITS": at.bits, "GROUP": at.group, "ZERO": tensors["zero"] is not None, "KIND": at.kind, "SCALE": at.scale_kind, "RUN": at.run,
        "MANTISSA": FORMATS[at.float_name][1] if at.float_name else 0, "FACTOR": 2.0 ** (15 - bias(at.float_name)) if at.float_name and not asm_bf16 else 1.0,
        "ASM": assembly(at.bits, asm_bf16, at.float_name, values) if in_asm else "", "REGISTERS": constraints(at.bits),
    }  # fmt: skip
    strides = (codes.stride(0), upper.stride(0), scale.shape[1], scale.shape[1] if scale.shape[0] > 1 else 0)
    if tile == COPY:
        weight = torch.empty(at.n, at.k, dtype=dtype, device=x.device)
        dequantize_kernel[(triton.cdiv(at.n, 64), triton.cdiv(at.k, at.block))](
            codes, upper, scale, offset, book, nest, weight, at.n, at.k, *strides,
            BLOCK_K=at.block, BLOCK_N=64, **shared,
        )  # fmt: skip
        return torch.nn.functional.linear(x, weight.to(x.dtype))
    out = torch.empty((tile.splits, m, at.n) if tile.splits > 1 else (m, at.n), dtype=torch.float32 if tile.splits > 1 else dtype, device=x.device)
    low_bit_matmul_kernel[(triton.cdiv(at.n, tile.columns), triton.cdiv(m, tile.rows), tile.splits)](
        x.float() if wide else x, codes, upper, scale, offset, book, nest, out, m, at.n, at.k, triton.cdiv(at.k, at.step), x.stride(0), *strides,
        BLOCK_N=tile.columns, BLOCK_M=tile.rows, SPLITS=tile.splits, EVEN=at.k % at.step == 0, DTYPE=DTYPES[dtype], BLOCK_K=at.step, PACKED=at.block,
        ASM_BF16=asm_bf16, num_warps=tile.warps, num_stages=tile.stages, **shared,
    )  # fmt: skip
    if tile.splits == 1:
        return out.to(x.dtype)
    y = torch.empty(m, at.n, dtype=dtype, device=x.device)
    add_splits_kernel[(triton.cdiv(m * at.n, 1024),)](out, y, m * at.n, SPLITS=tile.splits, BLOCK=1024)
    return y.to(x.dtype)


DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@low_bit_matmul.register_fake
def _(x, codes, high, scale, zero, codebook, nest, layout, values) -> Tensor:
    return x.new_empty(x.shape[0], layout[3])


def run(x: Tensor, packed: Packed) -> Tensor:
    """Form.run on what `formats.pack` made."""
    t = packed.tensors
    return low_bit_matmul(x, t["codes"], t.get("high"), t["scale"], t.get("zero"), t.get("codebook"), t.get("nest"), list(packed.meta[0]), list(packed.meta[1]))
