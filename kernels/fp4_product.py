"""The Triton kernel behind block_float_matmul on GPUs with FP4 units: MXFP4 or NVFP4 inputs with weights of the same format, sums in float32.

As in low_bit_matmul.py the weights are the left operand, so that a tile of few rows still fills a matrix instruction. The units multiply the block scales;
what NVFP4's are multiples of is multiplied at the end.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import table
from kernels.floats import float_format
from kernels.formats import narrow
from kernels.low_bit_matmul import add_splits_kernel
from kernels.op import BLOCKS, Form, LowBitWeight, Packed
from kernels.round_blocks import fp4_codes
from kernels.table import Tile

SCALE = {"mx": "e8m0", "nvfp4": "e4m3"}  # how `narrow` names them
STEP = 256  # codes of a row that a program takes at once


@triton.jit
def fp4_product_kernel(
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, unit_ptr, y_ptr,  # [M, K/2] u8, [M, K/SIZE] u8 or f8, [N, K/2], [N, K/SIZE], [1] f32, out
    m_size, n_size, k_size, steps,
    SIZE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_N, BLOCK_M] tile of y^T over every SPLITS-th run of steps. out: y [M, N], or with SPLITS > 1 float32 partial sums [SPLITS, M, N]."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(2)
    row, line = tl.minimum(n, n_size - 1).to(tl.int64), tl.minimum(m, m_size - 1).to(tl.int64)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    first = split * tl.cdiv(steps, SPLITS)
    for step in range(first, tl.minimum(first + tl.cdiv(steps, SPLITS), steps)):
        byte = step * (BLOCK_K // 2) + tl.arange(0, BLOCK_K // 2)
        block = step * (BLOCK_K // SIZE) + tl.arange(0, BLOCK_K // SIZE)
        inside, scaled = byte < k_size // 2, block < k_size // SIZE
        w = tl.load(w_ptr + row[:, None] * (k_size // 2) + byte[None, :], mask=inside[None, :], other=0)
        x = tl.load(x_ptr + line[None, :] * (k_size // 2) + byte[:, None], mask=inside[:, None], other=0)
        w_scale = tl.load(w_scale_ptr + row[:, None] * (k_size // SIZE) + block[None, :], mask=scaled[None, :], other=0.0)
        x_scale = tl.load(x_scale_ptr + line[:, None] * (k_size // SIZE) + block[None, :], mask=scaled[None, :], other=0.0)
        acc = tl.dot_scaled(w, w_scale, "e2m1", x, x_scale, "e2m1", acc)
    acc *= tl.load(unit_ptr)
    out = y_ptr + (split * m_size + m[None, :]).to(tl.int64) * n_size + n[:, None]
    tl.store(out, acc.to(y_ptr.dtype.element_ty), mask=(n < n_size)[:, None] & (m < m_size)[None, :])


def default_tile(m: int, n: int, steps: int, processors: int) -> Tile:
    """By arithmetic: a tile as narrow as the rows allow and no wider than registers hold with NVFP4's scales, and K split until every multiprocessor has a
    program, but none fewer than two steps.
    """
    rows = min(64, max(16, triton.next_power_of_2(m)))
    programs = triton.cdiv(n, 128) * triton.cdiv(m, rows)
    return Tile(rows, 128, max(1, min(processors // programs, steps // 2, 8)), 4 if rows < 64 else 8, 3)


def default_of(x: Tensor, codes: Tensor) -> Tile:
    """The default tile of a product on x's device."""
    return default_tile(len(x), len(codes), triton.cdiv(x.shape[1], STEP), table.processors(x.device))


def candidates(m: int, n: int, k: int) -> list[Tile]:
    """Tiles worth timing: their 128 columns are what one instruction takes, and K is split only while two steps a program are left."""
    highest, steps = min(128, max(16, triton.next_power_of_2(m))), triton.cdiv(k, STEP)
    splits = [s for s in (1, 2, 4, 8) if s == 1 or (m <= 128 and s <= steps // 2)]
    heights = [rows for rows in (16, 32, 64, 128) if highest // 2 <= rows <= highest]
    return [Tile(rows, 128, s, warps, stages) for rows in heights for s in splits for warps in (4, 8) for stages in (2, 3, 4)]


def table_key(codes: Tensor, m: int, per: str) -> str:
    """What the table knows a product of m rows by."""
    return table.key("fp4_product", 4, len(codes), 2 * codes.shape[1], BLOCKS[per], m, per)


@torch.library.custom_op("quantization_explorer::fp4_product", mutates_args=())
def fp4_product(x: Tensor, codes: Tensor, scale: Tensor, unit: Tensor, per: str, given: float) -> Tensor:
    """x [M, K] bf16, fp16 or fp32 -> y [M, N] in the same dtype. The other arguments are what `_pack` made."""
    t = {"codes": codes, "scale": scale, "unit": unit}
    return table.launched(x.device, table_key(codes, len(x), per), partial(default_of, x, codes), partial(launch, x, t, per, given))


def launch(x: Tensor, t: dict[str, Tensor], per: str, given: float, tile: Tile) -> Tensor:
    """As `fp4_product`, with one tile."""
    (m, k), n = x.shape, len(t["codes"])
    dtype = torch.float32 if x.device.type == "cpu" else x.dtype  # the interpreter cuts bits off where it should round
    rounded, x_scale = fp4_codes(x, per, given)
    out = torch.empty((tile.splits, m, n) if tile.splits > 1 else (m, n), dtype=torch.float32 if tile.splits > 1 else dtype, device=x.device)
    fp4_product_kernel[(triton.cdiv(n, tile.columns), triton.cdiv(m, tile.rows), tile.splits)](
        rounded, x_scale, t["codes"], t["scale"], t["unit"], out, m, n, k, triton.cdiv(k, STEP),
        SIZE=BLOCKS[per], BLOCK_K=STEP, BLOCK_N=tile.columns, BLOCK_M=tile.rows, SPLITS=tile.splits, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if tile.splits == 1:
        return out.to(x.dtype)
    y = torch.empty(m, n, dtype=dtype, device=x.device)
    add_splits_kernel[(triton.cdiv(m * n, 1024),)](out, y, m * n, SPLITS=tile.splits, BLOCK=1024)
    return y.to(x.dtype)


@fp4_product.register_fake
def _(x, codes, scale, unit, per, given):
    return x.new_empty(x.shape[0], codes.shape[0])


def _refuses(w: LowBitWeight) -> str:
    a = w.activation
    if float_format(w.codebook) != "e2m1" or a.kind != "e2m1":
        return "FP4 units take weights and inputs in E2M1"
    n, k = w.codes.shape
    if w.scale.shape != (n, k // BLOCKS[a.per]) or k % BLOCKS[a.per] or narrow(w)[1] != SCALE[a.per]:
        return f"FP4 units take a scale in {SCALE[a.per].upper()} for {BLOCKS[a.per]} weights"
    return ""


def _pack(w: LowBitWeight) -> Packed:
    """codes [N, K/2] uint8, the first of two in the lower half; scale [N, K/SIZE] uint8 E8M0 or float8; unit [1] float32; meta = (per, given)."""
    scale = narrow(w)[0].contiguous()
    unit = torch.full((1,), w.activation.scale or 1.0, device=w.codes.device) * (1.0 if w.activation.per == "mx" else w.unit)
    codes = (w.codes[:, ::2] | w.codes[:, 1::2] << 4).contiguous()
    made = {"codes": codes, "scale": scale if w.activation.per == "mx" else scale.view(torch.float8_e4m3fn), "unit": unit}
    return Packed(made, (w.activation.per, w.activation.scale))


def _run(x: Tensor, packed: Packed) -> Tensor:
    t = packed.tensors
    return fp4_product(x, t["codes"], t["scale"], t["unit"], *packed.meta)


FP4 = Form("triton FP4", _refuses, _pack, _run, "inputs are rounded in a pass of their own, then FP4 units multiply; not run on a GPU yet", capability=100)
