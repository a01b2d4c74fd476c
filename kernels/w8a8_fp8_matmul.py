"""Matmul of float8 inputs with float8 weights, through torch's scaled product on GPUs (compute capability 8.9 and later) and CPUs.

A weight's codes are float8 bit patterns, its codebook the values of all 256 of them. Sums are in float32; scales per tensor or per row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.op import FLOAT8, Activation, Case, Form, LowBitWeight, Op, Packed, float8_values, round_activation


def _refuses(w: LowBitWeight) -> str:
    if w.codebook is None or not torch.equal(w.codebook.cpu(), float8_values("e4m3")) or w.activation.kind != "e4m3":
        return "torch's scaled product takes E4M3 weights and inputs"
    if w.scale.shape[1] != 1 or w.scale.shape[0] not in (1, w.codes.shape[0]):
        return "torch's scaled product takes one scale a row, not blocks"
    return "" if w.codes.shape[1] % 16 == 0 and w.codes.shape[0] % 16 == 0 else "torch's scaled product takes sizes that 16 divides"


def _pack(w: LowBitWeight) -> Packed:
    """codes [N, K] float8, scale [1, N] float32; meta = (activation,)."""
    n = w.codes.shape[0]
    return Packed({"codes": w.codes.view(FLOAT8["e4m3"]).contiguous(), "scale": w.scale.float().expand(n, 1).T.contiguous()}, (w.activation,))


def _run(x: Tensor, packed: Packed) -> Tensor:
    codes, scale = round_activation(x, packed.meta[0])
    y = torch._scaled_mm(codes, packed.tensors["codes"].T, scale.expand(len(x), 1).contiguous(), packed.tensors["scale"], out_dtype=torch.bfloat16)
    return y.to(x.dtype)


TOKEN, TENSOR = Activation("e4m3"), Activation("e4m3", "tensor")
FORM = Form("scaled_mm", _refuses, _pack, _run, "torch's scaled product; bf16 results", torch.bfloat16)

OP = Op(
    name="w8a8_fp8_matmul",
    title="y = x W^T, x and W in float8",
    bits=(8, 8),
    triton=FORM,
    cpu=FORM,
    cases=(
        *(Case(m, 64, 256, 8, g, activation=a) for m in (1, 5, 33) for g in (0, -1) for a in (TOKEN, TENSOR)),
        Case(7, 48, 80, 8, 0, activation=Activation("e4m3", "tensor", 0.01)),
    ),
    activation="fp8",
)  # fmt: skip
