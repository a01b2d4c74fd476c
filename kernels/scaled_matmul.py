"""The Triton kernel behind the W8A8 ops: int8 or float8 inputs and weights on matrix units, then scales per token, per row or per block.

int8 products are summed in int32, exactly. Float8 products are summed by the matrix unit over 128 inputs at most, because it keeps few bits of
a running sum, and those sums are added in float32; a block's scales are applied at that point. Inputs that stay in 16 bits (the outlier
columns of LLM.int8) are multiplied in the same program after the loop.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import table
from kernels.op import BLOCK, Activation, Packed, compute_capability
from kernels.round_inputs import round_inputs
from kernels.table import Tile


@triton.jit
def scaled_matmul_kernel(
    x_ptr, w_ptr, scale_x_ptr, scale_w_ptr, y_ptr,  # [M, K] i8 or f8, [N, K], [M] or [M, K/128] f32, [N] or [N/128, K/128] f32, [M, N] act
    plain_ptr, columns_ptr, kept_ptr,  # [M, K] act, [C] i32, [N, C] i8: the inputs that stay in 16 bits and the codes they meet
    m_size, n_size, k_size, stride_plain, column_count,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, INTEGER: tl.constexpr, BLOCKS_X: tl.constexpr, BLOCKS_W: tl.constexpr,
    COLUMNS: tl.constexpr, EVEN: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_M, BLOCK_N] tile of y a program; eight tiles along M run together, so that their weights are read from the cache."""
    program, tall, wide = tl.program_id(0), tl.cdiv(m_size, BLOCK_M), tl.cdiv(n_size, BLOCK_N)
    band = program // (8 * wide)
    height = tl.minimum(tall - band * 8, 8)
    m = (band * 8 + program % (8 * wide) % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (program % (8 * wide) // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    line, row = tl.minimum(m, m_size - 1).to(tl.int64), tl.minimum(n, n_size - 1).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32 if INTEGER else tl.float32)
    blocks = tl.cdiv(k_size, BLOCK_K)
    for step in range(0, blocks):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        inputs, weights = x_ptr + line[:, None] * k_size + k[None, :], w_ptr + row[None, :] * k_size + k[:, None]
        x = tl.load(inputs) if EVEN else tl.load(inputs, mask=(k < k_size)[None, :], other=0.0)
        w = tl.load(weights) if EVEN else tl.load(weights, mask=(k < k_size)[:, None], other=0.0)
        if INTEGER:
            acc = tl.dot(x, w, acc, out_dtype=tl.int32)
        else:
            part = tl.dot(x, w)
            if BLOCKS_X:
                part *= tl.load(scale_x_ptr + line * blocks + step)[:, None]
            if BLOCKS_W:
                part *= tl.load(scale_w_ptr + row // BLOCK_K * blocks + step)[None, :]
            acc += part
    y = acc.to(tl.float32)
    if not BLOCKS_X:
        y *= tl.load(scale_x_ptr + line)[:, None]
    if COLUMNS:
        plain = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, column_count, 16):
            c = start + tl.arange(0, 16)
            column = tl.load(columns_ptr + c, mask=c < column_count, other=0)
            x = tl.load(plain_ptr + line[:, None] * stride_plain + column[None, :], mask=(c < column_count)[None, :], other=0.0)
            w = tl.load(kept_ptr + row[None, :] * column_count + c[:, None], mask=(c < column_count)[:, None], other=0)
            plain = tl.dot(x.to(DTYPE), w.to(DTYPE), plain, input_precision="ieee")
        y += plain
    if not BLOCKS_W:
        y *= tl.load(scale_w_ptr + row)[None, :]
    tl.store(y_ptr + m[:, None].to(tl.int64) * n_size + n[None, :], y.to(y_ptr.dtype.element_ty), mask=(m < m_size)[:, None] & (n < n_size)[None, :])


def default_tile(m: int, integer: bool, more: bool = False, capability: int = 90) -> Tile:
    """A tile as narrow as few rows allow; of many as large as the registers allow, because what a tile reads from the cache limits it. Float8 keeps two
    sums for each output; more: beside them scales of blocks, or sums of outlier columns. Before Hopper operands lie in registers as well.
    """
    if m <= 256:
        return Tile(16 if m <= 16 else 64, 64, 1, 4, 3)
    if integer:
        return Tile(128, 256 if m >= 1024 and capability >= 90 and not more else 128, 1, 8, 3)
    return Tile(64, 128, 1, 4, 3) if more else Tile(128, 128, 1, 8, 3)


def table_key(codes: Tensor, m: int, a: Activation, scale: Tensor, kept: Tensor | None) -> str:
    """What the table knows a product of m rows by: beside sizes all that the main loop and what follows it depend on."""
    form = f"{a.kind}{' blocks' if a.per == 'block' else ''}{' weight blocks' if scale.dim() == 2 else ''}{'' if kept is None else ' columns'}"
    return table.key("scaled_matmul", 8, *codes.shape, 0, m, form)


def default_of(x: Tensor, t: dict[str, Tensor | None], a: Activation) -> Tile:
    """The default tile of a product on x's device."""
    more = a.per == "block" or t["scale"].dim() == 2 or t.get("kept") is not None
    return default_tile(x.shape[0], a.kind == "int8", more, compute_capability(x.device))


@torch.library.custom_op("quantization_explorer::scaled_matmul", mutates_args=())
def scaled_matmul(
    x: Tensor, codes: Tensor, scale: Tensor, keep: Tensor | None, columns: Tensor | None, kept: Tensor | None, kind: str, per: str, given: float
) -> Tensor:
    """x [M, K] bf16, fp16 or fp32 -> y [M, N] in x's dtype, x rounded as kind, per and given say. codes [N, K] int8 or float8; scale [N] or
    [N / 128, K / 128] float32; keep [K], columns [C] int32 and kept [N, C] int8: see the kernel.
    """
    t, a = {"codes": codes, "scale": scale, "keep": keep, "columns": columns, "kept": kept}, Activation(kind, per, given)
    x = x.contiguous()
    return _tiled(x, *round_inputs(x, kind, per, given, keep), t, a)


@torch.library.custom_op("quantization_explorer::rounded_matmul", mutates_args=())
def rounded_matmul(x: Tensor, rounded: Tensor, scale_x: Tensor, codes: Tensor, scale: Tensor, kind: str) -> Tensor:
    """As `scaled_matmul` per token, of inputs [M, K] that came as codes and scale [M, 1]; x gives the result's dtype."""
    return _tiled(x, rounded, scale_x, {"codes": codes, "scale": scale}, Activation(kind))


@rounded_matmul.register_fake
def _(x, rounded, scale_x, codes, scale, kind):
    return x.new_empty(rounded.shape[0], codes.shape[0])


def launch(x: Tensor, t: dict[str, Tensor | None], a: Activation, tile: Tile) -> Tensor:
    """y of x [M, K] with one tile."""
    x = x.contiguous()
    return _multiply(x, *round_inputs(x, a.kind, a.per, a.scale, t.get("keep")), t, a, tile)


def _tiled(x: Tensor, rounded: Tensor, scale_x: Tensor, t: dict[str, Tensor | None], a: Activation) -> Tensor:
    """With the table's tile for this GPU and shape, else the default."""
    key = table_key(t["codes"], len(rounded), a, t["scale"], t.get("kept"))
    return table.launched(x.device, key, partial(default_of, rounded, t, a), partial(_multiply, x, rounded, scale_x, t, a))


def _multiply(x: Tensor, rounded: Tensor, scale_x: Tensor, t: dict[str, Tensor | None], a: Activation, tile: Tile) -> Tensor:
    codes, scale, kept = t["codes"], t["scale"], t.get("kept")
    (m, k), n = rounded.shape, codes.shape[0]
    wide = x.device.type == "cpu" or x.dtype == torch.float32  # the interpreter computes bf16 dot products wrongly and cuts bits off
    dtype = tl.float32 if wide else tl.float16 if x.dtype == torch.float16 else tl.bfloat16
    y = torch.empty(m, n, dtype=torch.float32 if wide else x.dtype, device=x.device)
    scaled_matmul_kernel[(triton.cdiv(n, tile.columns) * triton.cdiv(m, tile.rows),)](
        rounded, codes, scale_x, scale, y, x, scale if kept is None else t["columns"], scale if kept is None else kept,
        m, n, k, x.stride(0), 0 if kept is None else kept.shape[1],
        BLOCK_M=tile.rows, BLOCK_N=tile.columns, BLOCK_K=BLOCK, INTEGER=a.kind == "int8", BLOCKS_X=a.per == "block", BLOCKS_W=scale.dim() == 2,
        COLUMNS=kept is not None, EVEN=k % BLOCK == 0, DTYPE=dtype, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y.to(x.dtype)


@scaled_matmul.register_fake
def _(x, codes, scale, keep, columns, kept, kind, per, given):
    return x.new_empty(x.shape[0], codes.shape[0])


def run_rounded(x: Tensor, rounded: Tensor, scale_x: Tensor, packed: Packed) -> Tensor:
    """Form.rounded on tensors codes and scale; meta = (activation,) without outlier columns."""
    return rounded_matmul(x, rounded, scale_x, packed.tensors["codes"], packed.tensors["scale"], packed.meta[0].kind)


def kept_columns(codes: Tensor, activation: Activation) -> dict[str, Tensor]:
    """What stays in 16 bits: the columns' indices, their codes, and a mask of the others. codes [N, K] int8."""
    if not activation.columns:
        return {}
    columns = torch.tensor(activation.columns, dtype=torch.int32, device=codes.device)
    keep = torch.ones(codes.shape[1], device=codes.device)
    keep[columns.long()] = 0
    return {"keep": keep, "columns": columns, "kept": codes[:, columns.long()].contiguous()}


def run(x: Tensor, packed: Packed) -> Tensor:
    """Form.run on tensors codes and scale, and those of `kept_columns`; meta = (activation,)."""
    t, (a,) = packed.tensors, packed.meta
    return scaled_matmul(x, t["codes"], t["scale"], t.get("keep"), t.get("columns"), t.get("kept"), a.kind, a.per, a.scale)
