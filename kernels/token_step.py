"""What one token's step does between its matrix products, in three kernels instead of eight: on a GPU each of them waits for the one before.

Turning queries and keys by their position and storing keys and values; adding to the hidden state and normalising it; the gated product of an
MLP. In float32, rounded once; knows no model. Lengths and positions are read on the device, so that a CUDA graph can hold the step.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def turn_kernel(
    rows_ptr, table_ptr, position_ptr, queries_ptr, cache_ptr,  # [B, heads, D], [2, T, D], [1] i64, [B, Q, D], [B, 2 KV, T, D]
    context, queries, turned, half, cache_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head of one sequence a program: the first `turned` heads turn, the first `queries` go to queries, the rest to the cache. half: D / 2."""
    batch, head, d = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BLOCK)
    inside, position = d < half, tl.load(position_ptr)
    row = rows_ptr + (batch * tl.num_programs(1) + head) * 2 * half + d
    low, high = tl.load(row, mask=inside, other=0.0).to(tl.float32), tl.load(row + half, mask=inside, other=0.0).to(tl.float32)
    first, second = low, high
    if head < turned:
        cosine, sine = table_ptr + position * 2 * half + d, table_ptr + (context + position) * 2 * half + d  # the first half's sines are negative
        first = low * tl.load(cosine, mask=inside, other=0.0).to(tl.float32) + high * tl.load(sine, mask=inside, other=0.0).to(tl.float32)
        second = high * tl.load(cosine + half, mask=inside, other=0.0).to(tl.float32) + low * tl.load(sine + half, mask=inside, other=0.0).to(tl.float32)
    if head < queries:
        out = queries_ptr + (batch * queries + head) * 2 * half + d
    else:
        out = cache_ptr + batch * cache_stride + ((head - queries) * context + position) * 2 * half + d
    tl.store(out, first.to(rows_ptr.dtype.element_ty), mask=inside)
    tl.store(out + half, second.to(rows_ptr.dtype.element_ty), mask=inside)


@triton.jit
def add_and_norm_kernel(hidden_ptr, change_ptr, weight_ptr, y_ptr, width, eps, BLOCK: tl.constexpr):  # [M, H] act twice, [H], [M, H] act
    """One row a program."""
    i = tl.arange(0, BLOCK)
    inside, at = i < width, tl.program_id(0) * width + i
    x = tl.load(hidden_ptr + at, mask=inside, other=0.0).to(tl.float32) + tl.load(change_ptr + at, mask=inside, other=0.0).to(tl.float32)
    kept = x.to(hidden_ptr.dtype.element_ty)
    tl.store(hidden_ptr + at, kept, mask=inside)
    x = kept.to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / width + eps) * tl.load(weight_ptr + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def gated_kernel(rows_ptr, y_ptr, width, BLOCK: tl.constexpr):  # [M, 2 F] act, [M, F] act
    """BLOCK of one row's outputs a program."""
    i, row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.program_id(0)
    inside = i < width
    gate, up = (tl.load(rows_ptr + row * 2 * width + i, mask=inside, other=0.0).to(tl.float32),
                tl.load(rows_ptr + row * 2 * width + width + i, mask=inside, other=0.0).to(tl.float32))  # fmt: skip
    tl.store(y_ptr + row * width + i, (gate * tl.sigmoid(gate) * up).to(y_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op("quantization_explorer::turn_and_store", mutates_args=("cache",))
def turn_and_store(rows: Tensor, table: Tensor, position: Tensor, cache: Tensor, queries: int) -> Tensor:
    """rows [B, (Q + 2 KV) D], the queries, keys and values of one token each -> queries [B, Q, D], turned; turned keys and values go to cache
    [B, 2, KV, T, D] at position [1] int64. table [2, T, 2, D / 2]: cosines, and the sines, those of the first half negative.
    """
    (batch, _, keys, context, size), half = cache.shape, cache.shape[4] // 2
    found = torch.empty(batch, queries, size, dtype=rows.dtype, device=rows.device)
    turn_kernel[(batch, queries + 2 * keys)](
        rows, table, position, found, cache, context, queries, queries + keys, half, cache.stride(0), BLOCK=triton.next_power_of_2(half), num_warps=1
    )
    return found


@turn_and_store.register_fake
def _(rows, table, position, cache, queries):
    return rows.new_empty(rows.shape[0], queries, cache.shape[4])


@torch.library.custom_op("quantization_explorer::add_and_norm", mutates_args=("hidden",))
def add_and_norm(hidden: Tensor, change: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Adds change to hidden, both [M, H], and gives its RMSNorm with weight [H]."""
    y = torch.empty_like(hidden)
    width = hidden.shape[1]
    block = triton.next_power_of_2(width)
    add_and_norm_kernel[(len(hidden),)](hidden, change, weight, y, width, eps, BLOCK=block, num_warps=max(4, min(16, block // 512)))
    return y


@add_and_norm.register_fake
def _(hidden, change, weight, eps):
    return torch.empty_like(hidden)


@torch.library.custom_op("quantization_explorer::gated", mutates_args=())
def gated(rows: Tensor) -> Tensor:
    """silu(gate) * up of rows [M, 2 F], gate beside up -> [M, F]."""
    m, width = rows.shape[0], rows.shape[1] // 2
    y = torch.empty(m, width, dtype=rows.dtype, device=rows.device)
    gated_kernel[(m, triton.cdiv(width, 1024))](rows, y, width, BLOCK=1024)
    return y


@gated.register_fake
def _(rows):
    return rows.new_empty(rows.shape[0], rows.shape[1] // 2)
