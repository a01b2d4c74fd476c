"""Matmul of float8 inputs with float8 weights, E4M3 or E5M2, with scales per tensor, per token and row, or per block; sums in float32.

A weight's codes are float8 bit patterns, its codebook the values of all 256 of them. GPUs without float8 units (before compute capability 8.9)
multiply the same numbers in 16 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import formats, low_bit_matmul, native_round, scaled_matmul
from kernels.cpu_forms import COPY
from kernels.floats import float_format
from kernels.native import NATIVE
from kernels.op import BLOCK, FLOAT8, Activation, Form, LowBitWeight, Packed, per_group, round_activation
from kernels.product import Case, product_op


def _refuses(w: LowBitWeight) -> str:
    if float_format(w.codebook) != w.activation.kind:
        return "float8 products take weights and inputs of one float8 format"
    if w.activation.threshold or w.activation.columns:
        return "float8 products have no outlier columns"
    n, k = w.codes.shape
    if w.scale.shape == (n // BLOCK, k // BLOCK) and n % BLOCK == 0 and k % BLOCK == 0:
        return ""
    if w.activation.per == "block" and k % BLOCK:
        return f"blocks of {BLOCK} do not divide {k} inputs"
    return "" if w.scale.shape in ((n, 1), (1, 1)) else "float8 products take one scale a row or a block of 128 x 128"


def _pack(w: LowBitWeight) -> Packed:
    """codes [N, K] float8, scale [N] or [N / 128, K / 128] float32; meta = (activation,)."""
    n = w.codes.shape[0]
    scale = w.scale.float() if w.scale.shape[1] > 1 or w.scale.shape[0] not in (1, n) else w.scale.float().expand(n, 1)[:, 0]
    return Packed({"codes": w.codes.contiguous().view(FLOAT8[w.activation.kind]), "scale": scale.contiguous()}, (w.activation,))


def _in_16_bits(form: Form, note: str) -> Form:
    """A weight-only form on the numbers that float8 inputs stand for: the same packed tensors, its meta = (activation, that form's)."""

    def pack(w: LowBitWeight) -> Packed:
        packed = form.pack(w._replace(activation=None))
        return Packed(packed.tensors, (w.activation, packed.meta))

    def run(x: Tensor, packed: Packed) -> Tensor:
        activation, meta = packed.meta
        if form is NATIVE and not torch.compiler.is_compiling():
            return native_round.product(x, Packed(packed.tensors, meta), activation)
        codes, scale = round_activation(x, activation)  # float8 numbers are exact in bfloat16
        if activation.per == "block":
            numbers = codes.float() * per_group(scale, *codes.shape)
            return form.run(numbers.to(x.dtype), Packed(packed.tensors, meta))
        return (form.run(codes.bfloat16(), Packed(packed.tensors, meta)).float() * scale).to(x.dtype)

    return Form(form.name, lambda w: _refuses(w) or form.refuses(w._replace(activation=None)), pack, run, note, torch.bfloat16)


TOKEN, TENSOR, RUN = Activation("e4m3"), Activation("e4m3", "tensor"), Activation("e4m3", "block")

OP = product_op(
    "w8a8_fp8_matmul",
    "y = x W^T, x and W in float8",
    gpu=(
        Form("triton", _refuses, _pack, scaled_matmul.run, "float32 sums", capability=89),
        _in_16_bits(Form("triton 16-bit", formats.refuses, formats.pack, low_bit_matmul.run), "this GPU has no float8 units: products in 16 bits"),
    ),
    cpu=(_in_16_bits(NATIVE, "inputs are rounded to float8 in the same call, then products in 16 bits"), COPY),
    bits=(8, 8),
    activation="fp8",
    timed=(Case(0, 0, 0, 8, 0, activation=TOKEN), Case(0, 0, 0, 8, -128, activation=RUN)),
    cases=(
        *(Case(m, 64, 256, 8, g, activation=a) for m in (1, 5, 33) for g in (0, -1) for a in (TOKEN, TENSOR)),
        *(Case(m, 128, 256, 8, g, activation=a) for m in (1, 130) for g, a in ((-128, RUN), (-128, TOKEN), (0, RUN))),
        Case(7, 37, 80, 8, 0, activation=Activation("e4m3", "tensor", 0.01)), Case(3, 48, 96, 8, 0, activation=Activation("e5m2")),
        Case(3, 128, 128, 8, -128, activation=Activation("e5m2", "block")),
    ),
)  # fmt: skip
