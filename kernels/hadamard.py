"""Hadamard transform of inputs with random signs, and fused with it their rounding to int8 or float8 per token.

x -> (x * signs) (I x H_p x H_q) / sqrt(p q) on runs of p q channels, p any order for which a matrix is given and q a power of two: explorer's
Rotation. The Triton form splits a run into up to three axes of at most 128 and multiplies along each by a small matrix on the matrix unit.
On a CPU a run stays in the first cache and is added and subtracted in log2 q stages (native_hadamard.c).
The matrices are +-1 and exact in every format; float32 inputs of a product are split into bf16 parts, two of them (16 bits) where x has 16 bits
and three where it has 32, so that the result is as good as in float32.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import native, table
from kernels.native_round import CODES, readable, rounding
from kernels.op import FLOAT8, Activation, Baseline, Form, Op, Packed, round_activation
from kernels.round_inputs import grid, rounded, value
from kernels.table import Tile

LONGEST = 8192  # padded channels that one program holds in registers


class Turn(NamedTuple):
    """A rotation: signs [K], left [p, p] and right [q, q] of +-1, int8; and how its results are rounded, None for not at all."""

    signs: Tensor
    left: Tensor
    right: Tensor
    activation: Activation | None = None


def turn(x: Tensor, t: Turn) -> Tensor:
    """x [M, K] rotated, in x's dtype, float32 or float64: the definition."""
    p, q = t.left.shape[0], t.right.shape[0]
    runs = (x * t.signs).view(-1, p, q)
    return (t.left.T.to(x.dtype) @ runs @ t.right.to(x.dtype)).view(x.shape) * (p * q) ** -0.5


@triton.jit
def _along_last(x, left_ptr, size, SIZE: tl.constexpr, ROWS: tl.constexpr, GIVEN: tl.constexpr, PARTS: tl.constexpr, DTYPE: tl.constexpr):
    """x [ROWS, SIZE] times a matrix of order `size` padded with zeros: the one in memory, int8, or the Sylvester matrix (-1)^bits(i & j)."""
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    inside = (i < size) & (j < size)
    if GIVEN:
        h = tl.load(left_ptr + i * size + j, mask=inside, other=0).to(tl.float32)
    else:
        both = i & j
        both ^= both >> 4
        both ^= both >> 2
        both ^= both >> 1
        h = tl.where(inside, 1.0 - 2.0 * (both & 1).to(tl.float32), 0.0)
    y = tl.zeros((ROWS, SIZE), tl.float32)
    for _ in tl.static_range(PARTS):
        part = x.to(DTYPE)
        y = tl.dot(part, h.to(DTYPE), y, input_precision="ieee")
        x -= part.to(tl.float32)
    return y


@triton.jit
def hadamard_kernel(
    x_ptr, signs_ptr, left_ptr, y_ptr, scale_ptr,  # [M, K] act, [K] i8, [p, p] i8, [M, K] out, [M] f32
    m_size, runs, a_size, b_size, c_size, factor,
    ROWS: tl.constexpr, RUNS: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, AXES: tl.constexpr,
    GIVEN: tl.constexpr, ROUND: tl.constexpr, LARGEST: tl.constexpr, MANTISSA: tl.constexpr, STEP: tl.constexpr, PARTS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """ROWS rows of `runs` runs of a_size * b_size * c_size channels a program; capitals are those sizes padded. AXES: how many count, from the
    last. GIVEN: the first of them is `left`.
    """
    i = tl.arange(0, ROWS * RUNS * A * B * C)
    c, b, a = i % C, i // C % B, i // (C * B) % A
    run, row = i // (C * B * A) % RUNS, i // (C * B * A * RUNS)
    channel = ((run * a_size + a) * b_size + b) * c_size + c
    mask = (tl.program_id(0) * ROWS + row < m_size) & (run < runs) & (a < a_size) & (b < b_size) & (c < c_size)
    width = runs * a_size * b_size * c_size
    start = (tl.program_id(0) * ROWS).to(tl.int64) * width
    where = row * width + channel
    x = tl.load(x_ptr + start + where, mask=mask, other=0.0).to(tl.float32) * tl.load(signs_ptr + channel, mask=mask, other=0).to(tl.float32)
    x = _along_last(tl.reshape(x, (ROWS * RUNS * A * B, C)), left_ptr, c_size, C, ROWS * RUNS * A * B, GIVEN and AXES == 1, PARTS, DTYPE)
    if AXES > 1:
        x = tl.permute(tl.reshape(x, (ROWS * RUNS * A, B, C)), (0, 2, 1))
        x = _along_last(tl.reshape(x, (ROWS * RUNS * A * C, B)), left_ptr, b_size, B, ROWS * RUNS * A * C, GIVEN and AXES == 2, PARTS, DTYPE)
        x = tl.permute(tl.reshape(x, (ROWS * RUNS * A, C, B)), (0, 2, 1))
    if AXES > 2:
        x = tl.permute(tl.reshape(x, (ROWS * RUNS, A, B * C)), (0, 2, 1))
        x = _along_last(tl.reshape(x, (ROWS * RUNS * B * C, A)), left_ptr, a_size, A, ROWS * RUNS * B * C, GIVEN, PARTS, DTYPE)
        x = tl.permute(tl.reshape(x, (ROWS * RUNS, B * C, A)), (0, 2, 1))
    y = tl.reshape(x, (ROWS, RUNS * A * B * C)) * factor
    where, mask = tl.reshape(where, (ROWS, RUNS * A * B * C)), tl.reshape(mask, (ROWS, RUNS * A * B * C))
    if ROUND:
        bits = tl.max(tl.abs(y).to(tl.int32, bitcast=True), 1)  # of numbers that are not negative in their order, NaN above all
        scale = tl.where(bits > 0, tl.div_rn(bits.to(tl.float32, bitcast=True), tl.full((ROWS,), LARGEST, tl.float32)), 1.0)
        y = rounded(y, scale[:, None], LARGEST, MANTISSA, STEP)
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        tl.store(scale_ptr + row, scale, mask=row < m_size)
    tl.store(y_ptr + start + where, y.to(y_ptr.dtype.element_ty), mask=mask)


def sylvester(order: int) -> Tensor:
    """The Hadamard matrix of a power of two by doubling, [order, order] float32."""
    return torch.ones(1, 1) if order == 1 else torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), sylvester(order // 2))


def axes(p: int, q: int) -> tuple[int, ...]:
    """Up to three sizes whose product is p q, the first being p itself unless p is a power of two; 16 to 128 each where the run is long enough."""
    first, power = (1, p * q) if p & (p - 1) == 0 else (p, q)
    count = 1 if power <= 128 else 2 if power <= 128 * 128 else 3
    bits = power.bit_length() - 1
    sizes = [1 << (bits // count + (i < bits % count)) for i in range(count)] if power > 1 else []
    return (first, *sizes) if first > 1 else tuple(sizes) or (1,)


def padded(size: int) -> int:
    """What a matrix unit takes: a power of two of at least 16."""
    return max(16, triton.next_power_of_2(size))


def warps(length: int) -> int:
    """Warps for a tile of so many channels: 16 a thread at most: beside their parts and places, more would not fit its registers."""
    return 4 if length <= 1024 else 8 if length <= 4096 else 16


def _length(k: int, sizes: tuple[int, ...]) -> int:
    run = 1
    for size in sizes:
        run *= padded(size)
    return run * triton.next_power_of_2(k // math.prod(sizes))


def _rounding_refuses(t: Turn) -> str:
    apart = t.activation is not None and (t.activation.per != "token" or t.activation.threshold or t.activation.columns)
    return "the fused rounding is per token" if apart else ""


def refuses(t: Turn) -> str:
    p, q = t.left.shape[0], t.right.shape[0]
    if refusal := _rounding_refuses(t):
        return refusal
    sizes = axes(p, q)
    if len(sizes) > 3 or max(sizes) > 128:
        return f"{p} x {q} does not split into three axes"
    return "" if _length(len(t.signs), sizes) <= LONGEST else f"{len(t.signs)} channels do not fit the registers of one program"


def _pack(t: Turn) -> Packed:
    """signs [K] and left [p, p] int8; meta = (q, activation)."""
    return Packed({"signs": t.signs, "left": t.left.contiguous()}, (t.right.shape[0], t.activation))


def _run(x: Tensor, packed: Packed) -> Tensor | tuple[Tensor, Tensor]:
    (q, activation), t = packed.meta, packed.tensors
    y, scale = hadamard(x, t["signs"], t["left"], q, "" if activation is None else activation.kind)
    return y if activation is None else (y, scale)


def default_tile(k: int, sizes: tuple[int, ...]) -> Tile:
    """As many rows a program as give the matrix unit 16; a program holds them in registers, so nothing else depends on the device."""
    length = _length(k, sizes)
    return Tile(max(1, 16 * padded(sizes[-1]) // length), 0, 1, warps(length), 1)


def table_key(m: int, k: int, p: int, q: int) -> str:
    """What the table knows a rotation by."""
    return table.key(OP.name, 16, p, k, q, m)


def candidates(k: int, sizes: tuple[int, ...]) -> list[Tile]:
    """Tiles worth timing: up to eight times the default's rows where a program's registers hold them."""
    least, length = default_tile(k, sizes).rows, _length(k, sizes)
    return [Tile(least * times, 0, 1, count, 1) for times in (1, 2, 4, 8) for count in (4, 8, 16) if times == 1 or least * times * length <= 512 * count]


@torch.library.custom_op("quantization_explorer::hadamard", mutates_args=())
def hadamard(x: Tensor, signs: Tensor, left: Tensor, q: int, kind: str) -> tuple[Tensor, Tensor]:
    """(x [M, K] rotated, or its codes of a kind that Activation names, and their scale [M, 1] float32, which is empty without codes). signs [K]
    and left [p, p] of +-1, int8; a left of a power of two must be Sylvester's.
    """
    (m, k), p = x.shape, len(left)
    return table.launched(x.device, table_key(m, k, p, q), partial(default_tile, k, axes(p, q)), partial(launch, x, signs, left, q, kind))


def launch(x: Tensor, signs: Tensor, left: Tensor, q: int, kind: str, tile: Tile) -> tuple[Tensor, Tensor]:
    """As `hadamard`, with one tile."""
    (m, k), p, sizes = x.shape, len(left), axes(len(left), q)
    interpreted = x.device.type == "cpu"  # the interpreter computes bf16 dot products wrongly, and cuts bits off where it should round
    wide = interpreted and x.dtype == torch.bfloat16
    y = torch.empty(
        m, k, dtype=torch.float32 if wide and not kind else x.dtype if not kind else torch.int8 if kind == "int8" else FLOAT8[kind], device=x.device
    )
    scale = torch.empty(m if kind else 0, 1, dtype=torch.float32, device=x.device)
    first, second, last = (*(1,) * (3 - len(sizes)), *sizes)
    shape = [1] * (3 - len(sizes)) + [padded(size) for size in sizes]
    hadamard_kernel[(triton.cdiv(m, tile.rows),)](
        x.contiguous(), signs, left, y, scale, m, k // (p * q), first, second, last, (p * q) ** -0.5,
        ROWS=tile.rows, RUNS=triton.next_power_of_2(k // (p * q)),
        A=shape[0], B=shape[1], C=shape[2], AXES=len(sizes), GIVEN=p & (p - 1) != 0, ROUND=bool(kind),
        PARTS=1 if interpreted else 3 if x.dtype == torch.float32 else 2, DTYPE=tl.float32 if interpreted else tl.bfloat16,
        **grid(kind or "int8"), num_warps=tile.warps,
    )  # fmt: skip
    return (y if kind else y.to(x.dtype)), scale


@hadamard.register_fake
def _(x, signs, left, q, kind):
    y = x.new_empty(x.shape, dtype=(torch.int8 if kind == "int8" else FLOAT8[kind]) if kind else x.dtype)
    return y, x.new_empty(x.shape[0] if kind else 0, 1, dtype=torch.float32)


@dataclass(frozen=True)
class Case:
    """Inputs [M, runs * p * q]; kind: what results are rounded to, "" for nothing."""

    m: int
    p: int
    q: int
    runs: int = 1
    kind: str = ""


def _problem(case: Case, generator: torch.Generator) -> tuple[Tensor, Turn]:
    k = case.runs * case.p * case.q
    signs = torch.randint(0, 2, (k,), generator=generator, dtype=torch.int8) * 2 - 1
    left = sylvester(case.p) if case.p & (case.p - 1) == 0 else torch.randint(0, 2, (case.p, case.p), generator=generator) * 2 - 1
    turned = Turn(signs, left.to(torch.int8), sylvester(case.q).to(torch.int8), Activation(case.kind) if case.kind else None)
    return torch.randn(case.m, k, generator=generator), turned


def _reference(x: Tensor, t: Turn) -> Tensor:
    y = turn(x.double(), t)
    return y if t.activation is None else value(round_activation(y.float(), t.activation))


def _is_sylvester(matrix: Tensor) -> bool:
    order = len(matrix)
    return order & (order - 1) == 0 and torch.equal(matrix.cpu().float(), sylvester(order))


def _native_refuses(t: Turn) -> str:
    return native.library()[1] or _rounding_refuses(t) or ("" if _is_sylvester(t.right) else "its right matrix is not Sylvester's")


class Turned(ctypes.Structure):
    """`struct turn` of native_hadamard.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("signs", "left")), *((name, ctypes.c_long) for name in ("k", "p", "q")), ("factor", ctypes.c_float),
    ]  # fmt: skip


@lru_cache(maxsize=4096)
def _described(*fields: Any) -> Any:
    """A reference to a Turned, kept as `native.described` keeps them."""
    return ctypes.byref(Turned(*fields))


def _native_pack(t: Turn) -> Packed:
    """signs [K], and left [p, p] unless it is Sylvester's, which is then one with the right one; int8. meta = (p, q, activation)."""
    p, q = t.left.shape[0], t.right.shape[0]
    whole = _is_sylvester(t.left)
    left = {} if whole else {"left": t.left.to(torch.int8).contiguous()}
    return Packed({"signs": t.signs.to(torch.int8).contiguous()} | left, (1 if whole else p, p * q if whole else q, t.activation))


def _native_run(x: Tensor, packed: Packed) -> Tensor | tuple[Tensor, Tensor]:
    t, (p, q, a), read = packed.tensors, packed.meta, readable(x)
    m, k = read.shape
    y = torch.empty(m, k, dtype=read.dtype if a is None else torch.int8 if a.kind == "int8" else FLOAT8[a.kind])
    scale, how = (None, None) if a is None else (torch.empty(m, 1), rounding(a, k, CODES))
    turned = _described(t["signs"].data_ptr(), t["left"].data_ptr() if "left" in t else None, k, p, q, (p * q) ** -0.5)
    place = None if scale is None else scale.data_ptr()
    if native.library()[0].turn_rows(read.data_ptr(), read.dtype is torch.float32, m, turned, y.data_ptr(), how, place):
        raise MemoryError("no memory for a row that is turned")
    return (y, scale) if a is not None else y if y.dtype is x.dtype else y.to(x.dtype)


def _cpu_pack(t: Turn) -> Packed:
    return Packed({"signs": t.signs, "left": t.left, "right": t.right}, (t.activation,))


def _cpu_run(x: Tensor, packed: Packed) -> Tensor | tuple[Tensor, Tensor]:
    t, (activation,) = packed.tensors, packed.meta
    y = turn(x.float(), Turn(t["signs"], t["left"], t["right"]))
    return y.to(x.dtype) if activation is None else round_activation(y, activation)


OP = Op(
    name="hadamard",
    title="x turned by a Hadamard matrix, and rounded",
    gpu=(Form("triton", refuses, _pack, _run, "float32 precision"),),
    cpu=(
        Form("native", _native_refuses, _native_pack, _native_run, "sums and differences in float32, in the first cache"),
        Form("cpu", _rounding_refuses, _cpu_pack, _cpu_run, "two small float32 products a run"),
    ),
    cases=(
        *(Case(m, p, q, runs, kind) for m, p, q, runs in ((1, 16, 16, 1), (3, 4, 4, 5), (2, 12, 32, 1)) for kind in ("", "int8", "e4m3")),
        Case(17, 8, 16), Case(2, 28, 4, 3), Case(2, 64, 128), Case(5, 1, 2, 3), Case(1, 20, 256, 1, "e5m2"),
    ),
    timed=tuple(Case(m, *shape, 1, kind) for m in (1, 16, 1024) for shape in ((64, 64), (64, 128)) for kind in ("", "int8")),
    problem=_problem,
    reference=_reference,
    flops=lambda case: 2.0 * case.m * case.runs * case.p * case.q * (case.p + case.q),
    baselines=lambda case, generator: [Baseline("copy", {}, lambda x, tensors: x.clone())],
    value=lambda result: value(result) if isinstance(result, tuple) else result,
)  # fmt: skip
