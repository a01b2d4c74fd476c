"""Rounds inputs to int8 or float8 with a scale per token, per tensor or per block, in one pass: what the W8A8 products read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import native, native_round
from kernels.floats import FORMATS, bias
from kernels.op import BLOCK, FLOAT8, LIMIT, Activation, Baseline, Form, Op, Packed, largest, per_group, round_activation


def grid(kind: str) -> dict[str, float]:
    """What `rounded` needs to know of int8, "e4m3" or "e5m2"."""
    if kind == "int8":
        return {"LARGEST": LIMIT[kind], "MANTISSA": 0, "STEP": 1.0}
    mantissa = FORMATS[kind][1]
    return {"LARGEST": LIMIT[kind], "MANTISSA": mantissa, "STEP": 2.0 ** (1 - bias(kind) - mantissa)}


@triton.jit
def rounded(x, scale, LARGEST: tl.constexpr, MANTISSA: tl.constexpr, STEP: tl.constexpr):
    """x / scale, float32, clamped and rounded half to even to integers (MANTISSA 0) or to a float with STEP between its subnormals.

    Adding 1.5 * 2**23 steps leaves no bits below one step. Rounded here, the conversion that follows is exact wherever it is done. The division is
    the exactly rounded one: with `/`, which a GPU only approximates, values halfway between two codes would not go where the reference's go.
    """
    value = tl.minimum(tl.maximum(tl.div_rn(x, scale), -LARGEST), LARGEST)
    even = (value + 12582912.0 * STEP) - 12582912.0 * STEP
    if MANTISSA == 0:
        return even
    bits = value.to(tl.int32, bitcast=True)
    half: tl.constexpr = (1 << (22 - MANTISSA)) - 1
    normal = ((bits + half + ((bits >> (23 - MANTISSA)) & 1)) & (-(1 << (23 - MANTISSA)))).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(value) < STEP * 2**MANTISSA, even, normal)


@triton.jit
def _read(line, keep_ptr, k, end, KEEP: tl.constexpr):
    """Inputs k of a row as float32, 0 beyond the end and where they do not count."""
    x = tl.load(line + k, mask=k < end, other=0.0).to(tl.float32)
    if KEEP:
        x = tl.where(tl.load(keep_ptr + k, mask=k < end, other=0.0) > 0, x, 0.0)
    return x


@triton.jit
def round_rows_kernel(
    x_ptr, keep_ptr, given_ptr, codes_ptr, scale_ptr,  # [M, K] act, [K] f32, [] f32, [M, K] i8 or float8, [M, K / part] f32
    k_size, stride_x, part_size,
    WIDTH: tl.constexpr, PASSES: tl.constexpr, LARGEST: tl.constexpr, MANTISSA: tl.constexpr, STEP: tl.constexpr, KEEP: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """One part of a row, `part_size` inputs that share a scale, a program: WIDTH of them stay in registers until the scale is known, those of further
    passes are read twice. KEEP: inputs count where keep is 1, not 0. GIVEN: the scale is given.
    """
    row, part = tl.program_id(0), tl.program_id(1)
    line, out = x_ptr + row.to(tl.int64) * stride_x, codes_ptr + row.to(tl.int64) * k_size
    k = part * part_size + tl.arange(0, WIDTH)
    end = tl.minimum((part + 1) * part_size, k_size)
    x = _read(line, keep_ptr, k, end, KEEP)
    bits = tl.max(tl.abs(x).to(tl.int32, bitcast=True), 0)  # of numbers that are not negative in their order, NaN above all
    for step in range(1, PASSES):
        later = _read(line, keep_ptr, k + step * WIDTH, end, KEEP)
        bits = tl.maximum(bits, tl.max(tl.abs(later).to(tl.int32, bitcast=True), 0))
    if GIVEN:
        scale = tl.where(bits < 0x7F800000, tl.load(given_ptr), float("nan"))
    else:
        scale = tl.where(bits > 0, tl.div_rn(bits.to(tl.float32, bitcast=True), tl.full((), LARGEST, tl.float32)), 1.0)
    tl.store(scale_ptr + row * tl.num_programs(1) + part, scale)
    tl.store(out + k, rounded(x, scale, LARGEST, MANTISSA, STEP).to(codes_ptr.dtype.element_ty), mask=k < end)
    for step in range(1, PASSES):
        where = k + step * WIDTH
        later = rounded(_read(line, keep_ptr, where, end, KEEP), scale, LARGEST, MANTISSA, STEP)
        tl.store(out + where, later.to(codes_ptr.dtype.element_ty), mask=where < end)


def widths(part: int) -> tuple[int, int, int]:
    """(inputs a program holds, passes, warps) for a part of so many: 32,768 fill the registers of sixteen warps, and of more a pass takes half as many."""
    if part > 32768:
        return 16384, triton.cdiv(part, 16384), 16
    return triton.next_power_of_2(part), 1, 4 if part <= 4096 else 16


@torch.library.custom_op("quantization_explorer::round_inputs", mutates_args=())
def round_inputs(x: Tensor, kind: str, per: str, given: float, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """(codes [M, K], scale float32 [M, 1], or [M, K / BLOCK] per block) of x [M, K]; keep [K] float32 is 0 for inputs that are left out."""
    m, k = x.shape
    x = x.contiguous()
    part = BLOCK if per == "block" else k
    codes = torch.empty(m, k, dtype=torch.int8 if kind == "int8" else FLOAT8[kind], device=x.device)
    scale = torch.empty(m, triton.cdiv(k, part), dtype=torch.float32, device=x.device)
    one = scale  # a pointer that is not read
    if per == "tensor":
        kept = x if keep is None else torch.where(keep > 0, x, 0.0)
        peak = largest(kept).float() / LIMIT[kind]
        one = torch.where(peak == 0, 1.0, peak) if not given else torch.full((), given, device=x.device)
    width, passes, warps = widths(part)
    round_rows_kernel[(m, scale.shape[1])](
        x, one if keep is None else keep, one, codes, scale, k, x.stride(0), part,
        WIDTH=width, PASSES=passes, KEEP=keep is not None, GIVEN=per == "tensor", num_warps=warps, **grid(kind),
    )  # fmt: skip
    return codes, scale


@round_inputs.register_fake
def _(x, kind, per, given, keep):
    m, k = x.shape
    codes = x.new_empty(m, k, dtype=torch.int8 if kind == "int8" else FLOAT8[kind])
    return codes, x.new_empty(m, -(-k // BLOCK) if per == "block" else 1, dtype=torch.float32)


@dataclass(frozen=True)
class Case:
    """Inputs [M, K] and how they are rounded."""

    m: int
    k: int
    activation: Activation


def _refuses(a: Activation) -> str:
    return "outliers found at run time need the data" if a.threshold else ""


def _run(x: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
    a = packed.meta[0]
    return round_inputs(x, a.kind, a.per, a.scale, None)


def _problem(case: Case, generator: torch.Generator) -> tuple[Tensor, Activation]:
    x = torch.randn(case.m, case.k, generator=generator)
    x[0] = 0
    return x, case.activation


def value(result: tuple[Tensor, Tensor]) -> Tensor:
    """The numbers that codes and scale stand for, float64."""
    codes, scale = result
    return codes.double() * per_group(scale.expand(len(codes), -1), *codes.shape)


def _pack(a: Activation) -> Packed:
    return Packed({}, (a,))


def _native_refuses(a: Activation) -> str:
    return "block floats are an op of their own" if a.small_blocks() else native.library()[1]


NATIVE = Form("native", _native_refuses, _pack, lambda x, packed: native_round.rounded(x, packed.meta[0]), "one pass")
CPU = Form("cpu", lambda a: "", _pack, lambda x, packed: round_activation(x, packed.meta[0]), "torch operators, one after the other")

OP = Op(
    name="round_inputs",
    title="x rounded to int8 or float8",
    gpu=(Form("triton", _refuses, _pack, _run, "one pass"),),
    cpu=(NATIVE, CPU),
    cases=(
        *(Case(m, k, Activation(kind, per)) for m, k in ((2, 64), (5, 300)) for kind in ("int8", "e4m3", "e5m2") for per in ("token", "tensor")),
        Case(3, 256, Activation("e4m3", "block")), Case(3, 256, Activation("e5m2", "block")), Case(4, 80, Activation("int8", "tensor", 0.02)),
        *(Case(2, k, Activation("int8")) for k in (32768, 53248)), Case(2, 40000, Activation("e4m3")),
    ),
    timed=tuple(Case(m, k, Activation("int8")) for m in (1, 16, 1024) for k in (4096, 14336)),
    problem=_problem,
    reference=lambda x, a: value(round_activation(x, a)),
    flops=lambda case: 3.0 * case.m * case.k,
    baselines=lambda case, generator: [Baseline("copy", {}, lambda x, tensors: x.clone())],
    value=value,
)  # fmt: skip
