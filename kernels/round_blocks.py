"""Rounds inputs to block floats, MX or NVFP4, in one pass: to their values in 16 bits, for products without units for such floats, or to FP4 codes.

A value is an element times a power of two (MX) or times an E4M3 number (NVFP4): at most six significant bits, exact in bfloat16. NVFP4's float32 factor
is split: the power of two in it stays with the values, so that they are as large as the inputs were, and what is left, 1 to 2, goes to the weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import native, native_round
from kernels.op import BLOCKS, LIMIT, Activation, Baseline, Form, Op, Packed, factor, per_group, round_activation, round_to_blocks
from kernels.round_inputs import grid, rounded

PROGRAM = 1024  # inputs of a row that one program rounds, at most


@triton.jit
def round_blocks_kernel(
    x_ptr, y_ptr, scale_ptr, k_size, stride_x, unit, lift,  # [M, K] act, the same or [M, K/2] u8, [M, K/SIZE] u8; NVFP4's factor, its power of two
    WIDTH: tl.constexpr, SIZE: tl.constexpr, POWERS: tl.constexpr, TOP: tl.constexpr, CODES: tl.constexpr,
    LARGEST: tl.constexpr, MANTISSA: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """WIDTH inputs of a row a program, SIZE of them share a scale. POWERS: it is a power of two, 2**TOP the one in the largest element; else E4M3.
    CODES: E2M1 codes, two a byte, and scales as E8M0 or E4M3, instead of values.
    """
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    x = tl.load(x_ptr + row * stride_x + k, mask=k < k_size, other=0.0).to(tl.float32)
    blocks = tl.reshape(x, (WIDTH // SIZE, SIZE))
    bits = tl.max(tl.abs(blocks).to(tl.int32, bitcast=True), 1, keep_dims=True)  # of numbers that are not negative in their order, NaN above all
    if POWERS:
        exponent = tl.maximum((bits >> 23) - TOP, 0)
        scale = tl.where(exponent > 0, exponent << 23, 1 << 22).to(tl.float32, bitcast=True)
        times = scale
    else:
        peak = tl.div_rn(tl.div_rn(bits.to(tl.float32, bitcast=True), tl.full((), LARGEST, tl.float32)), unit)
        number = rounded(peak, tl.full((), 1.0, tl.float32), 448.0, 3, 0.001953125)
        scale = tl.where(number > 0, number * unit, 1.0)
        times = number * lift
    y = rounded(blocks, tl.broadcast_to(scale, (WIDTH // SIZE, SIZE)), LARGEST, MANTISSA, STEP)
    if CODES:
        size = tl.abs(y)
        code = (size * 2).to(tl.int32)  # 0 to 4, 6, 8 or 12: from 2 on elements are further apart
        code = tl.where(size > 4, 7, tl.where(size > 3, 6, tl.where(size > 2, 5, code))) | tl.where(y < 0, 8, 0)
        low, high = tl.split(tl.reshape(code, (WIDTH // 2, 2)))
        pair, block = tl.program_id(1) * (WIDTH // 2) + tl.arange(0, WIDTH // 2), tl.program_id(1) * (WIDTH // SIZE) + tl.arange(0, WIDTH // SIZE)
        tl.store(y_ptr + row * (k_size // 2) + pair, (low | (high << 4)).to(tl.uint8), mask=pair < k_size // 2)
        if POWERS:
            stored = tl.where(bits < 0x7F800000, exponent, 255).to(tl.uint8)
        else:
            stored = tl.where(bits < 0x7F800000, number.to(tl.float8e4nv).to(tl.uint8, bitcast=True), 127).to(tl.uint8)
        tl.store(scale_ptr + row * (k_size // SIZE) + block, tl.reshape(stored, (WIDTH // SIZE,)), mask=block < k_size // SIZE)
    else:
        y = y * tl.where(bits < 0x7F800000, times, float("nan"))
        tl.store(y_ptr + row * k_size + k, tl.reshape(y, (WIDTH,)).to(y_ptr.dtype.element_ty), mask=k < k_size)


def _launch(x: Tensor, y: Tensor, scale: Tensor | None, a: Activation) -> None:
    (m, k), unit = x.shape, a.scale or 1.0
    width = min(PROGRAM, triton.next_power_of_2(k))
    round_blocks_kernel[(m, triton.cdiv(k, width))](
        x, y, y if scale is None else scale, k, x.stride(0), unit, unit / factor(a),
        WIDTH=width, SIZE=BLOCKS[a.per], POWERS=a.per == "mx", TOP=math.frexp(LIMIT[a.kind])[1] - 1, CODES=scale is not None, num_warps=4, **grid(a.kind),
    )  # fmt: skip


@torch.library.custom_op("quantization_explorer::round_blocks", mutates_args=())
def round_blocks(x: Tensor, kind: str, per: str, given: float) -> Tensor:
    """x [M, K] bf16, fp16 or fp32 -> its rounded values over `factor`, in the same dtype."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x.contiguous(), y, None, Activation(kind, per, given))
    return y


@round_blocks.register_fake
def _(x, kind, per, given):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("quantization_explorer::fp4_codes", mutates_args=())
def fp4_codes(x: Tensor, per: str, given: float) -> tuple[Tensor, Tensor]:
    """(E2M1 codes [M, K/2] uint8, the first of two in the lower half; scales [M, K/32] uint8 E8M0 or [M, K/16] float8 E4M3) of x [M, K]."""
    (m, k), kind = x.shape, torch.uint8 if per == "mx" else torch.float8_e4m3fn
    codes = torch.empty(m, k // 2, dtype=torch.uint8, device=x.device)
    scale = torch.empty(m, k // BLOCKS[per], dtype=torch.uint8, device=x.device)
    _launch(x.contiguous(), codes, scale, Activation("e2m1", per, given))
    return codes, scale.view(kind)


@fp4_codes.register_fake
def _(x, per, given):
    m, k = x.shape
    kind = torch.uint8 if per == "mx" else torch.float8_e4m3fn
    return x.new_empty(m, k // 2, dtype=torch.uint8), x.new_empty(m, k // BLOCKS[per], dtype=kind)


@dataclass(frozen=True)
class Case:
    """Inputs [M, K] and how they are rounded."""

    m: int
    k: int
    activation: Activation

    def format(self) -> str:
        """Such as "e2m1 per mx block"."""
        return self.activation.name()


def refuses(a: Activation, k: int) -> str:
    """Why inputs [M, K] cannot be rounded so, "" when they can."""
    return f"blocks of {BLOCKS[a.per]} do not divide {k} inputs" if k % BLOCKS[a.per] else ""


def triton_values(x: Tensor, a: Activation) -> Tensor:
    """Rounded inputs [M, K] over `factor`, in x's dtype, by Triton."""
    return round_blocks(x, a.kind, a.per, a.scale)


def torch_values(x: Tensor, a: Activation) -> Tensor:
    """As `triton_values`, by torch's operators one after the other. Scales over the unit are E4M3 numbers but for the last bit of float32, which
    bfloat16 rounds away.
    """
    elements, scale = round_to_blocks(x, a)
    return elements.mul_(scale if a.per == "mx" else scale / factor(a)).view(x.shape).to(x.dtype)


def cpu_values(x: Tensor, a: Activation) -> Tensor:
    """As `torch_values`, in C where that is built."""
    return torch_values(x, a) if native.library()[0] is None or torch.compiler.is_compiling() else native_round.values(x, a)


def _problem(case: Case, generator: torch.Generator) -> tuple[Tensor, Activation]:
    """Random inputs with a row of zeros, blocks of very different size, and numbers halfway between two elements."""
    x = torch.randn(case.m, case.k, generator=generator)
    x[0] = 0
    x[1:2, : case.k // 2] *= 2.0**-9
    x[-1] = (x[-1] * 4).round() / 4
    return x, case.activation


def _reference(x: Tensor, a: Activation) -> Tensor:
    elements, scale = round_activation(x, a)
    return elements.double() * per_group(scale, *elements.shape).double() / factor(a)


def _pack(a: Activation) -> Packed:
    return Packed({}, (a,))


MX, NV = Activation("e2m1", "mx"), Activation("e2m1", "nvfp4", 0.002)

OP = Op(
    name="round_blocks",
    title="x rounded to block floats, in 16 bits",
    gpu=(Form("triton", lambda a: "", _pack, lambda x, packed: triton_values(x, *packed.meta), "one pass"),),
    cpu=(
        Form("native", lambda a: native.library()[1], _pack, lambda x, packed: native_round.values(x, *packed.meta), "one pass"),
        Form("cpu", lambda a: "", _pack, lambda x, packed: torch_values(x, *packed.meta), "torch operators, one after the other"),
    ),
    cases=(
        *(Case(m, k, Activation(kind, "mx")) for m, k in ((3, 64), (5, 1120)) for kind in ("e2m1", "e2m3", "e3m2", "e4m3", "e5m2")),
        *(Case(m, k, NV) for m, k in ((3, 80), (5, 2048))),
    ),
    timed=tuple(Case(m, k, a) for m in (1, 16, 1024) for k in (4096, 14336) for a in (MX, NV)),
    problem=_problem,
    reference=_reference,
    flops=lambda case: 3.0 * case.m * case.k,
    baselines=lambda case, generator: [Baseline("copy", {}, lambda x, tensors: x.clone())],
)  # fmt: skip
