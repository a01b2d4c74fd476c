"""Weight-only matmul of codes of 1 to 4 bits: integers with optional zeros, small floats (MXFP4, NVFP4) and tables of 16 values (NF4, FP4)."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import formats, low_bit_matmul, read_out
from kernels.cpu_forms import COPY, CPU_GROUPS, NIBBLES
from kernels.native import NATIVE
from kernels.op import Form, LowBitWeight, Packed
from kernels.product import Case, product_op


def _triton_refuses(w: LowBitWeight) -> str:
    return "more than 4 bits" if w.bits > 4 else formats.refuses(w)


def _cpu_group(w: LowBitWeight) -> int:
    """The group size the CPU operator runs with: the weight's own, or for one scale a row (or in all) the largest that divides K; 0 if none."""
    k, group = w.codes.shape[1], formats.group_of(w)
    return next((g for g in CPU_GROUPS if k % g == 0 and group in (0, g)), 0)


def _cpu_refuses(w: LowBitWeight) -> str:
    n, k = w.codes.shape
    if w.bits > 4:
        return "more than 4 bits"
    if formats.integers(w).codebook is not None:
        return "torch has no CPU operator for codebooks"
    if n % 16:
        return f"{n} outputs are not a multiple of 16"
    return "" if _cpu_group(w) else f"no group of 32, 64, 128 or 256 fits {k} inputs in groups of {formats.group_of(w)}"


def _cpu_pack(w: LowBitWeight) -> Packed:
    """Codes in the operator's own blocked layout [N, K/2] uint8, and scale and shift as one [K/G, N, 2] bfloat16: w = (q - 8) s + z.

    A narrower code is moved up so that the code that means 0 becomes 8: its value is unchanged.
    """
    w = formats.integers(w)
    n, k = w.codes.shape
    group, middle = _cpu_group(w), 2 ** (w.bits - 1)
    codes = w.codes.to(torch.int32) + (8 - middle)
    scale = w.scale.float().expand(n, -1)
    zero = torch.full_like(scale, float(middle)) if w.zero is None else w.zero.expand(n, -1)
    pairs = torch.stack([scale, (middle - zero) * scale], dim=-1)  # [N, groups, 2]
    pairs = pairs.repeat_interleave(k // group // pairs.shape[1], dim=1).transpose(0, 1).contiguous().bfloat16()
    return Packed({"codes": torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1), "scale": pairs}, (group, read_out.crossing(n, k)))


def _cpu_run(x: Tensor, packed: Packed) -> Tensor:
    # Other dtypes than bf16 take a scalar path that is 50 times slower.
    t, (group, first) = packed.tensors, packed.meta
    if x.dtype is torch.bfloat16 and x.shape[0] < first:  # the way of every token of a decoding, without a function between
        return read_out.product(x, t["codes"], group, t["scale"])
    return read_out.multiply(x.bfloat16(), t["codes"], group, t["scale"], 1, first).to(x.dtype)


TRITON = Form("triton", _triton_refuses, formats.pack, low_bit_matmul.run, "codes occupy their own 2, 3 or 4 bits")

CPU = Form(
    "cpu", _cpu_refuses, _cpu_pack, _cpu_run, "bf16 activations; 1- to 3-bit codes occupy 4 bits",
    many="4-bit codes read out to bfloat16", crossing=lambda packed: read_out.begins(packed.meta[1]),
)  # fmt: skip

OP = product_op(
    "int4_matmul",
    "y = x W^T, W in codes of 1 to 4 bits",
    gpu=(TRITON,),
    cpu=(NATIVE, CPU, NIBBLES, COPY),
    bits=(1, 4),
    timed=(
        Case(0, 0, 0, 4, 128), Case(0, 0, 0, 3, 128), Case(0, 0, 0, 2, 128), Case(0, 0, 0, 4, 64, codebook="table", scale="float32"),
        Case(0, 0, 0, 4, 32, codebook="e2m1", scale="e8m0"), Case(0, 0, 0, 4, 16, codebook="e2m1", scale="e4m3"),
    ),
    cases=(
        *(Case(m, 64, 256, 4, g, s) for m in (1, 5, 33) for g in (32, 64, 128, 0, -1) for s in (True, False)),
        *(Case(m, 48, 384, bits, g, s) for m in (1, 33) for bits in (2, 3) for g in (32, 64, 128, 0) for s in (True, False)),
        Case(7, 37, 128, 4, 32), Case(2, 16, 80, 4, 0), Case(2, 21, 80, 3, 0, False), Case(2, 21, 300, 2, 0), Case(130, 21, 300, 3, -1, False),
        Case(5, 64, 4096, 4, 128), Case(130, 64, 256, 4, 64, False),
        *(Case(m, 64, 256, 4, g, False, fractional=True) for m in (1, 33) for g in (64, 0)),
        *(Case(m, 48, 256, bits, 16, bits == 3, fractional=bits == 2, scale="float32") for m in (1, 33) for bits in (2, 3)),
        *(Case(m, 64, 256, 4, g, codebook="table", scale="float32") for m in (1, 9) for g in (16, 64, 0)),
        Case(130, 33, 96, 4, 32, codebook="table"), Case(9, 33, 96, 4, 32, codebook="table"), Case(1, 16, 64, 2, 32, codebook="table"),
        *(Case(m, 48, 256, 4, 64, codebook="table", scale="nested") for m in (1, 130)), Case(3, 300, 256, 4, 64, codebook="table", scale="nested"),
        *(Case(m, 48, 256, 4, 32, codebook="e2m1", scale="e8m0") for m in (1, 33, 130)), Case(3, 37, 96, 4, 32, codebook="e2m1", scale="e8m0"),
        *(Case(m, 48, 256, 4, 16, codebook="e2m1", scale="e4m3") for m in (1, 33, 130)), Case(3, 37, 80, 4, 16, codebook="e2m1", scale="e4m3"),
        Case(300, 48, 128, 4, 64), Case(300, 48, 128, 4, 32, codebook="table"),
        *(Case(m, 48, 256, 1, g, codebook="table") for m in (1, 33) for g in (0, 64)),
    ),
)  # fmt: skip
