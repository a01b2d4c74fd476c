"""Attention of one new token over a cache in low bits: older keys and values as codes, the newest in 16 bits (KIVI, arXiv 2402.02750).

The layout is that of `low_bit_cache`. A tile is one group of 32 tokens, so the keys' scales multiply the queries, not the codes, and the minima make
one sum a query. The query heads that share a key head are the columns of a tile: every code is unpacked once for all of them. A context is
split over programs; the newest tokens are a split of their own; a second kernel puts the splits together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import table
from kernels.codes import assembly, constraints, plane_code, planes_by_assembly, to_float
from kernels.low_bit_cache import GROUP, LowBitCache, attention, dequantize, pack, run, unpacked
from kernels.native_attention import NATIVE, attend, reads
from kernels.op import Baseline, Form, Op, Packed
from kernels.table import Tile


@triton.jit
def _weigh(score, peak, total):
    """(weights, factor of what was summed before, new peak, new total) of scores [tokens, heads] after those that gave peak and total [heads]."""
    higher = tl.maximum(peak, tl.max(score, 0))
    weight, factor = tl.exp(score - higher[None, :]), tl.exp(peak - higher)
    return weight, factor, higher, total * factor + tl.sum(weight, 0)


@triton.jit
def _scaled(code, scale, low, GROUPS: tl.constexpr, INSIDE: tl.constexpr, TOKENS: tl.constexpr):
    """Codes [TOKENS, GROUPS * INSIDE] times scale plus low, both [TOKENS, GROUPS], turned over."""
    value = tl.reshape(code, (TOKENS, GROUPS, INSIDE)) * scale[:, :, None] + low[:, :, None]
    return tl.trans(tl.reshape(value.to(code.dtype), (TOKENS, GROUPS * INSIDE)))


@triton.jit
def _over_newest(
    query, there, keys_ptr, values_ptr, out, start_row, newest, factor, D: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr, DTYPE: tl.constexpr
):
    """(peak, total) [HEADS] over the tokens in 16 bits, which begin with number start_row; their weighted values go to out."""
    d, t = tl.arange(0, D), tl.arange(0, TOKENS)
    peak, total = tl.full((HEADS,), -1e30, tl.float32), tl.zeros((HEADS,), tl.float32)
    q = (tl.load(query + d[:, None], mask=there, other=0.0).to(tl.float32) * factor).to(DTYPE)
    acc = tl.zeros((D, HEADS), tl.float32)
    for start in range(0, newest, TOKENS):
        real = start + t < newest
        where = (start_row + start + t) * D
        k = tl.load(keys_ptr + where[:, None] + d[None, :], mask=real[:, None], other=0.0).to(DTYPE)
        score = tl.where(real[:, None], tl.dot(k, q, input_precision="ieee"), -1e30)
        weight, before, peak, total = _weigh(score, peak, total)
        v = tl.load(values_ptr + where[None, :] + d[:, None], mask=real[None, :], other=0.0).to(DTYPE)
        acc = tl.dot(v, weight.to(DTYPE), acc * before[None, :], input_precision="ieee")
    tl.store(out + d[:, None], acc, mask=there)
    return peak, total


@triton.jit
def _codes(word, PLANE: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """One plane of codes less the middle one, in plain Triton."""
    return to_float(plane_code(word, word, PLANE, BITS), 2 ** (BITS - 1)).to(DTYPE)


@triton.jit
def _scores(
    query, there, word, key_scale_ptr, key_low_ptr, shared, place, factor,
    BITS: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr, REGISTERS: tl.constexpr, ASM_BF16: tl.constexpr,
):  # fmt: skip
    """Scores [TOKENS, HEADS] of one group of keys from bytes [TOKENS, .]; shared: where its scales start."""
    PLANES: tl.constexpr = 8 // BITS
    score = tl.zeros((TOKENS, HEADS), tl.float32)
    if ASM != "":
        codes = planes_by_assembly(word, word, word, ASM, REGISTERS, BITS, ASM_BF16)
    for plane in tl.static_range(PLANES):
        d = place * PLANES + plane
        scale, low = tl.load(key_scale_ptr + shared + d).to(tl.float32), tl.load(key_low_ptr + shared + d).to(tl.float32)
        q = tl.load(query + d[:, None], mask=there, other=0.0).to(tl.float32) * factor
        key = codes[plane].to(DTYPE) if ASM != "" else _codes(word, plane, BITS, DTYPE)
        score = tl.dot(key, (q * scale[:, None]).to(DTYPE), score, input_precision="ieee")
        score += tl.sum(q * (low + scale * 2 ** (BITS - 1))[:, None], 0)[None, :]
    return score


@triton.jit
def _over_codes(
    query, there, key_codes_ptr, key_scale_ptr, key_low_ptr, value_codes_ptr, value_scale_ptr, value_low_ptr, out, row, tokens, first, last, factor,
    D: tl.constexpr, BITS: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr, DTYPE: tl.constexpr,
    ASM: tl.constexpr, REGISTERS: tl.constexpr, ASM_BF16: tl.constexpr,
):  # fmt: skip
    """(peak, total) [HEADS] over groups of tokens from first to last; their weighted values go to out."""
    PLANES: tl.constexpr = 8 // BITS
    WIDTH: tl.constexpr = D // PLANES
    GROUPS: tl.constexpr = D // TOKENS
    i, g, t = tl.arange(0, WIDTH), tl.arange(0, GROUPS), tl.arange(0, TOKENS)
    place = (i // 4) * 4 + (i % 2) * 2 + (i % 4) // 2 if ASM != "" else i  # the byte that an unpacked code comes from
    peak, total = tl.full((HEADS,), -1e30, tl.float32), tl.zeros((HEADS,), tl.float32)
    acc0 = tl.zeros((WIDTH, HEADS), tl.float32)
    acc1, acc2, acc3 = acc0, acc0, acc0
    for group in range(first, last):
        token = row * tokens + group * TOKENS + t
        word, shared = tl.load(key_codes_ptr + token[:, None] * WIDTH + i[None, :]), (row * (tokens // TOKENS) + group) * D
        score = _scores(query, there, word, key_scale_ptr, key_low_ptr, shared, place, factor, BITS, HEADS, TOKENS, DTYPE, ASM, REGISTERS, ASM_BF16)
        weight, before, peak, total = _weigh(score, peak, total)
        weight = weight.to(DTYPE)
        word = tl.load(value_codes_ptr + token[:, None] * WIDTH + i[None, :])
        if ASM != "":
            codes = planes_by_assembly(word, word, word, ASM, REGISTERS, BITS, ASM_BF16)
        across = token[:, None] * GROUPS + g[None, :]
        scale = tl.load(value_scale_ptr + across)
        low = (tl.load(value_low_ptr + across).to(tl.float32) + scale.to(tl.float32) * 2 ** (BITS - 1)).to(DTYPE)
        for plane in tl.static_range(PLANES):
            code = codes[plane].to(DTYPE) if ASM != "" else _codes(word, plane, BITS, DTYPE)
            value = _scaled(code, scale.to(DTYPE), low, GROUPS, TOKENS // PLANES, TOKENS)
            if plane == 0:
                acc0 = tl.dot(value, weight, acc0 * before[None, :], input_precision="ieee")
            elif plane == 1:
                acc1 = tl.dot(value, weight, acc1 * before[None, :], input_precision="ieee")
            elif plane == 2:
                acc2 = tl.dot(value, weight, acc2 * before[None, :], input_precision="ieee")
            else:
                acc3 = tl.dot(value, weight, acc3 * before[None, :], input_precision="ieee")
    for plane in tl.static_range(PLANES):
        tl.store(out + (place * PLANES + plane)[:, None], acc0 if plane == 0 else acc1 if plane == 1 else acc2 if plane == 2 else acc3, mask=there)
    return peak, total


@triton.jit
def kv_attention_kernel(
    q_ptr, key_codes_ptr, key_scale_ptr, key_low_ptr, value_codes_ptr, value_scale_ptr, value_low_ptr, keys_ptr, values_ptr, part_ptr, peak_ptr, total_ptr,
    counts_ptr, tokens, newest, heads, factor, splits,
    D: tl.constexpr, BITS: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr, DTYPE: tl.constexpr,
    ASM: tl.constexpr, REGISTERS: tl.constexpr, ASM_BF16: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    """One split of one key head a program. q [B, H * heads, D]; part [B H, splits + 1, heads, D], peak and total [B H, splits + 1, heads] float32.
    The last split is that of the newest tokens. tokens, newest: what there is room for; COUNTED: counts say how many there are.
    """
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    h = tl.arange(0, HEADS)
    query, there = q_ptr + (row * heads + h[None, :]) * D, (h < heads)[None, :]
    at = (row * (splits + 1) + split) * heads + h
    out = part_ptr + at[None, :] * D
    if split == splits:
        count = tl.load(counts_ptr + 1).to(tl.int32) if COUNTED else newest
        peak, total = _over_newest(query, there, keys_ptr, values_ptr, out, row * newest, count, factor, D, HEADS, TOKENS, DTYPE)
    else:
        groups = (tl.load(counts_ptr).to(tl.int32) if COUNTED else tokens) // TOKENS
        each = tl.cdiv(groups, splits)
        last = tl.minimum((split + 1) * each, groups)
        peak, total = _over_codes(
            query, there, key_codes_ptr, key_scale_ptr, key_low_ptr, value_codes_ptr, value_scale_ptr, value_low_ptr, out, row, tokens, split * each, last,
            factor, D, BITS, HEADS, TOKENS, DTYPE, ASM, REGISTERS, ASM_BF16,
        )  # fmt: skip
    tl.store(peak_ptr + at, peak, mask=h < heads)
    tl.store(total_ptr + at, total, mask=h < heads)


@triton.jit
def join_splits_kernel(part_ptr, peak_ptr, total_ptr, y_ptr, parts, heads, D: tl.constexpr, PARTS: tl.constexpr):
    """One query head a program: the splits' sums weighed by how high their peaks are. [B H, parts, heads, .] -> [B, H * heads, D]."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    s, d = tl.arange(0, PARTS), tl.arange(0, D)
    at = (row * parts + s) * heads + head
    peak = tl.load(peak_ptr + at, mask=s < parts, other=-1e30)
    weight = tl.exp(peak - tl.max(peak, 0))
    total = tl.sum(weight * tl.load(total_ptr + at, mask=s < parts, other=0.0), 0)
    part = tl.load(part_ptr + at[:, None] * D + d[None, :], mask=(s < parts)[:, None], other=0.0)
    y = tl.sum(part * weight[:, None], 0) / total
    tl.store(y_ptr + (row * heads + head) * D + d, y.to(y_ptr.dtype.element_ty))


LONGEST = 63  # splits: with the newest tokens they fill the tile of 64 that puts them together


def default_tile(rows: int, tokens: int, processors: int) -> Tile:
    """For `rows` key heads of all sequences: two programs a processor, so that one loads while the other computes, of at least one group of tokens each."""
    return Tile(0, GROUP, max(1, min(tokens // GROUP, 2 * processors // rows, LONGEST)), 4, 3)


def table_key(q: Tensor, parts: list[Tensor], bits: int) -> str:
    """What the table knows a cache by: key heads of all sequences, D, query heads for each, tokens there is room for."""
    batch, kv_heads, tokens, _ = parts[0].shape
    return table.key(OP.name, bits, batch * kv_heads, q.shape[2], q.shape[1] // kv_heads, max(tokens, 1))


def candidates(tokens: int) -> list[Tile]:
    """Tiles worth timing."""
    splits = [s for s in (1, 2, 4, 8, 16, 32, LONGEST) if s <= max(1, tokens // GROUP)]
    return [Tile(0, GROUP, s, warps, stages) for s in splits for warps in (2, 4, 8) for stages in (2, 3, 4)]


@torch.library.custom_op("quantization_explorer::kv_attention", mutates_args=())
def kv_attention(q: Tensor, parts: list[Tensor], bits: int, counts: Tensor | None = None) -> Tensor:
    """softmax(q K^T / sqrt(D)) V of q [B, H * heads, D] in q's dtype; parts are the tensors of a LowBitCache in order, counts its counts."""
    batch, kv_heads, tokens, _ = parts[0].shape
    default = partial(default_tile, batch * kv_heads, tokens, table.processors(q.device) if q.is_cuda else 4)
    return table.launched(q.device, table_key(q, parts, bits), default, partial(launch, q, parts, bits, counts))


def launch(q: Tensor, parts: list[Tensor], bits: int, counts: Tensor | None, tile: Tile) -> Tensor:
    """As `kv_attention`, with one tile."""
    (batch, rows, size), (_, kv_heads, tokens, _), newest = q.shape, parts[0].shape, parts[6].shape[2]
    heads, wide = rows // kv_heads, q.device.type == "cpu" or q.dtype == torch.float32  # the interpreter computes bf16 dot products wrongly
    splits, bf16 = tile.splits, q.dtype == torch.bfloat16
    part = torch.empty(batch * kv_heads, splits + 1, heads, size, dtype=torch.float32, device=q.device)
    peak, total = (torch.empty(batch * kv_heads, splits + 1, heads, dtype=torch.float32, device=q.device) for _ in range(2))
    kv_attention_kernel[(batch * kv_heads, splits + 1)](
        q.contiguous(), *(t.contiguous() for t in parts), part, peak, total, counts, tokens, newest, heads,
        size**-0.5, splits,
        D=size, BITS=bits, HEADS=max(8, triton.next_power_of_2(heads)), TOKENS=GROUP,
        DTYPE=tl.float32 if wide else tl.float16 if q.dtype == torch.float16 else tl.bfloat16,
        ASM="" if wide else assembly(bits, bf16), REGISTERS=constraints(bits), ASM_BF16=bf16, COUNTED=counts is not None,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    y = torch.empty(batch, rows, size, dtype=torch.float32 if wide else q.dtype, device=q.device)
    join_splits_kernel[(batch * kv_heads, heads)](part, peak, total, y, splits + 1, heads, D=size, PARTS=triton.next_power_of_2(splits + 1))
    return y.to(q.dtype)


@kv_attention.register_fake
def _(q, parts, bits, counts=None):
    return torch.empty_like(q)


def _reference(q: Tensor, cache: LowBitCache) -> Tensor:
    keys, values = (t.double().repeat_interleave(q.shape[1] // cache.keys.shape[1], 1) for t in dequantize(cache.present()))
    weights = torch.softmax(q.double().unsqueeze(2) @ keys.transpose(2, 3) * q.shape[-1] ** -0.5, -1)
    return (weights @ values).squeeze(2)


@dataclass(frozen=True)
class Case:
    """A cache of `tokens` older and `newest` newer tokens, and one query token a sequence with `heads` query heads for each key head. counts: how
    many of them there are, None for all; what lies beyond is not a number.
    """

    batch: int
    kv_heads: int
    heads: int
    size: int
    tokens: int
    newest: int
    bits: int
    counts: tuple[int, int] | None = None


def _problem(case: Case, generator: torch.Generator) -> tuple[Tensor, LowBitCache]:
    shape = (case.batch, case.kv_heads, case.tokens)
    keys, values = (torch.randint(0, 256, (*shape, case.size * case.bits // 8), generator=generator, dtype=torch.uint8) for _ in range(2))
    levels = 2**case.bits - 1
    groups = {"key": (*shape[:2], case.tokens // GROUP, case.size), "value": (*shape, case.size // GROUP)}
    scales = {name: ((torch.rand(size, generator=generator) + 0.5) * 3 / levels).bfloat16() for name, size in groups.items()}
    lows = {name: (-scale.float() * levels * (0.4 + 0.2 * torch.rand(scale.shape, generator=generator))).bfloat16() for name, scale in scales.items()}
    newest = [torch.randn(*shape[:2], case.newest, case.size, generator=generator).bfloat16() for _ in range(2)]
    q = torch.randn(case.batch, case.kv_heads * case.heads, case.size, generator=generator)
    counts = None if case.counts is None else torch.tensor(case.counts)
    if case.counts is not None:
        older, new = case.counts
        for tensor, first in ((scales["key"], older // GROUP), (scales["value"], older), *((tensor, new) for tensor in newest)):
            tensor[:, :, first:] = torch.nan
    return q, LowBitCache(keys, scales["key"], lows["key"], values, scales["value"], lows["value"], *newest, case.bits, counts)


def _baselines(case: Case, generator: torch.Generator) -> list[Baseline]:
    shape = (case.batch, case.kv_heads, case.tokens + case.newest, case.size)
    tensors = {name: torch.randn(shape, generator=generator).bfloat16() for name in ("keys", "values")}
    made = [Baseline("bf16 SDPA", tensors, lambda q, t: attention(q, t["keys"], t["values"]))]
    if reads(*tensors.values()):
        made.append(Baseline("native bf16 attention", tensors, lambda q, t: attend(q, t["keys"], t["values"]), "cpu"))
    return made


def _triton_run(q: Tensor, packed: Packed) -> Tensor:
    cache = unpacked(packed)
    return kv_attention(q, cache.tensors(), cache.bits, cache.counts)


def _refuses(cache: LowBitCache) -> str:
    size = cache.keys.shape[-1]
    return "" if size & (size - 1) == 0 and size >= max(GROUP, 128 // cache.bits) else f"a head of {size} channels is no power of two, or too small"


TORCH = Form("torch", lambda cache: "", pack, run, "float32, codes converted and never scaled")
OP = Op(
    name="kv_attention",
    title="attention of one token over a low-bit cache",
    gpu=(Form("triton", _refuses, pack, _triton_run, "unpacks in registers"), TORCH),
    cpu=(NATIVE, TORCH),
    cases=(
        *(Case(2, 2, 4, 64, 96, 33, bits) for bits in (8, 4, 2)), Case(1, 1, 1, 128, 256, 1, 4), Case(1, 3, 7, 32, 32, 40, 8), Case(2, 1, 2, 64, 0, 5, 4),
        Case(1, 2, 8, 128, 512, 63, 8), Case(1, 1, 7, 64, 1088, 40, 4), Case(2, 1, 3, 96, 1056, 200, 2),
        *(Case(2, 1, 4, 64, 160, 64, 4, counts) for counts in ((0, 1), (64, 37))),
    ),
    timed=tuple(Case(batch, 8, 4, 128, tokens, 48, bits) for batch, tokens in ((1, 8192), (1, 32768), (8, 8192)) for bits in (8, 4)),
    problem=_problem,
    reference=_reference,
    flops=lambda case: 4.0 * case.batch * case.kv_heads * case.heads * case.size * (case.tokens + case.newest),
    baselines=_baselines,
)  # fmt: skip
